"""LoRAs beside USO's: in every dialect the same weights as diffusers' own loader and converters give."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file, save_file

from tests.conftest import GOLDEN
from uso_core.errors import WeightsError
from uso_core.loaders.build import build_transformer, empty_transformer, load_transformer
from uso_core.loaders.convert import finished, shapes_of
from uso_core.loaders.other_lora import OtherLoRA
from uso_core.quantization.fp8 import quantize

RANK = 3
FLUX, USO = GOLDEN / "flux.safetensors", GOLDEN / "dit_lora.safetensors"
# Kinds of matrices in the blocks of FLUX.1, by the names of BFL's files: rows out, columns in, as multiples of D.
DOUBLE = {"img_attn.qkv": (3, 1), "txt_attn.proj": (1, 1), "img_mlp.0": (4, 1), "txt_mlp.2": (1, 4),
          "img_mod.lin": (6, 1)}  # fmt: skip
SINGLE = {"linear1": (7, 1), "linear2": (1, 5), "modulation.lin": (3, 1)}
ORIGINAL = {f"double_blocks.0.{name}": sides for name, sides in DOUBLE.items()} | {
    f"single_blocks.0.{name}": sides for name, sides in SINGLE.items()
}
WIDTH = 3072  # some of diffusers' converters know only this one


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / math.sqrt(shape[-1])


def pair(name: str, out: int, inputs: int, down: str, up: str) -> dict[str, torch.Tensor]:
    return {f"{name}.{down}": random(RANK, inputs, seed=len(name)), f"{name}.{up}": random(out, RANK, seed=out)}


def saved(tensors: dict[str, torch.Tensor], folder: Path, notes: dict[str, str] | None = None) -> Path:
    path = folder / "lora.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, notes)
    return path


@pytest.fixture(scope="module")
def small() -> dict[str, tuple[int, ...]]:
    """The shapes of the goldens' transformer."""
    return shapes_of(empty_transformer(FLUX))


