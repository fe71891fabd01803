"""From noise to latents for whole batches, on the schedule that the application uses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from uso_core.model.latents import PIXELS_PER_LATENT, schedule_mu, schedule_tokens, second_order, unpack

from .model import Conditions, TinyUso
from .precision import autocast
from .text import read_words

DEFAULT_STEPS, DEFAULT_GUIDANCE = 8, 4.0  # as in the catalog's row


def times(steps: int, height: int, width: int) -> list[float]:
    """sigma of every step from 1 to 0, shifted as the pipeline's "uso" schedule does for a size in pixels."""
    shift = math.exp(schedule_mu(schedule_tokens(width, height)))
    return [shift / (shift + 1 / t - 1) if t > 0 else 0.0 for t in torch.linspace(1, 0, steps + 1).tolist()]


def clean_latents(noisy: torch.Tensor, times: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
    """The latents (B, 16, h, w) that a velocity (B, S, 64) foretells at noisy ones and times (B,), in float32."""
    height, width = PIXELS_PER_LATENT * noisy.shape[2], PIXELS_PER_LATENT * noisy.shape[3]
    return noisy - times[:, None, None, None] * unpack(velocity.float(), height, width)


@torch.no_grad()
def sample(
    model: TinyUso,
    prompts: list[str],
    height: int = 128,
    width: int = 128,
    reference: torch.Tensor | None = None,
    style: torch.Tensor | None = None,
    steps: int = DEFAULT_STEPS,
    guidance: float = DEFAULT_GUIDANCE,
    seed: int = 0,
) -> torch.Tensor:
    """Normalised latents float32 (B, 16, height / 8, width / 8); reference and style as in `Batch`."""
    device = model.device
    generator = torch.Generator().manual_seed(seed)
    shape = (len(prompts), 16, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
    x = torch.randn(shape, generator=generator).to(device)
    schedule = times(steps, height, width)
    with autocast(device.type):
        text, pooled = model.encode_text(read_words(prompts))
        tokens = None if style is None else model.encode_style(style)
        reference = None if reference is None else reference.to(device)
        conditions = Conditions(text, pooled, tokens, reference, adapted=True)  # fused in every mode, as released
        return follow(model, x, schedule, torch.full((len(prompts),), guidance, device=device), conditions)


@torch.no_grad()
def follow(
    model: TinyUso, x: torch.Tensor, schedule: Sequence[float], guidance: torch.Tensor, conditions: Conditions
) -> torch.Tensor:
    """Latents (B, 16, h, w) in steps of "ab2" from the schedule's first time to its last; guidance (B,)."""
    height, width = PIXELS_PER_LATENT * x.shape[2], PIXELS_PER_LATENT * x.shape[3]
    weights, sigmas, before = model.adapted_weights(), torch.tensor(schedule), None
    for step in range(len(schedule) - 1):
        velocity = model.velocity(x, x.new_full((len(x),), schedule[step]), guidance, conditions, weights).float()
        slope = velocity if before is None else second_order(velocity, before, sigmas, step)
        x, before = x + (schedule[step + 1] - schedule[step]) * unpack(slope, height, width), velocity
    return x
