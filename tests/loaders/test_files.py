"""Identifying files: golden, embedded, foreign, damaged and hostile ones."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import GOLDEN
from tests.loaders.weight_files import (
    AE,
    COMFY,
    EMBEDDED,
    FLUX,
    LORA,
    PROJECTOR,
    entry,
    named,
    projector,
    raw,
    transformer,
    vae,
    write,
)
from uso_core.catalog.files import inspect
from uso_core.errors import WeightsError


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
def test_the_role_comes_from_the_tensors_and_not_from_the_name(folder, name, role, tmp_path):
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
    assert failure.value.message == f"{given} is not {wanted}: it appears to be {spoken}."
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
    "GGUF of no known version": (b"GGUF\1\0\0\0" + bytes(64), "header is not readable", "download"),
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
def test_a_file_that_is_not_safetensors_is_refused_for_what_it_is(kind, tmp_path):
    content, seems, remedy = NOT_WEIGHTS[kind]
    path = tmp_path / "flux1-dev.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError) as failure:
        inspect(path)
    assert str(path) in failure.value.message
    assert seems in failure.value.message
    assert remedy in failure.value.hint


@pytest.mark.parametrize(("make", "words"), [(Path.mkdir, "folder"), (lambda path: None, "does not exist")])
def test_a_folder_or_a_missing_file_is_refused(make, words, tmp_path):
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


# The first bytes of a safetensors file are the length of its header, and may look like the start of another format:
# 0x280, 0x380 and 0x480 like a pickle, 0x5b and 0x7b like JSON, and the same after a 0x20 that reads as a blank.
@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x10280, 0x5B, 0x7B, 0x5B20, 0x7B20])
def test_a_header_of_an_unlucky_length_is_read(length, tmp_path):
    text = json.dumps({"feature_embedder.a": entry(0, 4)}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw(text.ljust(length), bytes(4)))
    assert load_file(path)["feature_embedder.a"].item() == 0  # the format's own library reads it
    assert inspect(path).role == "projector"


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (("distilled_guidance_layer.in_proj.weight", "double_blocks.0.img_attn.qkv.weight"), "flux_relative"),
        (("redux_up.weight", "redux_down.weight"), "flux_relative"),
        (("transformer_blocks.0.qkv_proj.qweight", "transformer_blocks.0.qkv_proj.wscales"), "quantization_foreign"),
        (("joint_blocks.0.x_block.attn.qkv.weight",), "wanted_kind"),
    ],
)
def test_what_to_use_instead_of_a_relative_is_said(names, hint, tmp_path):
    with pytest.raises(WeightsError) as failure:
        transformer(named(tmp_path / "x.safetensors", *names))
    assert (failure.value.key, failure.value.hint_key) == ("wrong_kind", hint)
