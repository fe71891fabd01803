"""Latents as the transformer sees them: packed into tokens, placed by position ids, stepped along a schedule.

Letters: B batch, C latent channels, H W latent height and width, S = (H/2)(W/2) tokens.
"""

from __future__ import annotations

import math

import torch

PIXELS_PER_LATENT = 8
PIXELS_PER_TOKEN = 16
BASE_TOKENS, BASE_MU = 256, 0.5  # FLUX.1's two points of mu against the number of tokens
MAX_TOKENS, MAX_MU = 4096, 1.15


def pack(latents: torch.Tensor) -> torch.Tensor:
    """2 x 2 patches to tokens, row-major, channels ordered (c, row, column): (B, C, H, W) -> (B, S, 4C)."""
    b, c, h, w = latents.shape
    patches = latents.reshape(b, c, h // 2, 2, w // 2, 2)  # (B, C, H/2, 2, W/2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // 2) * (w // 2), c * 4)


def unpack(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The inverse of `pack` for an image of height x width pixels: (B, S, 4C) -> (B, C, H, W)."""
    b, s, c = tokens.shape
    rows, columns = math.ceil(height / PIXELS_PER_TOKEN), math.ceil(width / PIXELS_PER_TOKEN)
    if s != rows * columns:
        raise ValueError(f"{s} tokens do not make {width} x {height} pixels, which takes {rows * columns}")
    patches = tokens.reshape(b, rows, columns, c // 4, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, rows * 2, columns * 2)


def position_ids(rows: int, columns: int, row_offset: int = 0, column_offset: int = 0) -> torch.Tensor:
    """Position (0, row, column) of every token of one image: float32 (rows * columns, 3)."""
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] = (torch.arange(rows) + row_offset)[:, None]
    ids[..., 2] = (torch.arange(columns) + column_offset)[None, :]
    return ids.reshape(-1, 3)


def image_ids(
    target: tuple[int, int], references: list[tuple[int, int]], most_columns: int | None = None
) -> torch.Tensor:
    """Positions of the target's tokens, then of each reference's: (S + R, 3). Sizes are (rows, columns) of tokens.

    References are shifted diagonally: offsets start at the target's size and grow by each reference's
    (bytedance/USO b6784d7, `prepare_multi_ip` with pe "d"). `most_columns` caps the first offset to the right, for a
    model trained to find references at the distance of a square image; rows keep the two apart.
    """
    row_offset, column_offset = target
    if most_columns is not None:
        column_offset = min(column_offset, most_columns)
    ids = [position_ids(*target)]
    for rows, columns in references:
        ids.append(position_ids(rows, columns, row_offset, column_offset))
        row_offset, column_offset = row_offset + rows, column_offset + columns
    return torch.cat(ids)


def noise(width: int, height: int, channels: int, generator: torch.Generator) -> torch.Tensor:
    """Starting noise of one image, drawn in bfloat16 on the generator's device as the reference does: (1, C, H, W)."""
    shape = (1, channels, 2 * math.ceil(height / PIXELS_PER_TOKEN), 2 * math.ceil(width / PIXELS_PER_TOKEN))
    return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.bfloat16)


def schedule_tokens(width: int, height: int, schedule: str = "uso") -> int:
    """The number of tokens that sets the schedule's shift.

    "uso" divides the latent area by 256 although a token covers 4 latents, so it is 64 times too low: 64 at
    1024 x 1024, mu 0.4675. The published images were made with it (bytedance/USO b6784d7, uso/flux/pipeline.py,
    the call of `get_schedule`). "flux" is the true count: there 4096 and mu 1.15, as in FluxPipeline and ComfyUI.
    """
    latent_area = (width // PIXELS_PER_LATENT) * (height // PIXELS_PER_LATENT)
    if schedule == "uso":
        return latent_area // 256
    if schedule == "flux":
        return latent_area // 4
    raise ValueError(f"unknown schedule {schedule!r}")


def second_order(velocity: torch.Tensor, before: torch.Tensor, sigmas: torch.Tensor, step: int) -> torch.Tensor:
    """The slope of the second-order Adams-Bashforth rule from sigmas[step] to sigmas[step + 1], step at least 1.

    `velocity` is the one at this step, `before` the one at the step before. Steps may differ in length: the slope is
    the mean, over the step, of the line through both (Hairer, Norsett and Wanner, Solving Ordinary Differential
    Equations I, section III.5).
    """
    ratio = (sigmas[step + 1] - sigmas[step]) / (sigmas[step] - sigmas[step - 1])
    slope = velocity.float() + ratio / 2 * (velocity.float() - before.float())
    return slope.to(velocity.dtype)


def schedule_mu(tokens: int) -> float:
    """mu of FLUX.1's exponential time shift: linear through (256, 0.5) and (4096, 1.15)."""
    return BASE_MU + (MAX_MU - BASE_MU) * (tokens - BASE_TOKENS) / (MAX_TOKENS - BASE_TOKENS)
