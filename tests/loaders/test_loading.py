"""Turning files into modules: strict loading, the LoRA, and every form of the transformer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors.torch import load_file

from tests.catalog.comfy_folder import scaled_fp8
from tests.loaders.weight_files import (
    AE,
    COMFY,
    FLUX,
    LORA,
    PROJECTOR,
    Tensors,
    projector,
    same,
    transformer,
    vae,
    write,
)
from training import export
from uso_core.catalog.files import inspect
from uso_core.errors import WeightsError
from uso_core.loaders import build, keys
from uso_core.model.style_projector import StyleProjector
from uso_core.model.transformer import USOTransformer2DModel


@pytest.fixture
def flux() -> Tensors:
    return load_file(FLUX)


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
def test_a_missing_tensor_is_named_as_in_the_file(role, name, tmp_path):
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
        ("transformer", "img_in.lora.scale"),
        ("vae", "loss.discriminator.main.0.weight"),
        ("projector", "feature_embedder.top_projection.weight"),
        ("projector", "optimizer.step"),
        ("lora", "double_blocks.0.processor.qkv_lora3.down.weight"),
        ("lora", "double_blocks.0.processor.qkv_lora1.scale"),
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


def test_an_absurd_block_number_is_refused_before_anything_is_built(flux, tmp_path):
    stem = "double_blocks.1."
    renamed = {name.replace(stem, "double_blocks.100000000."): tensor for name, tensor in flux.items()}
    path = write(tmp_path / "flux.safetensors", renamed)
    with pytest.raises(WeightsError, match="double_blocks"):
        build.transformer_config(inspect(path))


def test_loading_reports_its_progress_and_may_be_stopped():
    fractions = list(build.load_transformer(FLUX, LORA, torch.float32))
    assert fractions == sorted(fractions)
    assert fractions[0] == 0
    assert fractions[-1] == 1
    assert len(fractions) > 10
    loading = build.load_transformer(FLUX, LORA, torch.float32)
    assert next(loading) == 0
    loading.close()
    with pytest.raises(StopIteration):
        next(loading)


@pytest.mark.parametrize(
    "noted", ["no JSON", "[]", '"text"', "9" * 5000, "[" * 100_000], ids=["text", "list", "string", "huge", "nested"]
)
def test_unreadable_notes_are_refused(noted, tmp_path):
    path = write(tmp_path / "projector.safetensors", load_file(PROJECTOR), {"uso": noted})
    with pytest.raises(WeightsError, match="metadata"):
        projector(path)


@pytest.mark.parametrize("depths", [[-2, -11], ["a", "b", "c"], 3, None, [1.5, 2.5, 3.5]])
def test_meaningless_notes_are_refused(depths, tmp_path):
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
    assert build.reference_columns(FLUX) is None
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


@pytest.mark.parametrize("whole", [False, True])
def test_alphas_scale_each_pair(whole, tmp_path):
    """As converted files have them: alpha / rank for each pair, so here a half for one and nothing else."""
    lora = load_file(LORA)
    stem = "double_blocks.0.processor.proj_lora1"
    rank = len(lora[f"{stem}.down.weight"])
    kinds = torch.int64 if whole else torch.float32
    alphas = {
        name.replace(".down.weight", ".alpha"): torch.tensor(rank, dtype=kinds) for name in lora if "down" in name
    }
    same(transformer(FLUX, write(tmp_path / "all.safetensors", lora | alphas)), transformer(FLUX, LORA))
    halved = lora | {f"{stem}.up.weight": lora[f"{stem}.up.weight"] / 2}
    alphas[f"{stem}.alpha"] = torch.tensor(rank // 2, dtype=kinds)
    same(transformer(FLUX, write(tmp_path / "one.safetensors", lora | alphas)),
         transformer(FLUX, write(tmp_path / "halved.safetensors", halved)))  # fmt: skip
    alphas[f"{stem}.alpha"] = torch.ones(2)
    with pytest.raises(WeightsError) as failure:
        transformer(FLUX, write(tmp_path / "two.safetensors", lora | alphas))
    assert failure.value.key == "misfit"


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


def test_the_transformer_of_an_all_in_one_checkpoint_is_used(flux, tmp_path):
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
def test_a_plain_fp8_cast_gives_the_cast_weights(flux, dtype, lora, tmp_path):
    cast = {name: tensor.to(dtype) if is_matrix(name, tensor) else tensor for name, tensor in flux.items()}
    back = {name: tensor.float() for name, tensor in cast.items()}
    assert not torch.equal(back["img_in.weight"], back["img_in.weight"] * 0)
    ours = transformer(write(tmp_path / "fp8.safetensors", cast), lora)
    same(ours, transformer(write(tmp_path / "float32.safetensors", back), lora))


@pytest.mark.parametrize("suffix", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("prefix", ["", COMFY], ids=["bare", "comfy"])
@pytest.mark.parametrize("per_row", [False, True], ids=["scalar", "per row"])
def test_scaled_fp8_is_restored_with_its_scale(flux, suffix, prefix, per_row, tmp_path):
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


@pytest.mark.parametrize("apart", ["all scales", "every second one"])
def test_scales_in_another_shard_count(flux, apart, tmp_path):
    quantized = scaled_fp8(flux, ".weight_scale")
    folder = tmp_path / "shards"
    folder.mkdir()
    scales = [name for name in quantized if name.endswith(".weight_scale")]
    second = set(scales[:: 1 if apart == "all scales" else 2])
    shards = {"a.safetensors": {name: tensor for name, tensor in quantized.items() if name not in second},
              "b.safetensors": {name: quantized[name] for name in second}}  # fmt: skip
    for name, tensors in shards.items():
        write(folder / name, tensors)
    index = {"weight_map": {name: file for file, tensors in shards.items() for name in tensors}}
    (folder / "x.safetensors.index.json").write_text(json.dumps(index))
    same(transformer(folder), transformer(write(tmp_path / "whole.safetensors", quantized)))


def test_a_matrix_whose_scale_alone_is_missing_is_named(flux, tmp_path):
    quantized = scaled_fp8(flux, ".weight_scale")
    missing = next(name for name in quantized if name.startswith("single_blocks.1.") and name.endswith("weight_scale"))
    with pytest.raises(WeightsError) as caught:
        transformer(write(tmp_path / "x.safetensors", {name: t for name, t in quantized.items() if name != missing}))
    assert caught.value.key == "scale_missing"
    assert caught.value.values["name"] == missing.replace("weight_scale", "weight")


def test_files_that_hold_the_same_are_not_mixed(flux, tmp_path):
    """A folder without an index, with what an earlier download left."""
    write(tmp_path / "flux1-dev.safetensors", flux)
    write(tmp_path / "zz.safetensors", {name: torch.zeros_like(tensor) for name, tensor in list(flux.items())[:20]})
    with pytest.raises(WeightsError) as caught:
        transformer(tmp_path)
    assert caught.value.key == "tensor_twice"
    (tmp_path / "flux1-dev.safetensors").rename(tmp_path / "diffusion_pytorch_model.safetensors")
    same(transformer(tmp_path), transformer(tmp_path / "diffusion_pytorch_model.safetensors"))


def test_fp8_with_marks_is_the_same_as_without(flux, tmp_path):
    made = {}
    for marked in (False, True):
        tensors = scaled_fp8(flux, ".weight_scale", mark=True)
        if not marked:
            tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(".comfy_quant")}
        made[marked] = transformer(write(tmp_path / f"{marked}.safetensors", tensors))
    same(made[True], made[False])


@pytest.mark.parametrize("said", ['{"format": "int4_new"}', "{}", "[", "\x00"])
def test_a_mark_of_another_format_is_refused_by_name(flux, said, tmp_path):
    mark = {"double_blocks.0.img_attn.qkv.comfy_quant": torch.tensor(list(said.encode()), dtype=torch.uint8)}
    with pytest.raises(WeightsError) as failure:
        transformer(write(tmp_path / "x.safetensors", flux | mark))
    assert failure.value.key == "quantization_foreign"
    assert failure.value.values["quantization"] == ("int4_new" if "int4" in said else "?")


def test_a_format_in_the_metadata_is_refused_by_name(flux, tmp_path):
    layers = {"format_version": "1.0", "layers": {"double_blocks.0.img_attn.qkv": {"format": "nvfp4"}}}
    path = write(tmp_path / "x.safetensors", flux, {"_quantization_metadata": json.dumps(layers)})
    with pytest.raises(WeightsError) as failure:
        transformer(path)
    assert failure.value.values["quantization"] == "nvfp4"


@pytest.mark.parametrize("prefix", ["vae.", "first_stage_model."])
def test_a_vae_under_a_prefix_is_the_same(prefix, tmp_path):
    path = write(tmp_path / "x.safetensors", {prefix + name: tensor for name, tensor in load_file(AE).items()})
    same(vae(path), vae(AE))


def test_a_vae_inside_an_all_in_one_checkpoint_is_the_same(flux, tmp_path):
    tensors = {COMFY + name: tensor for name, tensor in flux.items()}
    tensors |= {f"vae.{name}": tensor for name, tensor in load_file(AE).items()}
    same(vae(write(tmp_path / "all.safetensors", tensors)), vae(AE))
    noted = write(tmp_path / "noted.safetensors", tensors, {"uso": '{"text_tokens": 32}'})
    with pytest.raises(WeightsError) as failure:  # a reduced model's, whose VAE may have other constants
        vae(noted)
    assert failure.value.key == "vae_constants"


def test_the_diffusers_layout_in_one_file_is_the_same(flux, tmp_path):
    for maker, given in ((transformer, FLUX), (vae, AE)):
        model = maker(given)
        path = write(tmp_path / f"{given.stem}.safetensors", model.state_dict())
        same(maker(path), model)
        assert maker(path).config == model.config


@pytest.mark.parametrize("prefix", ["", COMFY])
def test_the_original_layout_in_shards_is_the_same(flux, prefix, tmp_path):
    names = sorted(flux)
    halves = {"a.safetensors": names[:40], "b.safetensors": names[40:]}
    for file, held in halves.items():
        write(tmp_path / file, {prefix + name: flux[name] for name in held})
    index = {"weight_map": {prefix + name: file for file, held in halves.items() for name in held}}
    (tmp_path / "flux.safetensors.index.json").write_text(json.dumps(index))
    same(transformer(tmp_path, LORA), transformer(FLUX, LORA))


def test_a_quantization_that_cannot_be_read_is_named(flux, tmp_path):
    name = "single_blocks.0.linear1.weight"
    path = write(tmp_path / "int8.safetensors", flux | {name: flux[name].to(torch.int8)})
    with pytest.raises(WeightsError) as failure:
        transformer(path)
    assert (failure.value.key, failure.value.values["quantization"]) == ("quantization_foreign", "int8")


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
    export.export_transformer(made, path, {"text_tokens": 77, "reference_columns": 5})
    loaded = build.build_transformer(path, None, torch.bfloat16)
    names = ("num_layers", "num_single_layers", "attention_head_dim", "num_attention_heads", "joint_attention_dim",
             "pooled_projection_dim", "guidance_embeds", "in_channels")  # fmt: skip
    assert {name: loaded.config[name] for name in names} == {name: made.config[name] for name in names}
    assert list(loaded.config.axes_dims_rope) == list(made.config.axes_dims_rope)
    assert build.text_tokens(path) == 77
    assert build.reference_columns(path) == 5
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


def test_a_width_that_heads_do_not_divide_is_refused(flux, tmp_path):
    scale = {name: torch.ones(48) for name in flux if name.endswith("_norm.scale")}
    with pytest.raises(WeightsError, match="width 64 and head size 48"):
        transformer(write(tmp_path / "flux.safetensors", flux | scale))


def test_an_exported_lora_fits_its_transformer(tmp_path):
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
