"""Products with reordered weights compute the same as plain ones, in every kind of request."""

from __future__ import annotations

import copy
import dataclasses
import platform
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.model.test_model import EMBEDDED, images, pipeline  # noqa: F401  (fixtures)
from tests.test_speed import generate, own  # noqa: F401
from uso_core.catalog.models import EMBEDDED_FILES, get_model
from uso_core.cpu import transformer as kernels
from uso_core.cpu.transformer import CpuStep, Product, accelerate_transformer, has_kernels
from uso_core.memory.planner import MemoryPlan
from uso_core.model.pipeline import USOPipeline
from uso_core.model.transformer import USOTransformer2DModel
from uso_core.quantization.fp8 import use_fp8
from uso_core.quantization.matrices import TRANSFORMER_MATRICES
from uso_core.runtime import load
from uso_core.settings import Settings

# oneDNN multiplies bfloat16 only with AVX512 or better; elsewhere bfloat16 blocks stay unchanged.
BFLOAT16 = torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")
DTYPES = (torch.float32, *((torch.bfloat16,) if BFLOAT16 else ()))
pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")


def inputs(
    transformer: USOTransformer2DModel, dtype: torch.dtype, text: int, image: int, batch: int = 1
) -> dict[str, torch.Tensor]:
    config, chance = transformer.config, torch.Generator().manual_seed(text)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=chance).to(dtype)

    return {
        "hidden_states": draw(batch, image, config.in_channels),
        "encoder_hidden_states": draw(batch, text, config.joint_attention_dim),
        "pooled_projections": draw(batch, config.pooled_projection_dim),
        "timestep": torch.linspace(0.9, 0.3, batch).to(dtype),
        "guidance": torch.full((batch,), 4.0).to(dtype),
        "img_ids": draw(image, 3).round(),
        "txt_ids": torch.zeros(text, 3),
        "attention_bias": draw(1, 1, 1, text + image),
    }


@pytest.mark.parametrize(
    ("dtype", "by_onednn"), [(torch.float32, False), *((dtype, True) for dtype in DTYPES)],
)  # fmt: skip
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 300])
def test_a_product_equals_that_of_its_layers(
    dtype: torch.dtype, by_onednn: bool, gelu: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "by_onednn", lambda dtype: by_onednn)
    torch.manual_seed(rows)
    layers = [nn.Linear(40, size).to(dtype) for size in (24, 24, 56)]
    x = torch.randn(2, rows, 40).to(dtype)
    ours = Product(*layers, rows=64, gelu=gelu)(x)
    exact = torch.cat([F.linear(x.double(), layer.weight.double(), layer.bias.double()) for layer in layers], -1)
    exact = F.gelu(exact, approximate="tanh") if gelu else exact
    torch.testing.assert_close(ours.double(), exact, atol=8 * torch.finfo(dtype).eps, rtol=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("tokens", [(5, 6), (40, kernels.WRITTEN_OUT)])
@pytest.mark.parametrize("biased", [True, False])
def test_a_prediction_differs_only_by_rounding(pipeline: USOPipeline, tokens: tuple[int, int], biased: bool) -> None:  # noqa: F811
    exact, errors = pipeline.transformer, {}
    for dtype in DTYPES:
        plain, ours = copy.deepcopy(exact).to(dtype), copy.deepcopy(exact).to(dtype)
        accelerate_transformer(ours, rows=64)
        assert isinstance(ours.kernels, CpuStep)
        given = inputs(exact, dtype, *tokens)
        given = given if biased else {**given, "attention_bias": None}
        with torch.inference_mode():
            right = exact(**inputs(exact, torch.float32, *tokens) | ({} if biased else {"attention_bias": None})).sample
            for name, model in (("plain", plain), ("ours", ours)):
                errors[name, dtype] = float((model(**given).sample.float() - right).norm() / right.norm())
    assert errors["ours", torch.float32] < 1e-5
    if BFLOAT16:  # no more rounding than before
        assert errors["ours", torch.bfloat16] < 1.2 * errors["plain", torch.bfloat16]


def test_gelu_is_right_for_large_values_too() -> None:
    x = torch.cat([torch.linspace(-30, 30, 4001), torch.tensor([-1e30, -1e4, 0.0, 1e4, 1e18])])
    right = F.gelu(x.double(), approximate="tanh")
    torch.testing.assert_close(kernels.gelu_(x.clone()).double(), right, atol=1e-6, rtol=1e-6)


def test_several_samples_take_the_plain_path(pipeline: USOPipeline) -> None:  # noqa: F811
    ours = copy.deepcopy(pipeline.transformer)
    accelerate_transformer(ours, rows=64)
    given = inputs(ours, torch.float32, 5, 6, batch=2)
    with torch.inference_mode():
        torch.testing.assert_close(ours(**given).sample, pipeline.transformer(**given).sample, atol=2e-5, rtol=0)


def test_a_pipeline_makes_the_same_image(own: USOPipeline, images) -> None:  # noqa: F811
    before = generate(own, images)
    weights = {name: weight.clone() for name, weight in own.transformer.state_dict().items()}
    for _ in range(2):  # once more changes nothing
        accelerate_transformer(own.transformer, rows=64)
        torch.testing.assert_close(generate(own, images), before, atol=2e-4, rtol=0)
    after = own.transformer.state_dict()  # it can still be saved
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], weights[name]) for name in weights)


def test_fp8_layers_stay(own: USOPipeline, images) -> None:  # noqa: F811
    use_fp8(own.transformer, TRANSFORMER_MATRICES)
    before = generate(own, images)
    accelerate_transformer(own.transformer, rows=64)
    assert own.transformer.kernels is None
    assert torch.equal(generate(own, images), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="oneDNN packs elsewhere as it can")
def test_an_x86_cpu_has_kernels(dtype: torch.dtype) -> None:
    assert has_kernels(dtype) == (dtype == torch.float32 or BFLOAT16)


def test_without_onednn_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> torch.Tensor:
        raise NotImplementedError("no such operator")

    monkeypatch.setattr(kernels, "Product", missing)
    assert not any(has_kernels(dtype) for dtype in DTYPES)


@pytest.mark.parametrize("packed", [True, False])
def test_the_plan_decides(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = load.plan_memory

    def decided(*given: Any) -> MemoryPlan:
        made = planned(*given)
        assert made.cpu_kernels  # there is room for a second copy of the embedded model
        return dataclasses.replace(made, cpu_kernels=packed)

    monkeypatch.setattr(load, "plan_memory", decided)
    paths = {role: EMBEDDED / name for role, name in EMBEDDED_FILES.items()}
    made = load.assemble(paths, Settings(device="cpu", dtype="float32"), get_model("uso-tiny"))[0]
    assert isinstance(made.transformer.kernels, CpuStep) == packed
