"""Turns latents into an image without the decoder: one linear map from latent channels to RGB.

Letters: C latent channels, H W latent height and width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

# FLUX.1's autoencoder: a row of RGB for each of 16 channels, then the offset; RGB in [-1, 1]. Figures from ComfyUI,
# comfy/latent_formats.py, class Flux.
FLUX_FACTORS = (
    (-0.0346, 0.0244, 0.0681), (0.0034, 0.0210, 0.0687), (0.0275, -0.0668, -0.0433), (-0.0174, 0.0160, 0.0617),
    (0.0859, 0.0721, 0.0329), (0.0004, 0.0383, 0.0115), (0.0405, 0.0861, 0.0915), (-0.0236, -0.0185, -0.0259),
    (-0.0245, 0.0250, 0.1180), (0.1008, 0.0755, -0.0421), (-0.0515, 0.0201, 0.0011), (0.0428, -0.0012, -0.0036),
    (0.0817, 0.0765, 0.0749), (-0.1264, -0.0522, -0.1103), (-0.0280, -0.0881, -0.0499), (-0.1262, -0.0982, -0.0778),
    (-0.0329, -0.0718, -0.0851),
)  # fmt: skip


def fit(latents: torch.Tensor, pixels: torch.Tensor) -> list[list[float]]:
    """The least-squares map for another autoencoder, in the form of `FLUX_FACTORS`.

    `latents` (N, C, H, W) are normalised, `pixels` (N, 3, H, W) are their images in [-1, 1], scaled to the same size.
    """
    rows = latents.permute(0, 2, 3, 1).flatten(0, 2).double()  # (N H W, C)
    rows = torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
    colours = pixels.permute(0, 2, 3, 1).flatten(0, 2).double()  # (N H W, 3)
    return torch.linalg.lstsq(rows, colours).solution.tolist()


def draw(latents: torch.Tensor, factors: Sequence[Sequence[float]] = FLUX_FACTORS) -> Image.Image | None:
    """Normalised latents (1, C, H, W) as an RGB image of W x H pixels; None if the factors are for another C."""
    *matrix, offset = torch.tensor(factors, dtype=torch.float32)
    if latents.shape[1] != len(matrix):
        return None
    colours = torch.einsum("chw,ck->hwk", latents[0].float().cpu(), torch.stack(matrix)) + offset
    return Image.fromarray((127.5 * (colours.clamp(-1, 1) + 1)).to(torch.uint8).numpy())