@pytest.fixture(scope="module")
def wide() -> dict[str, tuple[int, ...]]:
    """The shapes of FLUX.1's transformer with one block of each kind."""
    with torch.device("meta"):
        model = FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def deltas_of_diffusers(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What diffusers' converter makes of a LoRA: the sum for each matrix, alphas included."""
    state, alphas = FluxPipeline.lora_state_dict(dict(tensors), return_alphas=True)
    found = {}
    for name, up in state.items():
        if name.endswith(".lora_B.weight"):
            stem = name.removesuffix(".lora_B.weight")
            down = state[f"{stem}.lora_A.weight"].float()
            alpha = (alphas or {}).get(f"{stem}.alpha")
            scale = 1.0 if alpha is None else float(alpha) / len(down)
            found[stem.removeprefix("transformer.") + ".weight"] = scale * (up.float() @ down)
    return found


def check_against(expected: dict[str, torch.Tensor], lora: OtherLoRA, shapes: dict[str, tuple[int, ...]]) -> None:
    assert lora.targets == expected.keys()
    for name, delta in expected.items():
        torch.testing.assert_close(lora.fuse(name, torch.zeros(shapes[name])), delta, rtol=1e-5, atol=1e-6)


def kohya(width: int = WIDTH, names: dict[str, tuple[int, int]] = ORIGINAL) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for name, (out, inputs) in names.items():
        flat = "lora_unet_" + name.replace(".", "_")
        tensors |= pair(flat, out * width, inputs * width, "lora_down.weight", "lora_up.weight")
        tensors[f"{flat}.alpha"] = torch.tensor(2.0)
    return tensors


def test_kohya(wide: Any, tmp_path: Path) -> None:
    tensors = kohya()
    check_against(deltas_of_diffusers(tensors), OtherLoRA(saved(tensors, tmp_path), 1.0, wide), wide)


def test_xlabs(wide: Any, tmp_path: Path) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for name, out, inputs in (
        ("double_blocks.0.processor.qkv_lora1", 3, 1), ("double_blocks.0.processor.qkv_lora2", 3, 1),
        ("double_blocks.0.processor.proj_lora1", 1, 1), ("double_blocks.0.processor.proj_lora2", 1, 1),
        ("single_blocks.0.processor.qkv_lora", 3, 1), ("single_blocks.0.processor.proj_lora", 1, 5),
    ):  # fmt: skip
        tensors |= pair(name, out * WIDTH, inputs * WIDTH, "down.weight", "up.weight")
    check_against(deltas_of_diffusers(tensors), OtherLoRA(saved(tensors, tmp_path), 1.0, wide), wide)


def test_bfls_names_with_biases(small: Any, tmp_path: Path) -> None:
    """Stacked rows go to their matrices; the output's shift and scale trade places, as in the base's conversion."""
    width = small["x_embedder.weight"][0]
    tensors: dict[str, torch.Tensor] = {}
    sides = {"double_blocks.0.img_attn.qkv": (3 * width, width), "single_blocks.0.linear1": (7 * width, width),
             "final_layer.adaLN_modulation.1": (2 * width, width)}  # fmt: skip
    for name, (out, inputs) in sides.items():
        tensors |= pair(name, out, inputs, "lora_A.weight", "lora_B.weight")
        tensors[f"{name}.lora_B.bias"] = random(out, seed=1)
    lora = OtherLoRA(saved(tensors, tmp_path), 0.5, small)
    block, single = "transformer_blocks.0.attn", "single_transformer_blocks.0"
    stacked = {
        "double_blocks.0.img_attn.qkv": [f"{block}.to_{x}" for x in "qkv"],
        "single_blocks.0.linear1": [*(f"{single}.attn.to_{x}" for x in "qkv"), f"{single}.proj_mlp"],
        "final_layer.adaLN_modulation.1": ["norm_out.linear"],
    }
    for name, targets in stacked.items():
        rows = [small[f"{target}.weight"][0] for target in targets]
        delta = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
        for part, whole in (("weight", delta), ("bias", tensors[f"{name}.lora_B.bias"])):
            if name.startswith("final"):
                whole = torch.cat([whole[width:], whole[:width]])
            for target, expected in zip(targets, whole.split(rows), strict=True):
                found = lora.fuse(f"{target}.{part}", torch.zeros(small[f"{target}.{part}"]))
                torch.testing.assert_close(found, 0.5 * expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prefix", ["diffusion_model.", "model.diffusion_model.", "base_model.model.", ""])
@pytest.mark.parametrize(("down", "up"), [("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight"),
                                          ("lora_A.default.weight", "lora_B.default.weight")])  # fmt: skip
def test_prefixes_and_suffixes_of_programs(prefix: str, down: str, up: str, small: Any, tmp_path: Path) -> None:
    names, width = (
        {"double_blocks.0.img_attn.qkv": (3, 1), "single_blocks.0.linear2": (1, 5)},
        small["proj_out.weight"][1],
    )
    plain, spoken = {}, {}
    for name, (out, inputs) in names.items():
        flat = "lora_unet_" + name.replace(".", "_")
        values = pair("x" * len(name), out * width, inputs * width, "d", "u")
        for given, part in zip(values.values(), ((down, "lora_down.weight"), (up, "lora_up.weight")), strict=True):
            spoken[f"{prefix}{name}.{part[0]}"], plain[f"{flat}.{part[1]}"] = given, given
        plain[f"{flat}.alpha"] = torch.tensor(float(RANK))
    check_against(deltas_of_diffusers(plain), OtherLoRA(saved(spoken, tmp_path), 1.0, small), small)


@pytest.mark.parametrize("alpha", [None, 6.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.filterwarnings("ignore:While injecting the PEFT adapters")
def test_diffusers_own_loader_gives_the_same_weights(alpha: Any, dtype: Any, small: Any, tmp_path: Path) -> None:
    """On the goldens' base with USO's LoRA in it, PEFT's names, every matrix of a block, embedders and output."""
    normalised = ("norm.linear.weight", "norm1.linear.weight", "norm1_context.linear.weight", "norm_out.linear.weight")
    matrices = [name for name, shape in small.items()
                if len(shape) == 2 and ".1." not in name and not name.endswith(normalised)]  # fmt: skip
    tensors: dict[str, torch.Tensor] = {}
    for name in matrices:
        stem = f"transformer.{name.removesuffix('.weight')}"
        tensors |= pair(stem, *small[name], "lora_A.weight", "lora_B.weight")
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    metadata = {"r": RANK, "lora_alpha": alpha, "target_modules": sorted({name.split(".")[-2] for name in matrices}),
                "use_rslora": False}  # fmt: skip
    notes = {} if alpha is None else {"lora_adapter_metadata": json.dumps(
        {f"transformer.{name}": value for name, value in metadata.items()})}  # fmt: skip
    path = saved(tensors, tmp_path, notes)
    fused = finished(load_transformer(FLUX, USO, torch.float32, others=[(path, 0.7)]))

    base = build_transformer(FLUX, USO, torch.float32)
    model = FluxTransformer2DModel.from_config(dict(base.config))
    model.load_state_dict(base.state_dict())
    config = {f"transformer.{name}": value for name, value in metadata.items()} if notes else None
    given = {name: tensor.float() for name, tensor in tensors.items()}
    model.load_lora_adapter(given, metadata=config, adapter_name="one")
    model.set_adapters("one", 0.7)
    model.fuse_lora()
    model.unload_lora()
    theirs = model.state_dict()
    changed = 0
    for name, tensor in fused.state_dict().items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=1e-5)
        changed += not torch.equal(tensor, base.state_dict()[name])
    assert changed == len(matrices)


def test_several_are_added_in_order_before_quantizing(small: Any, tmp_path: Path) -> None:
    name = "transformer_blocks.0.attn.to_q"
    files = []
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        values = pair(name, *small[f"{name}.weight"], "lora_A.weight", "lora_B.weight")
        files.append(saved({key: number * value for key, value in values.items()}, tmp_path / str(number)))
    base = build_transformer(FLUX, USO, torch.float32).state_dict()[f"{name}.weight"]
    deltas = [OtherLoRA(path, 1.0, small).fuse(f"{name}.weight", torch.zeros_like(base)) for path in files]
    together = finished(load_transformer(FLUX, USO, torch.float32, True, others=[(files[0], 0.5), (files[1], -2.0)]))
    data, scale = quantize(base + 0.5 * deltas[0] - 2.0 * deltas[1])
    layer = together.transformer_blocks[0].attn.to_q
    assert torch.equal(layer.weight.view(torch.uint8), data.view(torch.uint8))
    assert torch.equal(layer.scale, scale)


def test_full_differences_and_text_encoders(small: Any, tmp_path: Path) -> None:
    name = "single_transformer_blocks.0.attn.to_k"
    difference, bias = random(*small[f"{name}.weight"]), random(small[f"{name}.bias"][0])
    tensors = {f"diffusion_model.{name}.diff": difference, f"diffusion_model.{name}.diff_b": bias}
    tensors |= pair("lora_te1_text_model_encoder_layers_0_mlp_fc1", 8, 8, "lora_down.weight", "lora_up.weight")
    lora = OtherLoRA(saved(tensors, tmp_path), 2.0, small)
    assert lora.left_out
    assert lora.targets == {f"{name}.weight", f"{name}.bias"}
    assert torch.equal(lora.fuse(f"{name}.bias", torch.zeros(len(bias))), 2 * bias)
    assert torch.equal(lora.fuse(f"{name}.weight", torch.zeros(difference.shape)), 2 * difference)


BAD = {
    "of another model": ({"lora_unet_input_blocks_1_1_proj_in.lora_down.weight": random(3, 8),
                          "lora_unet_input_blocks_1_1_proj_in.lora_up.weight": random(8, 3)}, "lora_names"),
    "half a pair": ({"transformer.proj_out.lora_A.weight": random(3, 64)}, "lora_shape"),
    "of another width": (pair("transformer.x_embedder", 64, 100, "lora_A.weight", "lora_B.weight"), "lora_shape"),
    "only text": (pair("lora_te1_text_model_encoder_layers_0_mlp_fc1", 8, 8, "lora_down.weight", "lora_up.weight"),
                  "lora_only_text"),
    "of no rank": ({"transformer.proj_out.lora_A.weight": torch.zeros(0, 64),
                    "transformer.proj_out.lora_B.weight": torch.zeros(64, 0)}, "lora_shape"),
    "with two alphas": (pair("transformer.x_embedder", 64, 64, "lora_A.weight", "lora_B.weight")
                        | {"transformer.x_embedder.alpha": torch.ones(2)}, "lora_shape"),
    "OFT": ({"transformer.x_embedder.oft_blocks": random(3, 3)}, "wrong_kind"),
    "GLoRA": ({f"lora_unet_img_in.{part}.weight": random(3, 3) for part in ("a1", "a2", "b1", "b2")}, "wrong_kind"),
    "LoKr": ({"lora_unet_double_blocks_0_img_attn_qkv.lokr_w1": random(3, 3)}, "wrong_kind"),
    "DoRA": (pair("transformer.x_embedder", 64, 64, "lora_A.weight", "lora_B.weight")
             | {"transformer.x_embedder.lora_magnitude_vector": random(64)}, "wrong_kind"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_lora_for_this_model_is_refused(kind: str, small: Any, tmp_path: Path) -> None:
    tensors, key = BAD[kind]
    with pytest.raises(WeightsError) as caught:
        OtherLoRA(saved(tensors, tmp_path), 1.0, small)
    assert caught.value.key == key


def test_the_goldens_own_lora_is_one_too(small: Any) -> None:
    """USO's file in its own dialect: at strength 1 the same weights as fused as USO's."""
    twice = finished(load_transformer(FLUX, None, torch.float32, others=[(USO, 1.0)])).state_dict()
    for name, tensor in build_transformer(FLUX, USO, torch.float32).state_dict().items():
        torch.testing.assert_close(twice[name], tensor, rtol=1e-6, atol=1e-6)
    assert load_file(USO)


def test_what_peft_saves_beside_the_file_sets_the_scale(small: Any, tmp_path: Path) -> None:
    """PEFT keeps alpha in adapter_config.json; without it the LoRA would be added at the wrong strength."""
    name = "transformer_blocks.0.attn.to_q"
    tensors = pair(f"base_model.model.{name}", *small[f"{name}.weight"], "lora_A.weight", "lora_B.weight")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 4 * RANK, "alpha_pattern": {}, "use_rslora": False}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    path = saved(tensors, tmp_path).rename(tmp_path / "adapter_model.safetensors")
    down, up = tensors.values()
    found = OtherLoRA(path, 0.5, small).fuse(f"{name}.weight", torch.zeros(small[f"{name}.weight"]))
    torch.testing.assert_close(found, 0.5 * 4 * up @ down)
    other = OtherLoRA(saved(tensors, tmp_path), 0.5, small)  # of another name: the configuration is not its own
    torch.testing.assert_close(other.fuse(f"{name}.weight", torch.zeros(found.shape)), 0.5 * up @ down)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(WeightsError) as caught:
        OtherLoRA(path, 1.0, small)
    assert caught.value.key == "metadata_unreadable"


@pytest.mark.parametrize(
    ("patterns", "scale"),
    [({}, 4), ({"attn.to_q": 8}, 8), ({r"transformer_blocks\.\d+\.attn\.to_[qk]": 8}, 8), ({"to_q|to_k": 8}, 8),
     ({"to_k": 8}, 4), ({"o_q": 8}, 4), ({r".*\.to_q": 8, "attn.to_q": 2}, 8)],
)  # fmt: skip
def test_pefts_patterns_of_alpha_are_regular_expressions(
    patterns: dict[str, int], scale: int, small: Any, tmp_path: Path
) -> None:
    """The first that matches counts, at the end of a module's name: `get_pattern_key` of PEFT 0.17."""
    name = "transformer_blocks.0.attn.to_q"
    tensors = pair(f"base_model.model.{name}", *small[f"{name}.weight"], "lora_A.weight", "lora_B.weight")
    alphas = {pattern: times * RANK for pattern, times in patterns.items()}
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 4 * RANK, "alpha_pattern": alphas}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    path = saved(tensors, tmp_path).rename(tmp_path / "adapter_model.safetensors")
    down, up = tensors.values()
    found = OtherLoRA(path, 1.0, small).fuse(f"{name}.weight", torch.zeros(small[f"{name}.weight"]))
    torch.testing.assert_close(found, scale * up @ down)


@pytest.mark.parametrize(
    "second",
    [
        {"lora_A.style.weight": 0, "lora_B.style.weight": 1},
        {"lora_down.weight": 0, "lora_up.weight": 1},
        {"diff": None},
    ],
)
def test_two_adapters_in_one_file_are_refused(second: dict[str, int | None], small: Any, tmp_path: Path) -> None:
    name = "transformer_blocks.0.attn.to_q"
    tensors = pair(f"transformer.{name}", *small[f"{name}.weight"], "lora_A.default.weight", "lora_B.default.weight")
    matrices = list(tensors.values())
    for part, which in second.items():
        other = torch.ones(small[f"{name}.weight"]) if which is None else matrices[which].clone()
        tensors[f"transformer.{name}.{part}"] = other
    with pytest.raises(WeightsError) as caught:
        OtherLoRA(saved(tensors, tmp_path), 1.0, small)
    assert caught.value.key == "lora_adapters"


@pytest.mark.parametrize("pattern", ["(", r"(.|\w|[a-z])*[!?]"])
def test_a_pattern_that_is_none_or_never_ends_is_refused(pattern: str, small: Any, tmp_path: Path) -> None:
    name = "transformer_blocks.0.attn.to_q"
    tensors = pair(f"base_model.model.{name}", *small[f"{name}.weight"], "lora_A.weight", "lora_B.weight")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "alpha_pattern": {pattern: 8}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    path = saved(tensors, tmp_path).rename(tmp_path / "adapter_model.safetensors")
    with pytest.raises(WeightsError) as caught:
        OtherLoRA(path, 1.0, small)
    assert caught.value.key == "metadata_unreadable"


@pytest.mark.parametrize("alpha", [torch.tensor(2 * RANK), torch.tensor([2.0 * RANK]), torch.tensor(2.0 * RANK)])
def test_an_alpha_is_one_number_of_any_type(alpha: torch.Tensor, small: Any, tmp_path: Path) -> None:
    name = "transformer_blocks.0.attn.to_q"
    tensors = pair(name, *small[f"{name}.weight"], "lora_down.weight", "lora_up.weight")
    lora = OtherLoRA(saved(tensors | {f"{name}.alpha": alpha}, tmp_path), 1.0, small)
    down, up = tensors.values()
    torch.testing.assert_close(lora.fuse(f"{name}.weight", torch.zeros(small[f"{name}.weight"])), 2 * up @ down)


@pytest.mark.parametrize("part", ["lora_A.weight", "lora_B.weight", "alpha"])
def test_numbers_that_are_not_finite_are_refused(part: str, small: Any, tmp_path: Path) -> None:
    name = "transformer_blocks.0.attn.to_q"
    tensors = pair(name, *small[f"{name}.weight"], "lora_A.weight", "lora_B.weight") | {f"{name}.alpha": torch.ones(1)}
    tensors[f"{name}.{part}"].view(-1)[0] = math.nan
    lora = OtherLoRA(saved(tensors, tmp_path), 1.0, small)
    with pytest.raises(WeightsError) as caught:
        lora.fuse(f"{name}.weight", torch.zeros(small[f"{name}.weight"]))
    assert (caught.value.key, caught.value.values["name"]) == ("lora_not_finite", f"{name}.{part}")


def test_words_trained_along_are_left_out(small: Any, tmp_path: Path) -> None:
    name = "transformer_blocks.0.attn.to_q"
    tensors = pair(name, *small[f"{name}.weight"], "lora_A.weight", "lora_B.weight")
    lora = OtherLoRA(saved(tensors | {"bundle_emb.fox.clip_l": random(2, 8)}, tmp_path), 1.0, small)
    assert lora.left_out
    assert lora.targets == {f"{name}.weight"}
