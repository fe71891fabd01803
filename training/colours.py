"""How far the colours of what a prediction leads to are from the right ones, wherever in the image they are.

A foreign style image asks for its palette first. Squared error tells colours place by place, and so hardly tells them
at all where nobody knows what is where: the middle of two is its best answer. Here the colours are compared as the
evaluation's `palette_distance` does it, by their sliced Wasserstein distance, on the preview of latents.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

DIRECTIONS = 16


class Colours(nn.Module):
    """Latents' previews, and the distance of two."""

    def __init__(self, run: Path) -> None:
        """Raises `FileNotFoundError` where the run has no VAE."""
        super().__init__()
        self.matrix: torch.Tensor
        self.directions: torch.Tensor
        constants = json.loads((run / "vae.json").read_text())
        self.register_buffer("matrix", torch.tensor(constants["preview_matrix"]))  # (16, 3); the bias cancels
        directions = torch.randn(3, DIRECTIONS, generator=torch.Generator().manual_seed(5))
        self.register_buffer("directions", directions / directions.norm(dim=0))

    def forward(self, made: torch.Tensor, right: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Mean distance of the colours, in halves of the range; made, right: latents (B, 16, h, w), times (B,).

        Early predictions count little: they are the mean of many images, whose colours are paler than any one's.
        """
        projected = [
            (latents.flatten(2).mT @ self.matrix @ self.directions).sort(1).values for latents in (made, right)
        ]
        distances = (projected[0] - projected[1]).abs().mean((1, 2))
        return (distances * (1 - times**2)).mean()
