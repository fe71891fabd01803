"""The VAE on a CPU decodes and encodes like the library's own modules."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import nn

from uso_core.catalog.models import EMBEDDED, EMBEDDED_FILES, get_model
from uso_core.cpu.accelerate import accelerate
from uso_core.cpu.vae import Doubling, accelerate_vae
from uso_core.loaders import build
from uso_core.runtime import load
from uso_core.settings import ROOT, Settings

WEIGHTS = ROOT / "weights" / EMBEDDED
SIZES = ((64, 64), (48, 80))  # pixels, height and width


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return build.build_vae(WEIGHTS / EMBEDDED_FILES["vae"], torch.float32)


def both_ways(vae: AutoencoderKL, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels of random latents, and latents of random pixels."""
    dtype, chance = next(vae.parameters()).dtype, torch.Generator().manual_seed(height)
    latents = torch.randn(1, 16, height // 8, width // 8, generator=chance).to(dtype)
    pixels = torch.rand(1, 3, height, width, generator=chance).to(dtype) * 2 - 1
    with torch.inference_mode():
        return vae.decode(latents).sample, vae.encode(pixels).latent_dist.mode()


def errors(results: tuple[torch.Tensor, ...], exact: tuple[torch.Tensor, ...]) -> list[float]:
    return [float((a.float() - b).norm() / b.norm()) for a, b in zip(results, exact, strict=True)]


@pytest.mark.parametrize("channels", [(3, 5), (8, 8)])
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (16, 9)])
def test_a_doubling_equals_repeated_pixels_convolved(channels: tuple[int, int], size: tuple[int, int]) -> None:
    torch.manual_seed(size[0])
    convolution = nn.Conv2d(*channels, 3, padding=1).double()
    x = torch.randn(2, channels[0], *size, dtype=torch.double)
    with torch.inference_mode():
        expected = convolution(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        doubling = Doubling(convolution)
        torch.testing.assert_close(doubling(x), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_the_accelerated_vae_differs_only_by_rounding(vae: AutoencoderKL, size: tuple[int, int]) -> None:
    exact = both_ways(vae, *size)
    ours = copy.deepcopy(vae).to(memory_format=torch.channels_last)
    accelerate_vae(ours)
    assert max(errors(both_ways(ours, *size), exact)) < 1e-5
    plain, ours = copy.deepcopy(vae).to(torch.bfloat16), copy.deepcopy(vae).to(torch.bfloat16)
    accelerate_vae(ours)
    for mine, theirs in zip(*(errors(both_ways(each, *size), exact) for each in (ours, plain)), strict=True):
        assert mine < 1.2 * theirs  # no more rounding than before


def test_arguments_and_weights_are_left_alone(vae: AutoencoderKL) -> None:
    ours = copy.deepcopy(vae)
    accelerate_vae(ours)
    assert all(torch.equal(value, vae.state_dict()[name]) for name, value in ours.state_dict().items())
    latents = torch.randn(1, 16, 8, 8)
    before = latents.clone()
    with torch.inference_mode():
        first = ours.decode(latents).sample
        assert torch.equal(latents, before)
        assert torch.equal(ours.decode(latents).sample, first)


def test_tiles_are_decoded_alike(vae: AutoencoderKL) -> None:
    plain, ours = copy.deepcopy(vae), copy.deepcopy(vae)
    accelerate_vae(ours)
    for each in (plain, ours):
        each.tile_latent_min_size, each.tile_sample_min_size = 8, 64
        each.enable_tiling()
    exact, result = both_ways(plain, 96, 128)[0], both_ways(ours, 96, 128)[0]
    assert errors((result,), (exact,))[0] < 1e-5


def test_a_pipeline_on_a_cpu_is_accelerated() -> None:
    paths = {role: WEIGHTS / name for role, name in EMBEDDED_FILES.items()}
    made = load.assemble(paths, Settings(device="cpu", dtype="float32"), get_model(EMBEDDED))[0]
    assert any(isinstance(module.__dict__.get("forward"), Doubling) for module in made.vae.modules())


def test_acceleration_can_be_undone(vae: AutoencoderKL) -> None:
    """The pipeline is then as before, bit for bit."""
    paths = {role: WEIGHTS / name for role, name in EMBEDDED_FILES.items()}
    made = load.assemble(paths, Settings(device="cpu", dtype="float32"), get_model(EMBEDDED))[0]
    for module in made.vae.modules():
        module.__dict__.pop("forward", None)
    made.transformer.kernels = None

    def latents() -> torch.Tensor:
        return made("A red mug.", width=64, height=64, num_inference_steps=1, seed=1, output_type="pt").images

    plain = latents()
    undo = accelerate(made, tokens=64)
    assert made.transformer.kernels is not None
    assert not torch.equal(latents(), plain)  # rounded elsewhere
    undo()
    assert torch.equal(latents(), plain)
    assert not any("forward" in module.__dict__ for module in made.vae.modules())
