"""Every stage against the numbers of the reference implementation (tests/golden/README.md), in float32 on the CPU."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.conftest import GOLDEN
from uso_core.catalog.models import get_model
from uso_core.cpu.transformer import CpuStep, has_kernels
from uso_core.images import prepare_content
from uso_core.model import latents
from uso_core.model.pipeline import USOPipeline
from uso_core.runtime.load import assemble
from uso_core.settings import Settings

CASES = {case["name"]: case for case in json.loads((GOLDEN / "manifest.json").read_text())["cases"]}
FILES = {"transformer": "flux.safetensors", "lora": "dit_lora.safetensors", "projector": "projector.safetensors",
         "vae": "ae.safetensors", "t5": "t5", "clip": "clip", "siglip": "siglip"}  # fmt: skip
# Relative L2; a mistake costs 0.1 or more on the latents (golden/README.md), a different order of additions about 1e-5.
TOLERANCE = {"text": 1e-5, "pooled": 1e-5, "style_tokens": 1e-5, "reference_latents": 1e-5, "velocity0": 1e-4,
             "latents": 1e-4}  # fmt: skip


@pytest.fixture(scope="module", params=["plain", "packed"])
def pipeline(request: pytest.FixtureRequest) -> USOPipeline:
    """With the steps as on a GPU, and as on a CPU."""
    paths = {role: GOLDEN / name for role, name in FILES.items()}
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "plain":
            patch.setattr("uso_core.cpu.accelerate.has_kernels", lambda dtype: False)
            patch.setattr("uso_core.cpu.accelerate.accelerate_vae", lambda vae: lambda: None)
        made = assemble(paths, Settings(device="cpu", dtype="float32"), get_model("uso-tiny"))[0]
    expected = request.param == "packed" and has_kernels(torch.float32)
    assert isinstance(made.transformer.kernels, CpuStep) == expected
    return made


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "expected.safetensors")


@dataclass
class Run:
    """One case computed by us, stage by stage."""

    case: dict[str, Any]
    latents: list[torch.Tensor]  # after each step
    sigmas: torch.Tensor
    pixels: torch.Tensor


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> dict[str, Any]:
    return CASES[request.param]


@pytest.fixture(scope="module", params=CASES)
def run(request: pytest.FixtureRequest, pipeline: USOPipeline) -> Run:
    case, after = CASES[request.param], []
    content = image(case["content"]) if case["content"] else None

    def keep(pipe: USOPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]) -> None:
        after.append(tensors["latents"])

    pixels = pipeline(
        case["prompt"], content, [image(name) for name in case["styles"]], case["width"], case["height"],
        case["num_steps"], case["guidance"], seed=case["seed"], content_size=case["content_ref"], output_type="pt",
        callback_on_step_end=keep,
    ).images  # fmt: skip
    return Run(case, after, pipeline.scheduler.sigmas.cpu(), pixels * 2 - 1)


def image(name: str) -> Image.Image:
    return Image.open(GOLDEN / f"{name}.png").convert("RGB")


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return ((ours.float() - theirs).norm() / theirs.norm()).item()


def close(stage: str, ours: torch.Tensor, case: dict[str, Any], expected: dict[str, torch.Tensor]) -> None:
    assert distance(ours, expected[f"{case['name']}.{stage}"]) < TOLERANCE[stage], stage


def size(case: dict[str, Any]) -> tuple[int, int]:
    return case["width"] // 16 * 16, case["height"] // 16 * 16


def test_text(pipeline, case, expected):
    text, pooled = pipeline.encode_prompt(case["prompt"])
    close("text", text, case, expected)
    close("pooled", pooled, case, expected)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["styles"]])
def test_style_tokens(pipeline, name, expected):
    tokens = [pipeline.encode_style(image(style)) for style in CASES[name]["styles"]]
    close("style_tokens", torch.cat(tokens, dim=1), CASES[name], expected)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["content"]])
def test_reference_latents(pipeline, name, expected):
    case = CASES[name]
    content = prepare_content(image(case["content"]), case["content_ref"])
    close("reference_latents", pipeline.encode_content(content), case, expected)


def test_noise_is_exact(case, expected):
    noise = latents.noise(*size(case), 16, torch.Generator().manual_seed(case["seed"]))
    assert torch.equal(noise.float(), expected[f"{case['name']}.noise"])


def test_timesteps(run, expected):
    torch.testing.assert_close(run.sigmas, expected[f"{run.case['name']}.timesteps"], rtol=0, atol=2e-7)


def test_first_velocity(run, expected):
    noise = latents.pack(expected[f"{run.case['name']}.noise"])
    close("velocity0", (run.latents[0] - noise) / (run.sigmas[1] - run.sigmas[0]), run.case, expected)


def test_last_latents(run, expected):
    close("latents", run.latents[-1], run.case, expected)


def test_pixels(run, expected):
    torch.testing.assert_close(run.pixels, expected[f"{run.case['name']}.pixels"], rtol=0, atol=2e-4)


def test_png(run, pipeline):
    ours = np.asarray(pipeline.to_images(run.pixels)[0], dtype=int)
    assert np.abs(ours - np.asarray(image(run.case["name"]), dtype=int)).max() <= 1
