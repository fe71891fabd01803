"""What is this file, and does it become the right module? Golden, embedded, foreign, damaged and hostile files."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer, T5EncoderModel

from tests.conftest import GOLDEN
from training import export
from uso_core.errors import WeightsError
from uso_core.loaders import build, encoders, keys
from uso_core.loaders.files import inspect
from uso_core.model.style import StyleProjector
from uso_core.model.transformer import USOTransformer2DModel
from uso_core.settings import ROOT

EMBEDDED = ROOT / "weights" / "uso-tiny"
FLUX, AE, LORA, PROJECTOR = (GOLDEN / f"{name}.safetensors" for name in ("flux", "ae", "dit_lora", "projector"))
COMFY = "model.diffusion_model."
Tensors = dict[str, torch.Tensor]


def raw(header: bytes | Mapping[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file byte by byte, so that it can be wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(begin: Any, end: Any, shape: Any = (1,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def named(path: Path, *names: str) -> Path:
    """A file with tensors of these names, as far as its header tells."""
    return write(path, {name: torch.zeros(1) for name in names})


def same(ours: nn.Module, theirs: nn.Module) -> None:
    """The same parameters, bit for bit."""
    one, other = ours.state_dict(), theirs.state_dict()
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def transformer(path: Path, lora: Path | None = None) -> USOTransformer2DModel:
    return build.build_transformer(path, lora, torch.float32)


def vae(path: Path) -> AutoencoderKL:
    return build.build_vae(path, torch.float32)


def projector(path: Path) -> StyleProjector:
    return build.build_projector(path, torch.float32)


@pytest.fixture
def flux() -> Tensors:
    return load_file(FLUX)


# --- what a file is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", [GOLDEN, EMBEDDED], ids=["golden", "embedded"])
@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("flux.safetensors", "transformer"),
        ("ae.safetensors", "vae"),
        ("dit_lora.safetensors", "lora"),
        ("projector.safetensors", "projector"),
        ("t5/model.safetensors", "T5 text encoder"),
        ("clip/model.safetensors", "CLIP text encoder"),
        ("siglip/model.safetensors", "SigLIP vision tower"),
    ],
)
def test_the_role_is_learnt_from_the_tensors_not_from_the_name(folder, name, role, tmp_path):
    renamed = tmp_path / "download(1).bin"
    shutil.copy(folder / name, renamed)
    checkpoint = inspect(renamed)
    assert checkpoint.role == role
    assert {name: list(info.shape) for name, info in checkpoint.tensors.items()} == {
        name: list(tensor.shape) for name, tensor in load_file(renamed).items()
    }


SD15 = (f"{COMFY}input_blocks.0.0.weight", f"{COMFY}output_blocks.0.0.in_layers.0.weight",
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
        "first_stage_model.encoder.down.0.block.0.conv1.weight")  # fmt: skip
SDXL = (*SD15[:2], "conditioner.embedders.0.transformer.text_model.embeddings.position_ids", SD15[3])
SD3 = (f"{COMFY}joint_blocks.0.x_block.attn.qkv.weight", f"{COMFY}x_embedder.proj.weight", SD15[3])
UNET = ("conv_in.weight", "down_blocks.0.attentions.0.norm.weight", "up_blocks.1.attentions.0.norm.weight")
PEFT = ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight",)
KOHYA = ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight",)


@pytest.mark.parametrize("maker", [transformer, vae, projector])
@pytest.mark.parametrize(
    ("names", "spoken"),
    [(SD15, "Stable Diffusion checkpoint"), (SDXL, "SDXL"), (SD3, "Stable Diffusion 3"), (UNET, "U-Net"),
     (PEFT, "LoRA in another format"), (KOHYA, "LoRA in another format"), (("a.weight",), "unknown")],
)  # fmt: skip
def test_a_foreign_model_is_refused_by_its_kind(maker, names, spoken, tmp_path):
    path = named(tmp_path / "model.safetensors", *names)
    with pytest.raises(WeightsError) as failure:
        maker(path)
    assert str(path) in failure.value.message
    assert spoken in failure.value.message
    assert failure.value.hint


@pytest.mark.parametrize(
    ("maker", "given", "spoken", "wanted"),
    [
        (projector, LORA, "USO's LoRA", "USO's style projector"),
        (lambda path: transformer(FLUX, path), PROJECTOR, "USO's style projector", "USO's LoRA"),
        (lambda path: transformer(FLUX, path), FLUX, "a FLUX transformer", "USO's LoRA"),
        (transformer, LORA, "USO's LoRA", "a FLUX transformer"),
        (transformer, AE, "a VAE", "a FLUX transformer"),
        (vae, FLUX, "a FLUX transformer", "a VAE"),
        (vae, GOLDEN / "t5" / "model.safetensors", "a T5 text encoder", "a VAE"),
        (projector, GOLDEN / "siglip" / "model.safetensors", "a SigLIP vision tower", "USO's style projector"),
    ],
)
def test_a_file_in_another_files_place_is_refused_by_name(maker, given, spoken, wanted):
    with pytest.raises(WeightsError) as failure:
        maker(given)
    assert failure.value.message == f"{given} is not {wanted}: it seems to be {spoken}."
    assert wanted in failure.value.hint
    if given in (LORA, PROJECTOR):  # the usual mix-up: say which variable takes which
        assert "LORA takes dit_lora" in failure.value.hint
        assert "PROJECTION_MODEL takes projector" in failure.value.hint


def test_the_vae_of_stable_diffusion_is_refused(tmp_path):
    tensors = load_file(AE) | {"quant_conv.weight": torch.zeros(8, 8, 1, 1)}
    with pytest.raises(WeightsError, match=r"unknown \(first quant_conv\.weight\)"):
        vae(write(tmp_path / "ae.safetensors", tensors))


NOT_WEIGHTS = {
    "web page": (b"<!DOCTYPE html>\n<html><body>Log in</body></html>", "web page", "licence"),
    "web page after blanks": (b"\r\n  <html><head></head></html>", "web page", "licence"),
    "XML of a storage server": (b'<?xml version="1.0"?><Error>AccessDenied</Error>', "web page", "licence"),
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 23802932552\n",
                        "Git LFS pointer", "git lfs pull"),
    "GGUF": (b"GGUF\3\0\0\0" + bytes(64), "GGUF", "safetensors"),
    "zip": (b"PK\3\4" + bytes(64), "pickled", "safetensors"),
    "old pickle": (pickle.dumps({"a": 1}, protocol=2), "pickled", "safetensors"),
    "pickle": (pickle.dumps({"weights": [1.0] * 9}, protocol=4), "pickled", "safetensors"),
    "JSON": (b'{"metadata": {}, "weight_map": {}}', "JSON", ".safetensors"),
    "JSON list": (b'[{"prompt": "a cat"}]', "JSON", ".safetensors"),
    "empty": (b"", "empty", "download"),
    "three bytes": (b"\x10\0\0", "cut off after 3 bytes", "download"),
    "random bytes": (bytes(range(255, 1, -1)), "not a safetensors file", "safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NOT_WEIGHTS)
def test_what_is_no_safetensors_file_is_refused_for_what_it_is(kind, tmp_path):
    content, seems, remedy = NOT_WEIGHTS[kind]
    path = tmp_path / "flux1-dev.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError) as failure:
        inspect(path)
    assert str(path) in failure.value.message
    assert seems in failure.value.message
    assert remedy in failure.value.hint


@pytest.mark.parametrize(("make", "words"), [(Path.mkdir, "folder"), (lambda path: None, "not there")])
def test_a_folder_or_nothing_is_no_file(make, words, tmp_path):
    path = tmp_path / "x.safetensors"
    make(path)
    with pytest.raises(WeightsError, match=words):
        inspect(path)


CUT = r"cut off"
DAMAGED = r"damaged"
BROKEN = {
    "header cut": (raw(b'{"a":{"dtype":"F32",', length=400), CUT),
    "header of 2^60 bytes": (raw(b"{}", length=2**60), "not a safetensors file"),
    "header of 2^64 - 1 bytes": (raw(b"{}", length=2**64 - 1), "not a safetensors file"),
    "header of 90 MB": (raw(b"{}", length=90 * 2**20), CUT),
    "header of no bytes": (raw(b"", b"{}"), "not a safetensors file"),
    "data cut": (raw({"a": entry(0, 4), "b": entry(4, 8)}, bytes(6)), CUT),
    "data of 2^62 bytes": (raw({"a": entry(0, 2**62, (2**60,))}, bytes(4)), CUT),
    "overlapping": (raw({"a": entry(0, 4), "b": entry(0, 4)}, bytes(4)), DAMAGED),
    "overlapping in part": (raw({"a": entry(0, 8, (2,)), "b": entry(4, 12, (2,))}, bytes(12)), DAMAGED),
    "a hole": (raw({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), DAMAGED),
    "bytes behind the data": (raw({"a": entry(0, 4)}, bytes(400)), DAMAGED),
    "negative": (raw({"a": entry(-4, 0)}, bytes(4)), DAMAGED),
    "reversed": (raw({"a": entry(4, 0)}, bytes(4)), DAMAGED),
    "reversed, of an unknown dtype": (raw({"a": entry(8, 4, dtype="F3")}, bytes(8)), DAMAGED),
    "fractional": (raw({"a": entry(0.0, 4.0)}, bytes(4)), DAMAGED),
    "offsets that are texts": (raw({"a": entry("0", "4")}, bytes(4)), DAMAGED),
    "offsets that are truth values": (raw({"a": entry(False, True, dtype="U8")}, bytes(1)), DAMAGED),
    "offsets with three numbers": (raw({"a": {**entry(0, 4), "data_offsets": [0, 4, 4]}}, bytes(4)), DAMAGED),
    "no offsets": (raw({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)), DAMAGED),
    "wrong dtype size": (raw({"a": entry(0, 4, dtype="F16")}, bytes(4)), DAMAGED),
    "wrong shape": (raw({"a": entry(0, 4, (2,))}, bytes(4)), DAMAGED),
    "shape that is a text": (raw({"a": entry(0, 4, "1")}, bytes(4)), DAMAGED),
    "negative shape": (raw({"a": entry(0, 4, (-1, -1))}, bytes(4)), DAMAGED),
    "dtype that is a list": (raw({"a": entry(0, 4, dtype=["F32"])}, bytes(4)), DAMAGED),
    "entry that is a number": (raw({"a": 1}, bytes(4)), DAMAGED),
    "entry that is null": (raw({"a": None}, bytes(4)), DAMAGED),
    "metadata that is a text": (raw({"__metadata__": "uso", "a": entry(0, 4)}, bytes(4)), DAMAGED),
    "metadata with numbers": (raw({"__metadata__": {"uso": 1}, "a": entry(0, 4)}, bytes(4)), DAMAGED),
    "deeply nested": (raw(b'{"a":' + b"[" * 200_000), DAMAGED),
    "an integer of 10000 digits": (raw(b'{"a":' + b"9" * 10_000 + b"}"), DAMAGED),
    "no UTF-8": (raw(b'{"\xff\xfe":1}'), DAMAGED),
    "no JSON": (raw(b"{a: 1}"), DAMAGED),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_header_is_refused(kind, tmp_path):
    content, words = BROKEN[kind]
    path = tmp_path / "ae.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=words) as failure:
        inspect(path)
    assert str(path) in failure.value.message
    assert failure.value.hint


@pytest.mark.parametrize("file", [FLUX, AE, LORA, PROJECTOR], ids=lambda path: path.stem)
@pytest.mark.parametrize("kept", [0.01, 0.5, 0.999])
def test_an_interrupted_download_is_refused(file, kept, tmp_path):
    content = file.read_bytes()
    path = tmp_path / file.name
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(WeightsError, match="cut off") as failure:
        inspect(path)
    assert "download it again" in failure.value.hint


# The first bytes of a safetensors file are the length of its header, and may look like the start of something else:
# 0x280, 0x380 and 0x480 like a pickle, 0x5b and 0x7b like JSON, and the same after a 0x20 that reads as a blank.
@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x10280, 0x5B, 0x7B, 0x5B20, 0x7B20])
def test_a_header_of_an_unlucky_length_is_read(length, tmp_path):
    text = json.dumps({"feature_embedder.a": entry(0, 4)}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw(text.ljust(length), bytes(4)))
    assert load_file(path)["feature_embedder.a"].item() == 0  # the format's own library reads it
    assert inspect(path).role == "projector"


# --- strict loading ---------------------------------------------------------------------------------------------------

MAKERS: dict[str, tuple[Path, Callable[[Path], Any]]] = {
    "transformer": (FLUX, transformer),
    "vae": (AE, vae),
    "projector": (PROJECTOR, projector),
    "lora": (LORA, lambda path: transformer(FLUX, path)),
}


@pytest.mark.parametrize(
    ("role", "name"),
    [
        ("transformer", "img_in.weight"),
        ("transformer", "double_blocks.1.txt_attn.qkv.bias"),
        ("transformer", "double_blocks.0.img_attn.norm.query_norm.scale"),
        ("transformer", "single_blocks.2.linear1.weight"),
        ("transformer", "final_layer.adaLN_modulation.1.weight"),
        ("transformer", "guidance_in.out_layer.bias"),
        ("vae", "encoder.down.2.block.0.norm1.weight"),
        ("vae", "decoder.up.3.block.1.conv1.weight"),  # diffusers counts these levels from the other end
        ("vae", "decoder.conv_in.weight"),
        ("vae", "encoder.mid.attn_1.proj_out.bias"),
        ("projector", "feature_embedder.high_projection.weight"),
        ("projector", "feature_embedder.mid_embedding_linear.0.bias"),
        ("lora", "single_blocks.1.processor.proj_lora.up.weight"),
        ("lora", "double_blocks.0.processor.qkv_lora2.down.weight"),
    ],
)
def test_a_missing_tensor_is_named_as_the_file_would(role, name, tmp_path):
    file, maker = MAKERS[role]
    tensors = load_file(file)
    del tensors[name]
    path = write(tmp_path / file.name, tensors)
    with pytest.raises(WeightsError) as failure:
        maker(path)
    assert str(path) in failure.value.message
    assert name in failure.value.message


@pytest.mark.parametrize(
    ("role", "name"),
    [
        ("transformer", "double_blocks.0.img_attn.gate.weight"),
        ("transformer", "distilled_guidance_layer.in_proj.weight"),
        ("transformer", "img_in.lora.scale"),
        ("vae", "loss.discriminator.main.0.weight"),
        ("projector", "feature_embedder.top_projection.weight"),
        ("projector", "optimizer.step"),
        ("lora", "double_blocks.0.processor.qkv_lora3.down.weight"),
        ("lora", "double_blocks.0.processor.qkv_lora1.alpha"),
    ],
)
def test_an_unknown_tensor_is_refused(role, name, tmp_path):
    file, maker = MAKERS[role]
    path = write(tmp_path / file.name, load_file(file) | {name: torch.zeros(2, 2)})
    with pytest.raises(WeightsError) as failure:
        maker(path)
    assert str(path) in failure.value.message
    assert "1 unknown" in failure.value.message
    assert name.removesuffix(".down.weight") in failure.value.message


@pytest.mark.parametrize(
    ("role", "name", "words"),
    [
        ("transformer", "double_blocks.1.img_mlp.0.weight", r"\[64, 256\], \[256, 64\] is needed"),
        ("transformer", "single_blocks.0.linear2.weight", r"\[320, 64\], \[64, 320\] is needed"),
        ("transformer", "double_blocks.0.txt_attn.qkv.weight", r"\[64, 192\], \[192, 64\] is needed"),
        ("projector", "feature_embedder.low_embedding_linear.0.weight", r"\[16, 4\], \[4, 16\] is needed"),
        ("lora", "double_blocks.0.processor.proj_lora1.up.weight", "proj_lora1"),
    ],
)
def test_a_misshapen_tensor_is_named_with_both_shapes(role, name, words, tmp_path):
    file, maker = MAKERS[role]
    tensors = load_file(file)
    path = write(tmp_path / file.name, tensors | {name: tensors[name].T})
    with pytest.raises(WeightsError, match=words) as failure:
        maker(path)
    assert str(path) in failure.value.message
    assert name.removesuffix(".up.weight") in failure.value.message


@pytest.mark.parametrize(
    ("role", "name"),
    [
        ("transformer", "img_in.weight"),
        ("transformer", "txt_in.weight"),
        ("transformer", "vector_in.in_layer.weight"),
        ("transformer", "double_blocks.0.img_attn.norm.query_norm.scale"),
        ("vae", "encoder.down.1.block.0.conv2.weight"),
        ("vae", "decoder.conv_in.weight"),
        ("projector", "feature_embedder.high_embedding_linear.0.weight"),
        ("projector", "feature_embedder.high_projection.weight"),
        ("lora", "single_blocks.0.processor.qkv_lora.down.weight"),
    ],
)
@pytest.mark.parametrize("other", [torch.zeros(()), torch.zeros(0), torch.zeros(1, 1, 1, 1, 1)], ids=["()", "(0)", "5"])
def test_the_tensors_that_tell_the_shape_may_be_misshapen_too(role, name, other, tmp_path):
    file, maker = MAKERS[role]
    path = write(tmp_path / file.name, load_file(file) | {name: other})
    with pytest.raises(WeightsError) as failure:
        maker(path)
    assert str(path) in failure.value.message


def test_a_block_number_out_of_all_proportion_is_refused_before_anything_is_built(flux, tmp_path):
    stem = "double_blocks.1."
    renamed = {name.replace(stem, "double_blocks.100000000."): tensor for name, tensor in flux.items()}
    path = write(tmp_path / "flux.safetensors", renamed)
    with pytest.raises(WeightsError, match="double_blocks"):
        build.transformer_config(inspect(path))


def test_the_loading_tells_its_progress_and_may_be_stopped_by_it():
    fractions: list[float] = []
    build.build_transformer(FLUX, LORA, torch.float32, fractions.append)
    assert fractions == sorted(fractions)
    assert fractions[0] == 0
    assert fractions[-1] == 1
    assert len(fractions) > 10

    def stop(fraction: float) -> None:
        if fraction > 0.5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        build.build_transformer(FLUX, LORA, torch.float32, stop)


@pytest.mark.parametrize(
    "noted", ["no JSON", "[]", '"text"', "9" * 5000, "[" * 100_000], ids=["text", "list", "string", "huge", "nested"]
)
def test_unreadable_notes_are_refused(noted, tmp_path):
    path = write(tmp_path / "projector.safetensors", load_file(PROJECTOR), {"uso": noted})
    with pytest.raises(WeightsError, match="metadata"):
        projector(path)


@pytest.mark.parametrize("depths", [[-2, -11], ["a", "b", "c"], 3, None, [1.5, 2.5, 3.5]])
def test_notes_that_mean_nothing_are_refused(depths, tmp_path):
    path = write(tmp_path / "projector.safetensors", load_file(PROJECTOR), {"uso": json.dumps({"depths": depths})})
    with pytest.raises(WeightsError, match="depths"):
        projector(path)


@pytest.mark.parametrize("noted", [{"norm_groups": 5}, {"norm_groups": 0}, {"scaling_factor": 0}, {"shift_factor": ""}])
def test_constants_that_make_no_vae_are_refused(noted, tmp_path):
    path = write(tmp_path / "ae.safetensors", load_file(AE), {"uso": json.dumps(noted)})
    with pytest.raises(WeightsError, match="cannot be built"):
        vae(path)


def test_a_file_without_notes_has_the_constants_of_flux():
    assert vae(AE).config.scaling_factor == 0.3611
    assert vae(AE).config.shift_factor == 0.1159
    assert build.text_tokens(FLUX) == 512
    assert list(projector(PROJECTOR).config.depths) == [-2, -11, -20]


# --- the LoRA ---------------------------------------------------------------------------------------------------------


def test_the_lora_is_added_in_float32_and_rounded_once(flux):
    lora = load_file(LORA)
    fused = build.build_transformer(FLUX, LORA, torch.bfloat16).state_dict()

    def product(stem: str) -> torch.Tensor:
        return lora[f"{stem}.up.weight"].float() @ lora[f"{stem}.down.weight"].float()

    linear1 = flux["single_blocks.2.linear1.weight"].float()
    qkv = linear1[: 3 * 64] + product("single_blocks.2.processor.qkv_lora")
    for name, part in zip(("to_q", "to_k", "to_v"), qkv.chunk(3), strict=True):
        ours = fused[f"single_transformer_blocks.2.attn.{name}.weight"]
        torch.testing.assert_close(ours, part.bfloat16(), rtol=0.01, atol=1e-6)
    # the MLP's rows of linear1 are left alone
    assert torch.equal(fused["single_transformer_blocks.2.proj_mlp.weight"], linear1[3 * 64 :].bfloat16())
    image, text = (
        flux[f"double_blocks.1.{stream}_attn.proj.weight"].float() + product(f"double_blocks.1.processor.proj_{which}")
        for stream, which in (("img", "lora1"), ("txt", "lora2"))
    )
    ours = fused["transformer_blocks.1.attn.to_out.0.weight"]
    torch.testing.assert_close(ours, image.bfloat16(), rtol=0.01, atol=1e-6)
    ours = fused["transformer_blocks.1.attn.to_add_out.weight"]
    torch.testing.assert_close(ours, text.bfloat16(), rtol=0.01, atol=1e-6)


def narrowed(lora: Tensors) -> Tensors:
    return {name: tensor[:, :32] if ".down." in name else tensor for name, tensor in lora.items()}


def without_a_block(lora: Tensors) -> Tensors:
    return {name: tensor for name, tensor in lora.items() if not name.startswith("single_blocks.1.")}


def with_a_block_more(lora: Tensors) -> Tensors:
    stem = "single_blocks.2."
    more = {name.replace(stem, "single_blocks.3."): t.clone() for name, t in lora.items() if name.startswith(stem)}
    return lora | more


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (narrowed, r"misshapen \(first \w+_blocks\.\d\.processor\.\w+ adds \d+ x 32 to \[\d+, 64\]\)"),
        (without_a_block, r"missing \(first single_blocks\.1\.processor\."),
        (with_a_block_more, r"unknown \(first single_blocks\.3\.processor\."),
    ],
)
def test_a_lora_of_another_transformer_is_refused(change, words, tmp_path):
    path = write(tmp_path / "dit_lora.safetensors", change(load_file(LORA)))
    with pytest.raises(WeightsError, match=words) as failure:
        transformer(FLUX, path)
    assert failure.value.message.startswith(f"{path} does not fit this transformer")


def test_a_lora_of_two_ranks_is_refused(tmp_path):
    name = "double_blocks.1.processor.qkv_lora1.down.weight"
    lora = load_file(LORA)
    path = write(tmp_path / "dit_lora.safetensors", lora | {name: lora[name][:4]})
    with pytest.raises(WeightsError, match=r"double_blocks\.1\.processor\.qkv_lora1"):
        transformer(FLUX, path)


# --- other forms of the transformer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, LORA], ids=["plain", "lora"])
def test_the_prefix_of_comfyui_changes_nothing(flux, lora, tmp_path):
    path = write(tmp_path / "unet.safetensors", {COMFY + name: tensor for name, tensor in flux.items()})
    same(transformer(path, lora), transformer(FLUX, lora))


def test_of_an_all_in_one_checkpoint_the_transformer_is_taken(flux, tmp_path):
    others = {"vae.encoder.down.0.block.0.conv1.weight": torch.zeros(2), "vae.decoder.up.0.block.0.x": torch.zeros(2),
              "text_encoders.clip_l.logit_scale": torch.zeros(1)}  # fmt: skip
    path = write(tmp_path / "flux1-dev-fp8.safetensors", {COMFY + name: t for name, t in flux.items()} | others)
    same(transformer(path), transformer(FLUX))


def test_the_prefix_is_not_part_of_a_tensors_name_in_a_message(flux, tmp_path):
    name = "single_blocks.1.linear2.bias"
    tensors = {COMFY + other: tensor for other, tensor in flux.items() if other != name}
    with pytest.raises(WeightsError, match=rf"missing \(first {name}\)"):
        transformer(write(tmp_path / "unet.safetensors", tensors))


def is_matrix(name: str, tensor: torch.Tensor) -> bool:
    return "blocks." in name and tensor.dim() == 2


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("lora", [None, LORA], ids=["plain", "lora"])
def test_a_plain_fp8_cast_is_the_cast_weights(flux, dtype, lora, tmp_path):
    cast = {name: tensor.to(dtype) if is_matrix(name, tensor) else tensor for name, tensor in flux.items()}
    back = {name: tensor.float() for name, tensor in cast.items()}
    assert not torch.equal(back["img_in.weight"], back["img_in.weight"] * 0)
    ours = transformer(write(tmp_path / "fp8.safetensors", cast), lora)
    same(ours, transformer(write(tmp_path / "float32.safetensors", back), lora))


@pytest.mark.parametrize("suffix", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("prefix", ["", COMFY], ids=["bare", "comfy"])
@pytest.mark.parametrize("per_row", [False, True], ids=["scalar", "per row"])
def test_scaled_fp8_is_brought_back_with_its_scale(flux, suffix, prefix, per_row, tmp_path):
    quantized: Tensors = {f"{prefix}scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    back: Tensors = {}
    for name, tensor in flux.items():
        quantized[prefix + name] = back[name] = tensor
        if is_matrix(name, tensor):
            largest = tensor.float().abs().amax(dim=1) if per_row else tensor.float().abs().amax()
            scale = largest / 448  # e4m3's largest number
            column = scale[:, None] if per_row else scale
            values = (tensor.float() / column).to(torch.float8_e4m3fn)
            stem = name.removesuffix(".weight")
            quantized |= {prefix + name: values, f"{prefix}{stem}.{suffix}": scale,
                          f"{prefix}{stem}.scale_input": torch.ones(())}  # fmt: skip
            back[name] = values.float() * column
    path = write(tmp_path / "scaled.safetensors", quantized)
    same(transformer(path), transformer(write(tmp_path / "float32.safetensors", back)))


def test_a_quantization_that_cannot_be_read_is_named(flux, tmp_path):
    name = "single_blocks.0.linear1.weight"
    path = write(tmp_path / "int8.safetensors", flux | {name: flux[name].to(torch.int8)})
    with pytest.raises(WeightsError, match="I8") as failure:
        transformer(path)
    assert name in failure.value.message


def make_transformer(**config: Any) -> USOTransformer2DModel:
    head = config.get("attention_head_dim", 32)
    given = {
        "num_layers": 1, "num_single_layers": 1, "attention_head_dim": head, "num_attention_heads": 2,
        "joint_attention_dim": 24, "pooled_projection_dim": 40, "guidance_embeds": True,
        "axes_dims_rope": (head // 8, head * 7 // 16, head * 7 // 16),
    }  # fmt: skip
    torch.manual_seed(0)
    return USOTransformer2DModel(**given | config).bfloat16()


@pytest.mark.parametrize(
    "config",
    [
        {"num_attention_heads": 3},  # width 96
        {"attention_head_dim": 64},  # width 128
        {"num_layers": 3, "num_single_layers": 2},
        {"guidance_embeds": False},  # as schnell
        {"in_channels": 16},
    ],
    ids=lambda config: ",".join(config),
)
def test_the_shape_of_a_transformer_is_read_off_its_tensors(config, tmp_path):
    made = make_transformer(**config)
    path = tmp_path / "flux.safetensors"
    export.export_transformer(made, path, {"text_tokens": 77})
    loaded = build.build_transformer(path, None, torch.bfloat16)
    names = ("num_layers", "num_single_layers", "attention_head_dim", "num_attention_heads", "joint_attention_dim",
             "pooled_projection_dim", "guidance_embeds", "in_channels")  # fmt: skip
    assert {name: loaded.config[name] for name in names} == {name: made.config[name] for name in names}
    assert list(loaded.config.axes_dims_rope) == list(made.config.axes_dims_rope)
    assert build.text_tokens(path) == 77
    same(loaded, made)


def test_the_shapes_of_the_golden_files():
    config = build.transformer_config(inspect(FLUX))
    assert (config["num_layers"], config["num_single_layers"]) == (2, 3)
    assert (config["num_attention_heads"], config["attention_head_dim"]) == (2, 32)
    assert config["axes_dims_rope"] == (4, 14, 14)
    assert config["guidance_embeds"] is True
    config = build.vae_config(inspect(AE))
    assert config["block_out_channels"] == (32, 32, 32, 32)
    assert (config["layers_per_block"], config["latent_channels"]) == (1, 16)


def test_a_width_that_no_heads_fill_is_refused(flux, tmp_path):
    scale = {name: torch.ones(48) for name in flux if name.endswith("_norm.scale")}
    with pytest.raises(WeightsError, match="width 64 and head size 48"):
        transformer(write(tmp_path / "flux.safetensors", flux | scale))


def test_an_exported_lora_fits_the_transformer_that_it_was_made_for(tmp_path):
    made = make_transformer(num_attention_heads=3, num_single_layers=2)
    state, pairs = made.state_dict(), {}
    for target in state:
        stem = keys.original_name(target, keys.LORA)
        if stem != target:
            rows = state[target].shape[0] * (3 if "qkv" in stem else 1)
            pairs[stem] = torch.ones(2, state[target].shape[1]), torch.ones(rows, 2)
    export.export_transformer(made, tmp_path / "flux.safetensors", {})
    export.export_lora(pairs, tmp_path / "dit_lora.safetensors")
    fused = transformer(tmp_path / "flux.safetensors", tmp_path / "dit_lora.safetensors").state_dict()
    changed = {name for name in state if not torch.equal(fused[name], state[name].float())}
    assert changed == {name for name in state if keys.original_name(name, keys.LORA) != name}
    assert all(torch.equal(fused[name], state[name].float() + 2) for name in changed)  # rank 2 of ones


# --- VAE and projector ------------------------------------------------------------------------------------------------


def make_vae(widths: tuple[int, ...], layers: int, **config: Any) -> AutoencoderKL:
    torch.manual_seed(0)
    given = {"scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False}
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths), up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths, layers_per_block=layers, **given | config,
    ).bfloat16()  # fmt: skip


@pytest.mark.parametrize(
    ("widths", "layers", "config"),
    [
        ((32, 64, 64, 128), 2, {"latent_channels": 16}),  # widths change: the resnets need shortcuts
        ((32, 32), 1, {"latent_channels": 4}),
        ((24, 48), 1, {"norm_num_groups": 8, "scaling_factor": 0.5, "shift_factor": -0.25}),
    ],
)
def test_the_shape_of_a_vae_is_read_off_its_tensors(widths, layers, config, tmp_path):
    made = make_vae(widths, layers, **config)
    path = tmp_path / "ae.safetensors"
    export.export_vae(made, path)
    loaded = build.build_vae(path, torch.bfloat16)
    assert tuple(loaded.config.block_out_channels) == widths
    assert loaded.config.layers_per_block == layers
    assert {name: loaded.config[name] for name in config} == config
    same(loaded, made)


def test_the_names_of_the_vae_agree_with_the_converter_of_diffusers(tmp_path):
    made = make_vae((32, 64, 64, 128), 2, latent_channels=16)
    path = tmp_path / "ae.safetensors"
    export.export_vae(made, path)
    theirs = convert_ldm_vae_checkpoint(load_file(path), dict(made.config))
    ours = vae(path).state_dict()
    assert any("conv_shortcut" in name for name in ours)
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name].float().reshape(ours[name].shape), ours[name]) for name in ours)


@pytest.mark.parametrize("depths", [(-2, -11, -20), (-1, -2, -3)])
def test_the_shape_of_a_projector_is_read_off_its_tensors(depths, tmp_path):
    torch.manual_seed(0)
    made = StyleProjector(tokens_in=9, tokens_out=5, vision_width=24, width=96, depths=depths).bfloat16()
    path = tmp_path / "projector.safetensors"
    export.export_projector(made, path)
    loaded = build.build_projector(path, torch.bfloat16)
    assert tuple(loaded.config.depths) == depths
    same(loaded, made)


# --- the diffusers layout ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def diffusers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden transformer and VAE as diffusers itself writes them, the transformer in shards."""
    folder = tmp_path_factory.mktemp("FLUX.1-dev")
    ours = transformer(FLUX)
    base = FluxTransformer2DModel.from_config(dict(ours.config))
    base.load_state_dict(ours.state_dict())
    base.bfloat16().save_pretrained(folder / "transformer", max_shard_size="200KB")
    vae(AE).save_pretrained(folder / "vae")
    return folder


