"""Our two schedules in terms of ComfyUI's node ModelSamplingFlux, where mu is linear in the number of tokens too.

The node computes mu = slope * (width * height / 256) + offset, through (256, base_shift) and (4096, max_shift).
"flux" is that line with the node's defaults. "uso" divides the tokens by 64 (see `latents.schedule_tokens`), which
gives a flatter line with the same offset; only the reference's rounding down is lost, at most 0.0002 of mu.
"""

from __future__ import annotations

from collections.abc import Sequence

BASE_TOKENS, MAX_TOKENS = 256, 4096
BASE_MU, MAX_MU = 0.5, 1.15
DIVISORS = {"uso": 64, "flux": 1}  # factor by which a schedule understates the number of tokens
NEAR = 0.06  # of mu; the two are farther apart wherever the difference is visible


def shifts(schedule: str) -> tuple[float, float]:
    """The max_shift and base_shift of ModelSamplingFlux that give a schedule, at the image's own width and height."""
    slope = (MAX_MU - BASE_MU) / (MAX_TOKENS - BASE_TOKENS)
    offset = BASE_MU - slope * BASE_TOKENS
    low, high = (offset + slope * tokens / DIVISORS[schedule] for tokens in (BASE_TOKENS, MAX_TOKENS))
    return round(high, 6), round(low, 6)


def mu(max_shift: float, base_shift: float, width: float, height: float) -> float:
    """mu as ModelSamplingFlux computes it."""
    slope = (max_shift - base_shift) / (MAX_TOKENS - BASE_TOKENS)
    return base_shift + slope * (width * height / 256 - BASE_TOKENS)


def nearest_schedule(values: Sequence[float | None], target: tuple[float | None, float | None]) -> str | None:
    """The schedule nearest to a ModelSamplingFlux's max_shift, base_shift, width and height, or None if none is near.

    `target` is the image's size; if unknown, the node's own shifts decide.
    """
    max_shift, base_shift, width, height = values
    if max_shift is None or base_shift is None:
        return None
    if width is None or height is None or None in target:
        distances = {name: abs(max_shift - shifts(name)[0]) + abs(base_shift - shifts(name)[1]) for name in DIVISORS}
    else:
        here = mu(max_shift, base_shift, width, height)
        distances = {name: abs(here - mu(*shifts(name), *target)) for name in DIVISORS}  # type: ignore[arg-type]
    name = min(distances, key=lambda name: distances[name])
    return name if distances[name] <= NEAR else None
