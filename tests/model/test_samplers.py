"""The second-order sampler: its order, and that it needs fewer steps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from training.trials import Painter
from uso_core.errors import RequestError
from uso_core.model.latents import schedule_mu, second_order

PROMPTS = ("a happy red boat on the beach", "a blue cat in the forest", "a purple mug in the snow")


def shifted(steps: int) -> torch.Tensor:
    """Sigmas of FLUX.1's schedule, steps of different lengths."""
    shift = math.exp(schedule_mu(4096))
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return torch.where(times > 0, shift / (shift + 1 / times.clamp(min=1e-9) - 1), 0)


def end(steps: int, second: bool) -> float:
    """Where x' = -x * sigma comes from x(1) = 1, at sigma 0."""
    sigmas, x, last = shifted(steps), torch.ones((), dtype=torch.float64), None
    for step in range(steps):
        velocity = -x * sigmas[step]
        slope = velocity if last is None or not second else second_order(velocity, last, sigmas, step)
        x, last = x + (sigmas[step + 1] - sigmas[step]) * slope, velocity
    return float(x)


def test_the_rule_is_exact_for_velocities_that_are_linear_in_sigma() -> None:
    sigmas, offset, slope = torch.tensor([1.0, 0.7, 0.1]), torch.tensor([2.0, -1.0]), torch.tensor([0.5, 3.0])
    before, velocity = offset + slope * sigmas[0], offset + slope * sigmas[1]
    mean = offset + slope * (sigmas[1] + sigmas[2]) / 2
    torch.testing.assert_close(second_order(velocity, before, sigmas, 1), mean)


def test_the_error_falls_with_the_square_of_the_steps() -> None:
    exact = math.exp(0.5)
    for second, order in ((False, 1), (True, 2)):
        errors = [abs(end(steps, second) - exact) for steps in (50, 100)]
        assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2)


def test_half_precision_stays_as_it_is() -> None:
    velocity, sigmas = torch.ones(1, 2, 4, dtype=torch.bfloat16), torch.tensor([1.0, 0.5, 0.0])
    assert second_order(velocity, velocity / 2, sigmas, 1).dtype == torch.bfloat16


@pytest.fixture(scope="module")
def painter() -> Painter:
    return Painter()


def latents(painter: Painter, prompt: str, **options: Any) -> torch.Tensor:
    return painter.pipeline(prompt, seed=3, width=128, height=128, output_type="latent", **options).images.float()


def test_ten_steps_are_worth_sixteen_of_euler(painter: Painter) -> None:
    error = {"euler": 0.0, "ab2": 0.0}
    for prompt in PROMPTS:
        exact = latents(painter, prompt, num_inference_steps=64, sampler="ab2")
        for sampler, steps in (("euler", 16), ("ab2", 10)):
            made = latents(painter, prompt, num_inference_steps=steps, sampler=sampler)
            error[sampler] += float((made - exact).norm())
    assert error["ab2"] < 1.1 * error["euler"]


def test_the_first_step_is_euler(painter: Painter) -> None:
    one, other = (latents(painter, PROMPTS[0], num_inference_steps=1, sampler=name) for name in ("euler", "ab2"))
    assert torch.equal(one, other)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "", "AB2", None])
def test_another_sampler_is_refused_and_quoted(painter: Painter, sampler: Any) -> None:
    with pytest.raises(RequestError, match="sampler"):
        painter.pipeline("a cat", sampler=sampler)