@pytest.fixture
def sharded(diffusers_folder: Path, tmp_path: Path) -> Path:
    """A copy of the sharded transformer that a test may spoil."""
    return Path(shutil.copytree(diffusers_folder / "transformer", tmp_path / "transformer"))


@pytest.mark.parametrize("lora", [None, LORA], ids=["plain", "lora"])
def test_the_diffusers_layout_gives_the_same_transformer(diffusers_folder, lora):
    folder = diffusers_folder / "transformer"
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert json.loads((folder / "config.json").read_text())["_class_name"] == "FluxTransformer2DModel"
    same(transformer(folder, lora), transformer(FLUX, lora))


def test_the_diffusers_layout_gives_the_same_vae(diffusers_folder):
    loaded, original = vae(diffusers_folder / "vae"), vae(AE)
    assert loaded.config.scaling_factor == original.config.scaling_factor
    same(loaded, original)


def test_links_of_a_hugging_face_cache_are_followed(diffusers_folder, tmp_path):
    if os.name == "nt":
        pytest.skip("links need a privilege there")
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0" / "transformer"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted((diffusers_folder / "transformer").iterdir())):
        shutil.copy(file, blobs / f"{number:064x}")
        (snapshot / file.name).symlink_to(blobs / f"{number:064x}")
    same(transformer(snapshot), transformer(FLUX))


