"""A frozen network that reads latents, noisy or clean, and what the model learns from it beside the pictures.

    python -m training.teacher --run FOLDER --steps N       # trains it, minutes; writes FOLDER/teacher.safetensors

Squared error alone tells a subject late: it is a quarter of the picture, its face a hundredth. The teacher knows what
matters in this world, and gives it weight from the first step on, in three ways:
  alignment  the model's hidden image tokens, half-way through, have to foretell what the teacher sees in the clean
             picture at their place (representation alignment: Yu et al., 2024, arXiv 2410.06940, with our own teacher)
  likeness   the picture that a prediction leads to has to look to it like the right one, place by place
  reading    the picture that a prediction leads to has to read as what was asked: subject, colours, pattern, mood,
             scene, technique (the paper's reward learning, with differentiable answers instead of a score)
The evaluation's own network is another one: it sees pixels, and never a generated one.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from . import checkpoint
from .batches import Batch, RecordStore
from .command import positive, run_command
from .measure import QUESTIONS, UNKNOWN, Residual, block
from .model import TinyUso
from .muon import Muon
from .precision import autocast
from .sampling import clean_latents

log = logging.getLogger(__name__)

CHANNELS, NEAR, FAR, LOOKS = 16, 96, 128, 4
DEPTH = 1  # the single-stream block whose output is aligned: half-way
LESSONS = {"alignment": 0.5, "likeness": 1.0, "reading": 0.12}  # their weights beside the squared error
# What is small in an image is told late. Of answers that are not named here the weight is 1.
QUESTION_WEIGHTS = {"second_colour": 3.0, "pattern": 2.0}
MILDEST = 0.5  # a prediction at time t is read with noise of a time between this share of t and t
_MUON_RATE, _ADAM_RATE = 6e-3, 3e-3
_KINDS = ("target", "plain", "style", "content")


class Teacher(nn.Module):
    """Convolutional network over latents (B, 16, h, w) at a flow time; one answer per question of `measure`."""

    def __init__(self) -> None:
        super().__init__()
        self.near = nn.Sequential(*block(CHANNELS + 1, NEAR), Residual(NEAR), Residual(NEAR))
        self.far = nn.Sequential(*block(NEAR, FAR, 2), Residual(FAR), Residual(FAR), nn.BatchNorm2d(FAR, affine=False))
        self.attention = nn.Conv2d(FAR, LOOKS, 1)
        self.heads = nn.ModuleDict(
            {name: nn.Linear((2 + LOOKS) * FAR, len(options)) for name, options in QUESTIONS.items()}
        )

    def features(self, latents: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Normalised latents (B, 16, h, w) and times (B,) -> (B, FAR, h / 2, w / 2), one place per packed token."""
        level = times[:, None, None, None].expand(-1, 1, *latents.shape[2:]).to(latents.dtype)
        return self.far(self.near(torch.cat([latents, level], 1).to(memory_format=torch.channels_last)))

    def forward(self, latents: torch.Tensor, times: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits (B, options) for each question."""
        return self.answer(self.features(latents, times))

    def answer(self, seen: torch.Tensor) -> dict[str, torch.Tensor]:
        """`features` -> logits (B, options) for each question."""
        weights = self.attention(seen).flatten(2).softmax(2)  # (B, looks, S)
        looked = torch.einsum("bls,bcs->blc", weights, seen.flatten(2)).flatten(1)
        pooled = torch.cat([seen.mean((2, 3)), seen.amax((2, 3)), looked], 1)
        return {name: head(pooled) for name, head in self.heads.items()}


def reading_loss(logits: dict[str, torch.Tensor], truth: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of all questions that have an answer, by their weights; truth int64 (B, questions)."""
    losses = [
        F.cross_entropy(logits[name].float(), truth[:, column], ignore_index=UNKNOWN, reduction="none")
        for column, name in enumerate(QUESTIONS)
    ]
    weights = truth.new_tensor([QUESTION_WEIGHTS.get(name, 1.0) for name in QUESTIONS], dtype=torch.float32)
    return (torch.stack(losses, 1) * weights).sum() / (weights * (truth != UNKNOWN)).sum().clamp_min(1)


def doubt(logits: dict[str, torch.Tensor], left_open: torch.Tensor) -> torch.Tensor:
    """Mean entropy of the answers to what is left open, bool (B, questions): a face should show some mood clearly."""
    entropies = [
        -(F.log_softmax(logits[name].float(), 1) * F.softmax(logits[name].float(), 1)).sum(1) for name in QUESTIONS
    ]
    return (torch.stack(entropies, 1) * left_open).sum() / left_open.sum().clamp_min(1)


class Lessons(nn.Module):
    """The teacher's losses; its own part, which maps hidden tokens to what the teacher sees, is thrown away."""

    def __init__(self, teacher: Teacher, width: int) -> None:
        super().__init__()
        self.teacher = teacher.eval().requires_grad_(False)
        self.foretell = nn.Sequential(nn.Linear(width, 2 * FAR), nn.SiLU(), nn.Linear(2 * FAR, FAR))
        self._hidden: torch.Tensor | None = None

    def listen(self, model: TinyUso) -> None:
        """Keep what the model's middle block gives."""
        blocks = model.transformer.single_transformer_blocks
        blocks[min(DEPTH, len(blocks) - 1)].register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: Any, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        self._hidden = output[1]  # image tokens (B, S + R, D)

    def forward(
        self, batch: Batch, clean: torch.Tensor, noisy: torch.Tensor, times: torch.Tensor, velocity: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The losses of the model's last pass by name.

        clean, noisy: latents (B, 16, h, w); times (B,); velocity (B, S, 64), the prediction at `noisy`.
        """
        hidden, self._hidden = self._hidden, None
        assert hidden is not None
        with torch.no_grad():
            seen = self.teacher.features(clean, torch.zeros_like(times))
        seen = seen.flatten(2).mT  # (B, S, FAR)
        foretold = self.foretell(hidden[:, : seen.shape[1]])
        alignment = 1 - F.cosine_similarity(foretold.float(), seen.float(), dim=-1).mean()
        return {"alignment": alignment, **self.look(batch, clean, noisy, times, velocity)}

    def look(
        self,
        batch: Batch,
        clean: torch.Tensor,
        noisy: torch.Tensor,
        times: torch.Tensor,
        velocity: torch.Tensor,
        own: bool = False,
    ) -> dict[str, torch.Tensor]:
        """Likeness and reading of the pictures that the predictions lead to; arguments as above.

        Own: `noisy` has come from noise alone, and shows nothing yet of what the batch does not ask for. To that no
        answer is right; that there be a clear one is the third figure, "doubt".
        """
        made = clean_latents(noisy, times, velocity)
        read, noise = times * (MILDEST + (1 - MILDEST) * torch.rand_like(times)), torch.randn_like(made)
        level = read[:, None, None, None]
        seen = self.teacher.features((1 - level) * made + level * noise, read)
        with torch.no_grad():
            right = self.teacher.features((1 - level) * clean + level * noise, read)
        likeness = 1 - F.cosine_similarity(seen.float(), right.float(), dim=1).mean()
        if batch.answers is None:
            return {"likeness": likeness, "reading": likeness.new_zeros(())}
        truth, answers = batch.answers.to(times.device), self.teacher.answer(seen)
        if not own or batch.asked is None:
            return {"likeness": likeness, "reading": reading_loss(answers, truth)}
        asked = batch.asked.to(times.device)
        reading = reading_loss(answers, truth.where(asked, UNKNOWN))
        return {"likeness": likeness, "reading": reading, "doubt": doubt(answers, ~asked & (truth != UNKNOWN))}


def train_teacher(run: Path, steps: int, batch: int = 96, seed: int = 4, device: str = "cpu") -> Teacher:
    """Train on the latents of all training records, at all times of the flow; the network comes back on the CPU."""
    store = RecordStore(run)
    torch.manual_seed(seed)
    teacher = Teacher().to(device, memory_format=torch.channels_last)
    kernels = [p for p in teacher.parameters() if p.dim() == 4 and p.shape[0] > LOOKS]
    others = [p for p in teacher.parameters() if all(p is not kernel for kernel in kernels)]
    optimizers = (Muon(kernels, lr=0.0), torch.optim.AdamW(others, lr=0.0, weight_decay=0.02))
    for step in range(steps):
        rng = checkpoint.chance(seed, step)
        shard = store.draw_shard(rng)
        numbers = rng.integers(shard.count, size=batch)
        chances = (0.45, 0.15, 0.3, 0.1) if shard.height == shard.width else (0.5, 0.17, 0.33, 0.0)
        kinds = [str(kind) for kind in rng.choice(_KINDS, size=batch, p=chances)]  # content pictures are square
        clean = store.latent(shard, kinds, numbers).to(device).float()
        times = torch.from_numpy(rng.random(batch).astype(np.float32)) ** 1.5  # more of the clean end
        times[: batch // 8] = 0
        times = times.to(device)
        level = times[:, None, None, None]
        factor = min(1.0, (step + 1) / 50) * min(1.0, (1 - step / steps) / 0.6)
        for optimizer, rate in zip(optimizers, (_MUON_RATE, _ADAM_RATE), strict=True):
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        with autocast(device):
            logits = teacher((1 - level) * clean + level * torch.randn_like(clean), times)
        loss = reading_loss(logits, store.answers(shard, kinds, numbers).to(device))
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        if (step + 1) % 50 == 0:
            log.info("step %d of %d, loss %.3f", step + 1, steps, float(loss.detach()))
    return teacher.to("cpu").eval()


@torch.no_grad()
def accuracy_at(teacher: Teacher, store: RecordStore, level: float, count: int = 512) -> dict[str, float]:
    """Share of right answers about held-out targets with noise of a time, per question."""
    shard = store.shards[0]
    count = min(count, shard.count)
    numbers, kinds = np.arange(count), ["target"] * count
    clean, truth = store.latent(shard, kinds, numbers).float(), store.answers(shard, kinds, numbers)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    logits = teacher((1 - level) * clean + level * noise, torch.full((count,), level))
    result = {}
    for column, name in enumerate(QUESTIONS):
        known = truth[:, column] != UNKNOWN
        result[name] = round(float((logits[name].argmax(1) == truth[:, column])[known].float().mean()), 3)
    return result


def load_teacher(run: Path) -> Teacher:
    """The trained network of a run; raises `FileNotFoundError` where there is none."""
    path, teacher = run / "teacher.safetensors", Teacher()
    if not path.exists():
        raise FileNotFoundError(f"{path}: no teacher yet; run training.teacher first")
    teacher.load_state_dict(checkpoint.load_tensors(path))
    return teacher.eval()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train the network that teaches uso-tiny what matters.")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--steps", type=positive, default=1500)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(2)
    teacher = train_teacher(arguments.run, arguments.steps, device=arguments.device)
    held_out = RecordStore(arguments.run, "held_out")
    facts = {f"held out at {level}": accuracy_at(teacher, held_out, level) for level in (0.0, 0.3, 0.6, 0.8)}
    for name, right in facts.items():
        log.info("%s: %s", name, right)
    checkpoint.save_tensors(arguments.run / "teacher.safetensors", teacher.state_dict(), facts)


if __name__ == "__main__":
    run_command(main)
