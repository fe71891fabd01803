"""Random weights for modules that have none, drawn where they are needed, scaled to keep activations finite.

Never zeros: products of zeros run faster, since the chip draws less power.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from uso_core.quantization.fp8 import FP8, FP8_MAX, Float8Linear

FP8_SPREAD = 100.0  # standard deviation of fp8 data; their scale undoes it
NORM_SPREAD = 0.02  # of norms' weights around 1 and of biases around 0


def materialize(module: nn.Module, device: torch.device, home: torch.device, seed: int = 0) -> None:
    """Gives a meta module weights drawn on `device`, one tensor at a time, and leaves them on `home`.

    A matrix of K inputs has standard deviation 1 / sqrt(K), so that it preserves its input's size. Shared weights stay
    shared.
    """
    chance = torch.Generator(device).manual_seed(seed)
    made: dict[int, torch.Tensor] = {}
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            if id(parameter) not in made:
                data = draw(owner, name, parameter, chance).to(home)
                made[id(parameter)] = nn.Parameter(data, requires_grad=False)
            setattr(owner, name, made[id(parameter)])
        for name, buffer in list(owner.named_buffers(recurse=False)):
            setattr(owner, name, draw(owner, name, buffer, chance).to(home))
    module.eval()


def draw(owner: nn.Module, name: str, like: torch.Tensor, chance: torch.Generator) -> torch.Tensor:
    """Draws one tensor of the given shape and dtype, on the generator's device."""
    device, shape = chance.device, like.shape
    if not like.is_floating_point():  # position ids
        return torch.arange(like.numel(), device=device, dtype=like.dtype).reshape(shape)
    if isinstance(owner, Float8Linear) and name == "scale":
        return torch.full(shape, 1 / (FP8_SPREAD * math.sqrt(owner.in_features)), device=device)
    wide = torch.bfloat16 if like.dtype == FP8 else like.dtype
    values = torch.empty(shape, device=device, dtype=wide)
    if like.dim() < 2:
        return values.normal_(0, NORM_SPREAD, generator=chance).add_(1 if name in ("weight", "scale") else 0)
    spread = FP8_SPREAD if isinstance(owner, Float8Linear) else (like.numel() / shape[0]) ** -0.5
    values.normal_(0, spread, generator=chance)
    return values.clamp_(-FP8_MAX, FP8_MAX).to(FP8) if like.dtype == FP8 else values