def index_of(folder: Path) -> tuple[Path, dict[str, Any]]:
    path = next(folder.glob("*.index.json"))
    return path, json.loads(path.read_text())


@pytest.mark.parametrize("where", ["../elsewhere/part.safetensors", "{absolute}", "..", "sub/part.safetensors"])
def test_an_index_cannot_lead_out_of_its_folder(sharded, where, tmp_path):
    path, index = index_of(sharded)
    shard = sorted(set(index["weight_map"].values()))[0]
    for place in (tmp_path / "elsewhere", sharded / "sub"):
        place.mkdir()
        shutil.copy(sharded / shard, place / "part.safetensors")
    target = where.format(absolute=tmp_path / "elsewhere" / "part.safetensors")
    index["weight_map"] = {name: target if file == shard else file for name, file in index["weight_map"].items()}
    path.write_text(json.dumps(index))
    with pytest.raises(WeightsError):  # the tensors are there, in a file that must not be opened
        transformer(sharded)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"weight_map": []}', '{"weight_map": {"a": ["x"]}}', '{"weight_map": {"a": 1, "b": "x"}}', "{}"],
)
def test_a_damaged_index_is_refused(sharded, text):
    index_of(sharded)[0].write_text(text)
    with pytest.raises(WeightsError) as failure:
        transformer(sharded)
    assert str(sharded) in failure.value.message


