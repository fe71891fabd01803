"""An adversary in latent space: a network that learns to tell drawn latents from real ones beside the model.

What squared error averages over comes out soft, and a likely image beside it costs as much as an unlikely one. The
adversary knows only whether latents could be an image's (Sauer et al., 2024, arXiv 2403.12015), at some noise, and
whether they could be one of what was asked (projection: Miyato and Koyama, 2018).

It is always shown two, the drawn and the real one that answers the same request (relativistic: Jolicoeur-Martineau,
arXiv 1807.00734): 150 lessons of 32 taught to tell 94 % of such pairs, and a loss of each by itself at most 78 %. Its
eyes begin as the teacher's, and learn as well.
"""

from __future__ import annotations

import copy
from collections import deque

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from .measure import QUESTIONS, UNKNOWN
from .teacher import CHANNELS, FAR, NEAR, Teacher

WIDTH = 64
NOISIEST = 0.5  # time up to which both are noised
KEPT, REPLAYED = 48, 2  # how many of the last batches it remembers, and how many of them it learns from again each time


class Head(nn.Module):
    """Feature maps (B, C, h, w) and what was asked (B, WIDTH) -> a verdict on each place (B, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, WIDTH, 3, 1, 1), nn.LeakyReLU(0.2), nn.Conv2d(WIDTH, WIDTH, 3, 1, 1), nn.LeakyReLU(0.2)
        )
        self.verdict = nn.Conv2d(WIDTH, 1, 1)
        for parameter in self.verdict.parameters():
            nn.init.zeros_(parameter)  # what it does not know yet teaches nothing

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


class Judge(nn.Module):
    """Eyes that begin as the teacher's, and heads."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.near, self.far = (copy.deepcopy(part).eval().requires_grad_(True) for part in (teacher.near, teacher.far))
        self.heads = Heads()

    def forward(
        self, latents: torch.Tensor, told: torch.Tensor, times: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """Verdicts (B, places) on latents (B, 16, h, w) noised up to times (B,); told as in `Heads`."""
        level = times[:, None, None, None]
        noisy = (1 - level) * latents + level * noise
        plane = level.expand(-1, 1, *latents.shape[2:])
        near = self.near(torch.cat([noisy, plane], 1).to(memory_format=torch.channels_last))
        verdicts: torch.Tensor = self.heads(near, self.far(near), told)
        return verdicts


Lesson = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # drawn latents, real ones, what was asked


class Adversary(nn.Module):
    """The judge, and a memory of what the model drew."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.judge = Judge(teacher)
        self._kept: deque[Lesson] = deque(maxlen=KEPT)

    def forward(self, made: torch.Tensor, clean: torch.Tensor, told: torch.Tensor) -> dict[str, torch.Tensor]:
        """The model's loss "real", which leaves the judge alone, and the latter's "critic", which moves no model.

        made, clean: latents (B, 16, h, w) that the model draws, and real ones that answer the same requests.
        """
        assert made.shape[1] == CHANNELS
        noised = _noise(made)
        frozen = {name: parameter.detach() for name, parameter in self.judge.named_parameters()}
        with torch.no_grad():
            right = self.judge(clean, told, *noised)
        real = F.softplus(right - functional_call(self.judge, frozen, (made, told, *noised))).mean()
        again = torch.randint(len(self._kept), (REPLAYED,)).tolist() if self._kept else []
        lessons = [(made.detach(), clean, told), *(self._kept[number] for number in again)]
        self._kept.append(lessons[0])
        return {"real": real, "critic": torch.stack([self._lesson(*each) for each in lessons]).mean()}

    def get_extra_state(self) -> list[Lesson]:
        """The memory: a run that is resumed remembers."""
        return list(self._kept)

    def set_extra_state(self, state: list[Lesson]) -> None:
        """Restore it."""
        self._kept = deque(state, KEPT)

    def _lesson(self, made: torch.Tensor, clean: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        """How little the real ones seem the more real, place by place, both equally noised."""
        noised = _noise(made)
        return F.softplus(self.judge(made, told, *noised) - self.judge(clean, told, *noised)).mean()


def _noise(latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Times (B,) and noise (B, 16, h, w)."""
    return NOISIEST * torch.rand(len(latents), device=latents.device), torch.randn_like(latents)
