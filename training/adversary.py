"""An adversary in latent space: heads on the frozen teacher's features that tell drawn latents from real ones.

What squared error averages over comes out soft, and a likely image beside it costs as much as an unlikely one. The
adversary knows only whether latents could be an image's (Sauer et al., 2024, arXiv 2403.12015), at some noise, and
whether they could be one of what was asked (projection: Miyato and Koyama, 2018).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from .measure import QUESTIONS, UNKNOWN
from .teacher import CHANNELS, FAR, NEAR, Teacher

WIDTH = 64
NOISIEST = 0.6  # time up to which both are noised


class Head(nn.Module):
    """Feature maps (B, C, h, w) and what was asked (B, WIDTH) -> a verdict on each place (B, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, WIDTH, 3, 1, 1), nn.LeakyReLU(0.2), nn.Conv2d(WIDTH, WIDTH, 3, 1, 1), nn.LeakyReLU(0.2)
        )
        self.verdict = nn.Conv2d(WIDTH, 1, 1)

    def forward(self, maps: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        hidden = self.body(maps)
        return self.verdict(hidden)[:, 0] + torch.einsum("bchw,bc->bhw", hidden, asked) / WIDTH**0.5


class Heads(nn.Module):
    """All that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.far = Head(NEAR), Head(FAR)
        self.asked = nn.ModuleDict({name: nn.Embedding(len(options), WIDTH) for name, options in QUESTIONS.items()})
        for embedding in self.asked.values():
            nn.init.zeros_(embedding.weight)

    def forward(self, near: torch.Tensor, far: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        """Maps of the teacher, told int64 (B, questions) with UNKNOWN for what nobody asked -> verdicts (B, places)."""
        rows = [
            embedding(told[:, column].clamp_min(0)) * (told[:, column] != UNKNOWN)[:, None]
            for column, embedding in enumerate(self.asked.values())
        ]
        asked = torch.stack(rows).sum(0)
        return torch.cat([self.near(near, asked).flatten(1), self.far(far, asked).flatten(1)], 1).float()


class Adversary(nn.Module):
    """The teacher's eyes and the heads."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.eyes = {"near": teacher.near, "far": teacher.far}  # frozen, and saved elsewhere
        self.heads = Heads()

    def _look(self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The teacher's maps of latents (B, 16, h, w) noised up to times (B,)."""
        level = times[:, None, None, None]
        noisy = (1 - level) * latents + level * noise
        plane = level.expand(-1, 1, *latents.shape[2:])
        near = self.eyes["near"](torch.cat([noisy, plane], 1).to(memory_format=torch.channels_last))
        return near, self.eyes["far"](near)

    def forward(self, made: torch.Tensor, clean: torch.Tensor, told: torch.Tensor) -> dict[str, torch.Tensor]:
        """The model's loss "real", which leaves the heads alone, and theirs, "critic", which leaves the model alone.

        made, clean: latents (B, 16, h, w) that the model draws, and real ones that answer the same requests.
        """
        assert made.shape[1] == CHANNELS
        times = NOISIEST * torch.rand(len(made), device=made.device)
        noise = torch.randn_like(made)
        seen = self._look(made, noise, times)
        frozen = {name: parameter.detach() for name, parameter in self.heads.named_parameters()}
        real = -functional_call(self.heads, frozen, (*seen, told)).mean()
        with torch.no_grad():
            right = self._look(clean, noise, times)
        false = self.heads(*(maps.detach() for maps in seen), told)
        critic = F.relu(1 + false).mean() + F.relu(1 - self.heads(*right, told)).mean()
        return {"real": real, "critic": critic}