def test_a_missing_shard_is_named(sharded):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(WeightsError) as failure:
        transformer(sharded)
    assert str(shard) in failure.value.message


@pytest.mark.parametrize(
    "change",
    [
        {"num_layers": "two"},
        {"num_layers": None},
        {"attention_head_dim": -32},
        {"axes_dims_rope": 5},
        {"axes_dims_rope": [1, 1, 1]},  # the tensors fit, and yet the model cannot be run
        {"num_layers": 3},
        {"joint_attention_dim": 64},
        {"guidance_embeds": False},
    ],
    ids=str,
)
def test_a_config_that_does_not_describe_the_tensors_is_refused(sharded, change):
    config = json.loads((sharded / "config.json").read_text())
    (sharded / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(WeightsError) as failure:
        transformer(sharded)
    assert str(sharded) in failure.value.message


@pytest.mark.parametrize(
    "change",
    [{"block_out_channels": 5}, {"down_block_types": [1, 2, 3, 4]}, {"act_fn": "nonsense"}, {"latent_channels": 4},
     {"norm_num_groups": 5}, {"block_out_channels": []}],
    ids=str,
)  # fmt: skip
def test_a_vae_config_that_makes_no_vae_is_refused(diffusers_folder, change, tmp_path):
    folder = Path(shutil.copytree(diffusers_folder / "vae", tmp_path / "vae"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(WeightsError) as failure:
        vae(folder)
    assert str(folder) in failure.value.message


@pytest.mark.parametrize("text", [None, "", "[]", "{", "[" * 100_000], ids=["none", "empty", "list", "cut", "nested"])
def test_a_folder_needs_its_config(sharded, text):
    (sharded / "config.json").unlink()
    if text is not None:
        (sharded / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"config\.json"):
        transformer(sharded)


def test_a_folder_of_another_role_is_refused(diffusers_folder, tmp_path):
    with pytest.raises(WeightsError, match="it seems to be a VAE in the diffusers layout"):
        transformer(diffusers_folder / "vae")
    with pytest.raises(WeightsError, match="it seems to be a FLUX transformer in the diffusers layout"):
        vae(diffusers_folder / "transformer")
    with pytest.raises(WeightsError, match="holds no safetensors file"):
        transformer(tmp_path)


# --- text encoders and vision tower -----------------------------------------------------------------------------------


def t5(folder: Path) -> Any:
    return encoders.build_t5(folder, torch.float32)


def clip(folder: Path) -> Any:
    return encoders.build_clip(folder, torch.float32)


def siglip(folder: Path) -> Any:
    return encoders.build_siglip(folder, torch.float32)


ENCODERS = {"t5": t5, "clip": clip, "siglip": siglip}
PROMPTS = ["a red mug on the beach.", "", "  Two   blanks, ÄÖÜ ß é 東京 🎨", "x" * 3000, "<pad> </s> <extra_id_0>"]


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(GOLDEN / name, tmp_path / name))


def test_encoders_hold_exactly_the_weights_of_their_files():
    for folder in (GOLDEN, EMBEDDED):
        for name, maker in ENCODERS.items():
            state = maker(folder / name)[0].state_dict()
            stored = load_file(folder / name / "model.safetensors")
            endings = {key.removeprefix("vision_model.").removeprefix("text_model."): key for key in state}
            for key, tensor in stored.items():
                short = key.removeprefix("vision_model.").removeprefix("text_model.")
                assert torch.equal(state[endings[short]], tensor.float()), key


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize(
    "text", [None, "", "[]", "{", '"t5"', "{}"], ids=["none", "empty", "list", "cut", "text", "{}"]
)
def test_an_encoder_needs_its_config(name, text, copied):
    folder = copied(name)
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    with pytest.raises(WeightsError) as failure:
        ENCODERS[name](folder)
    assert str(folder) in failure.value.message
    assert failure.value.hint


@pytest.mark.parametrize(
    ("maker", "given"), [(clip, "t5"), (t5, "clip"), (siglip, "clip"), (clip, "siglip"), (t5, "siglip"), (siglip, "t5")]
)
def test_a_folder_of_another_encoder_is_refused(maker, given):
    with pytest.raises(WeightsError) as failure:
        maker(GOLDEN / given)
    kind = json.loads((GOLDEN / given / "config.json").read_text())["model_type"]
    assert failure.value.message.startswith(f"{GOLDEN / given} holds a model of type {kind!r}")
    assert "variable" in failure.value.hint


@pytest.mark.parametrize("name", ENCODERS)
def test_a_file_is_no_encoder_folder(name):
    path = GOLDEN / name / "model.safetensors"
    with pytest.raises(WeightsError, match="is a file, the folder") as failure:
        ENCODERS[name](path)
    assert str(path) in failure.value.message


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("kept", [0, 5, 1000, 0.5])
def test_a_cut_encoder_is_refused(name, kept, copied):
    folder = copied(name)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: kept if isinstance(kept, int) else int(len(content) * kept)])
    with pytest.raises(WeightsError) as failure:
        ENCODERS[name](folder)
    assert str(folder) in failure.value.message
    assert "download it again" in failure.value.hint


