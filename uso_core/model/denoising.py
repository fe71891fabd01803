"""What a denoising needs and gives: the encoded request, the prepared one, each finished step.

Letters: B batch (always 1), S target tokens, T text tokens, K style tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from uso_core.model.transformer import Fixed, USOTransformer2DModel
from uso_core.request import Sampling


@dataclass(frozen=True)
class Conditioning:
    """Everything about a request that no step changes, encoded once."""

    text: torch.Tensor  # (1, T, T5 width)
    pooled: torch.Tensor  # (1, CLIP width)
    styles: tuple[torch.Tensor, ...]  # each (1, K, D)
    references: tuple[torch.Tensor, ...]  # each (1, C, H, W), normalised latents

    def is_same(self, other: Conditioning) -> bool:
        """Whether these are the same tensor objects, as the cache returns them."""
        mine, theirs = ((each.text, each.pooled, *each.styles, *each.references) for each in (self, other))
        sorts = (len(self.styles), len(self.references)) == (len(other.styles), len(other.references))
        return sorts and all(one is another for one, another in zip(mine, theirs, strict=True))


TABLE_STEPS = 64  # rows of the adaLN table computed at once: 137 MB at FLUX.1's size in bfloat16


@dataclass
class Prepared:
    """A request ready for any number of denoisings. The adaLN table is computed a few dozen steps at a time."""

    sampling: Sampling
    fixed: Fixed
    pooled: torch.Tensor  # (1, CLIP width)
    sigmas: torch.Tensor  # (steps + 1,), from 1 to 0, from the scheduler
    _rows: tuple[tuple[torch.Tensor, ...], ...] = ()  # of the table, by step
    _first: int = -1

    def rows(self, transformer: USOTransformer2DModel, step: int) -> tuple[torch.Tensor, ...]:
        """The table's rows of one step, each (1, ...)."""
        first = step // TABLE_STEPS * TABLE_STEPS
        if first != self._first:
            guidance = None
            if transformer.config.guidance_embeds:
                guidance = torch.tensor([self.sampling.guidance], device=self.sigmas.device, dtype=torch.float32)
            levels = self.sigmas[:-1][first : first + TABLE_STEPS]
            table = transformer.modulation(levels, guidance, self.pooled, self.fixed.text.dtype)
            self._rows = tuple(zip(*(each.split(1) for each in table), strict=True))
            self._first = first
        return self._rows[step - first]


@dataclass(frozen=True)
class Denoised:
    """One finished step: the packed latents (1, S, 4C) after it, and what predicts the result."""

    latents: torch.Tensor
    timestep: torch.Tensor  # sigma * 1000
    _before: torch.Tensor
    _velocity: torch.Tensor

    @property
    def denoised(self) -> torch.Tensor:
        """The packed latents (1, S, 4C) that this step predicts for the end, for a preview."""
        return self._before - self.timestep / 1000 * self._velocity


class Pace:
    """Keeps the caller at most one step ahead of a GPU, so that timings are true and Stop acts within a step."""

    def __init__(self, device: torch.device) -> None:
        self._done: torch.cuda.Event | None = None
        self._watched = device.type == "cuda"

    def keep(self) -> None:
        """Waits for the end of the step before the one just submitted."""
        if self._watched:
            before, self._done = self._done, torch.cuda.Event()
            self._done.record()
            if before is not None:
                before.synchronize()


def attention_bias(
    condition: Conditioning, sampling: Sampling, target_tokens: int, device: torch.device
) -> torch.Tensor | None:
    """Logarithms of the strengths for the keys of style and reference tokens: (1, 1, 1, K + T + S + R).

    A strength s multiplies the attention weight of each such key by s before normalising; 0 removes it. Returns
    None if every strength is 1, so that nothing is added.
    """
    styles = sampling.style_strengths or (1.0,) * len(condition.styles)
    strengths = [(each.shape[1], strength) for each, strength in zip(condition.styles, styles, strict=True)]
    strengths.append((condition.text.shape[1] + target_tokens, 1.0))
    for reference in condition.references:
        strengths.append((reference.shape[-2] * reference.shape[-1] // 4, sampling.content_strength))
    if all(strength == 1.0 for _, strength in strengths):
        return None
    keys = [torch.full((count,), strength, device=device) for count, strength in strengths]
    return torch.cat(keys).log()[None, None, None]