@pytest.mark.parametrize("name", ENCODERS)
def test_missing_unknown_and_misshapen_tensors_of_an_encoder_are_refused(name, copied):
    folder = copied(name)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    first = next(key for key in sorted(tensors) if key.endswith("weight") and tensors[key].dim() == 2)
    for change in (
        {key: tensor for key, tensor in tensors.items() if key != first},
        tensors | {"stranger.weight": torch.zeros(2)},
        tensors | {first: torch.zeros(3, 5)},
    ):
        write(file, change, {"format": "pt"})
        with pytest.raises(WeightsError) as failure:
            ENCODERS[name](folder)
        assert str(folder) in failure.value.message


def test_the_other_half_of_a_published_model_is_left_out(copied):
    folder = copied("t5")
    file = folder / "model.safetensors"
    write(file, load_file(file) | {"decoder.final_layer_norm.weight": torch.ones(48)}, {"format": "pt"})
    same(t5(folder)[0], t5(GOLDEN / "t5")[0])


def test_an_encoder_in_shards_is_the_same(copied):
    folder = copied("t5")
    model = T5EncoderModel.from_pretrained(folder, local_files_only=True)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    same(t5(folder)[0], t5(GOLDEN / "t5")[0])


class Payload:
    """Unpickled, it makes a folder: what a hostile pickle could do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_pickle_is_not_run(name, copied, tmp_path):
    folder = copied(name)
    (folder / "model.safetensors").unlink()
    torch.save({"shared.weight": Payload(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError):
        ENCODERS[name](folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "file"), [("t5", "spiece.model"), ("clip", "vocab.json"), ("clip", "merges.txt")], ids=str
)
def test_a_missing_tokenizer_is_refused(name, file, copied):
    folder = copied(name)
    (folder / file).unlink()
    with pytest.raises(WeightsError, match="tokenizer") as failure:
        ENCODERS[name](folder)
    assert str(folder) in failure.value.message


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\0garbage", b"{"], ids=["empty", "garbage", "cut"])
@pytest.mark.parametrize(("name", "file"), [("t5", "spiece.model"), ("t5", "tokenizer.json"), ("clip", "vocab.json")])
def test_a_damaged_tokenizer_is_refused(name, file, content, copied):
    folder = copied(name)
    (folder / file).write_bytes(content)
    with pytest.raises(WeightsError, match="tokenizer") as failure:
        ENCODERS[name](folder)
    assert str(folder) in failure.value.message


@pytest.mark.parametrize(
    ("name", "encoder", "tokenizer"), [("t5", "text_encoder_2", "tokenizer_2"), ("clip", "text_encoder", "tokenizer")]
)
def test_the_tokenizer_may_lie_beside_as_in_the_diffusers_layout(name, encoder, tokenizer, copied, tmp_path):
    folder = copied(name).rename(tmp_path / encoder)
    (tmp_path / tokenizer).mkdir()
    for file in folder.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            file.rename(tmp_path / tokenizer / file.name)
    model, beside = ENCODERS[name](folder)
    original, inside = ENCODERS[name](GOLDEN / name)
    assert [beside(prompt).input_ids for prompt in PROMPTS] == [inside(prompt).input_ids for prompt in PROMPTS]
    same(model, original)


def test_t5s_tokenizer_is_the_same_from_spiece_model_and_from_tokenizer_json(copied, tmp_path):
    folder = copied("t5")
    from_spiece = t5(folder)[1]
    from_spiece.save_pretrained(tmp_path / "json")
    (folder / "spiece.model").unlink()
    shutil.copy(tmp_path / "json" / "tokenizer.json", folder)
    from_json = t5(folder)[1]
    padded = {"padding": "max_length", "max_length": 512, "truncation": True}
    for prompt in PROMPTS:
        assert from_json(prompt, **padded).input_ids == from_spiece(prompt, **padded).input_ids
    ids = from_spiece(PROMPTS[0], **padded).input_ids
    assert len(ids) == 512
    assert ids[-1] == 0  # <pad>
    assert 1 in ids  # </s>


def test_clips_tokenizer_is_the_one_of_transformers():
    theirs = AutoTokenizer.from_pretrained(GOLDEN / "clip", local_files_only=True)
    ours = clip(GOLDEN / "clip")[1]
    assert [ours(prompt).input_ids for prompt in PROMPTS] == [theirs(prompt).input_ids for prompt in PROMPTS]


@pytest.mark.parametrize("text", [None, "", "[]", "{"], ids=["none", "empty", "list", "cut"])
def test_siglip_needs_its_preprocessing(text, copied):
    folder = copied("siglip")
    (folder / "preprocessor_config.json").unlink()
    if text is not None:
        (folder / "preprocessor_config.json").write_text(text)
    with pytest.raises(WeightsError, match="preprocessing") as failure:
        siglip(folder)
    assert str(folder) in failure.value.message
