"""The measuring instruments: a small network that names what a picture shows, and figures computed from pixels.

    python -m training.measure --run FOLDER --steps N       # trains the network on the renderer's pictures

It writes training/measurer.safetensors, which the evaluation and the tests of meaning read.

The network sees only rendered pictures (a little blurred and noised), never generated ones; unlike the model it also
sees styles outside the training range, or it could not judge them. What it can tell of the renderer's own held-out
pictures is the ceiling for every figure it gives.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from . import checkpoint, world
from .autoencoder import to_pixels
from .command import positive, run_command
from .data import HELD_OUT_SEED, Record, Shard, list_shards, make_record, open_pictures
from .muon import Muon
from .precision import autocast
from .world.specs import (
    COLOUR_TECHNIQUES,
    COLOURS,
    MOODS,
    PATTERNS,
    PLAIN_SCENE,
    SCENES,
    SUBJECTS,
    TECHNIQUES,
    Subject,
)

log = logging.getLogger(__name__)

QUESTIONS: dict[str, tuple[str, ...]] = {
    "subject": SUBJECTS,
    "colour": tuple(COLOURS),
    "second_colour": tuple(COLOURS),
    "pattern": PATTERNS,
    "mood": MOODS,
    "scene": (*SCENES, PLAIN_SCENE),
    "technique": TECHNIQUES,
}
IDENTITY = ("colour", "second_colour", "pattern", "mood")
UNKNOWN = -100  # no answer: the question makes no sense for this picture
_KINDS = ("target", "plain", "content", "style")
MEASURER = Path(__file__).parent / "measurer.safetensors"
_LOOKS = 4  # places
WIDE_SEED = HELD_OUT_SEED + 5_000_000
WIDE_COUNT, WIDE_SHARE = 1536, 0.3  # records with styles outside the training range, and their share of a batch
_MUON_RATE, _ADAM_RATE = 6e-3, 3e-3


def answers(record: Record, kind: str) -> list[int]:
    """The true answer to every question about one picture of a record; colours only where the technique keeps them."""
    picture = record.shown(kind)
    technique = record.technique(kind)
    subject = picture.subject
    coloured = technique in COLOUR_TECHNIQUES
    truth = {
        "subject": subject.kind,
        "colour": subject.colour if coloured else None,
        "second_colour": subject.second_colour if coloured and subject.pattern != "plain" else None,
        "pattern": subject.pattern if coloured else None,
        "mood": subject.mood,
        "scene": picture.scene.kind,
        "technique": technique,
    }
    return [UNKNOWN if truth[name] is None else options.index(truth[name]) for name, options in QUESTIONS.items()]


def block(into: int, out: int, stride: int = 1) -> tuple[nn.Module, ...]:
    """A 3 x 3 convolution, batch norm and ReLU."""
    return nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)


class Residual(nn.Module):
    """A block beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*block(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


class Measurer(nn.Module):
    """Convolutional network with one answer per question; under a megabyte in float16, so that tests can carry it.

    Beside the means and maxima of the whole picture it reads `_LOOKS` places of its own choice: a face is small.
    """

    def __init__(self) -> None:
        super().__init__()
        self.near = nn.Sequential(*block(3, 24, 2), *block(24, 48, 2), Residual(48), *block(48, 96, 2), Residual(96))
        self.far = nn.Sequential(*block(96, 128, 2), Residual(128))
        self.attention = nn.Conv2d(96 + 128, _LOOKS, 1)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(2 * 128 + _LOOKS * (96 + 128), len(options)) for name, options in QUESTIONS.items()}
        )

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, 3, 128, 128) in [-1, 1] -> logits (B, options) for each question."""
        near = self.near(pixels)  # (B, 96, 16, 16)
        far = self.far(near)  # (B, 128, 8, 8)
        both = torch.cat([near, F.interpolate(far, scale_factor=2.0)], 1)  # (B, 224, 16, 16)
        weights = self.attention(both).flatten(2).softmax(2)  # (B, looks, 256)
        seen = torch.einsum("blp,bcp->blc", weights, both.flatten(2)).flatten(1)
        pooled = torch.cat([far.mean((2, 3)), far.amax((2, 3)), seen], 1)
        return {name: head(pooled) for name, head in self.heads.items()}

    @torch.no_grad()
    def log_chances(self, pictures: np.ndarray, batch: int = 64) -> dict[str, np.ndarray]:
        """uint8 (N, H, W, 3) -> log probabilities (N, options) for each question."""
        self.eval()
        parts: dict[str, list[np.ndarray]] = {name: [] for name in QUESTIONS}
        for start in range(0, len(pictures), batch):
            for name, logits in self(to_pixels(pictures[start : start + batch])).items():
                parts[name].append(torch.log_softmax(logits.float(), 1).numpy())
        return {name: np.concatenate(values) for name, values in parts.items()}


def load_measurer(path: Path = MEASURER) -> Measurer:
    """The trained network of a file, in float32."""
    measurer = Measurer()
    measurer.load_state_dict(checkpoint.load_tensors(path))
    return measurer.eval()


def save_measurer(path: Path, measurer: Measurer, facts: dict[str, Any]) -> None:
    """The network in float16, which names the same answers at half the size."""
    halves = {name: t.half() if t.is_floating_point() else t for name, t in measurer.state_dict().items()}
    checkpoint.save_tensors(path, halves, facts)


def accuracy(log_chances: dict[str, np.ndarray], truth: np.ndarray) -> dict[str, float | None]:
    """Share of right answers per question; truth int (N, questions)."""
    result: dict[str, float | None] = {}
    for column, name in enumerate(QUESTIONS):
        known = truth[:, column] != UNKNOWN
        right = log_chances[name].argmax(1)[known] == truth[known, column]
        result[name] = round(float(right.mean()), 3) if known.any() else None
    return result


def identity_score(log_chances: dict[str, np.ndarray], number: int, subject: Subject) -> float:
    """How well picture `number` fits an identity: log probability of its colours, pattern and mood."""
    score = 0.0
    for name in IDENTITY:
        if name == "second_colour" and subject.pattern == "plain":
            continue
        score += float(log_chances[name][number, QUESTIONS[name].index(getattr(subject, name))])
    return score


_DIRECTIONS = np.random.default_rng(5).standard_normal((3, 24)).astype(np.float32)
_DIRECTIONS /= np.linalg.norm(_DIRECTIONS, axis=0)


def palette_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Sliced Wasserstein distance of the colours of two pictures, in levels of 0..255."""

    def sorted_colours(picture: np.ndarray) -> np.ndarray:
        small = cv2.resize(picture, (64, 64), interpolation=cv2.INTER_AREA).reshape(-1, 3).astype(np.float32)
        return np.sort(small @ _DIRECTIONS, 0)

    return float(np.abs(sorted_colours(a) - sorted_colours(b)).mean())


def outline_agreement(picture: np.ndarray, edges: np.ndarray) -> float:
    """Correlation of a picture's blurred gradient with the blurred outlines of a drawing, -1..1.

    picture uint8 (H, W, 3); edges uint8 (2H, 2W).
    """
    grey = cv2.GaussianBlur(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 1.0)
    gradient = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    height, width = grey.shape
    outlines = cv2.resize(edges.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    soft = [cv2.GaussianBlur(values, (0, 0), 1.5) for values in (gradient, outlines)]
    return float(np.corrcoef(soft[0].ravel(), soft[1].ravel())[0, 1])


def train_measurer(run: Path, steps: int, batch: int = 64, seed: int = 3) -> Measurer:
    """Train on the square training records, or go on where it was stopped."""
    shards = [shard for shard in list_shards(run / "records", "train") if shard.height == shard.width]
    if not shards:
        raise FileNotFoundError(f"{run / 'records'}: no square records yet; run training.data first")
    pictures = {(s.name, kind): open_pictures(run / "records", s, kind) for s in shards for kind in _KINDS}
    torch.manual_seed(seed)
    measurer = Measurer().to(memory_format=torch.channels_last)
    kernels = [p for p in measurer.parameters() if p.dim() == 4 and p.shape[0] > _LOOKS and p.shape[1] > 3]
    others = [p for p in measurer.parameters() if all(p is not kernel for kernel in kernels)]
    optimizers = (Muon(kernels, lr=0.0), torch.optim.AdamW(others, lr=0.0, weight_decay=0.02))
    state = checkpoint.load_state(run / f"measurer_state_{seed}.pt")
    if state is not None:
        measurer.load_state_dict(state["measurer"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
    wide, wide_truth = wide_pictures(WIDE_COUNT)
    for step in range(state["step"] if state else 0, steps):
        rng = checkpoint.chance(seed, step)
        shard = shards[int(rng.integers(len(shards)))]
        numbers = rng.integers(shard.count, size=batch)
        kinds = [str(kind) for kind in rng.choice(_KINDS, size=batch, p=(0.45, 0.1, 0.1, 0.35))]
        shown = np.stack([pictures[shard.name, kind][n] for kind, n in zip(kinds, numbers, strict=True)])
        truth = torch.tensor([answers(shard.record(int(n)), kind) for kind, n in zip(kinds, numbers, strict=True)])
        places = rng.integers(len(wide), size=int(WIDE_SHARE * batch))
        shown[: len(places)], truth[: len(places)] = wide[places], torch.from_numpy(wide_truth[places])
        pixels = _roughen(to_pixels(shown), rng)
        factor = min(1.0, (step + 1) / 50) * min(1.0, (1 - step / steps) / 0.6)
        for optimizer, rate in zip(optimizers, (_MUON_RATE, _ADAM_RATE), strict=True):
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        with autocast("cpu"):
            logits = measurer(pixels)
        loss = sum(F.cross_entropy(logits[name].float(), truth[:, i]) for i, name in enumerate(QUESTIONS))
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        if (step + 1) % 50 == 0:
            log.info("step %d of %d, loss %.3f", step + 1, steps, float(loss.detach()))
            saved = [optimizer.state_dict() for optimizer in optimizers]
            done = {"measurer": measurer.state_dict(), "optimizers": saved, "step": step + 1}
            checkpoint.save_state(run / f"measurer_state_{seed}.pt", done)
    return measurer.eval()


def wide_pictures(count: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (2 * count, 128, 128, 3) in styles outside the training range, and their answers.

    Of records that nothing else uses.
    """
    pictures, truth = [], []
    for number in range(count):
        record = make_record(WIDE_SEED + 2 * number + 1, "held_out")
        for kind, picture in (("target", record.target), ("style", record.other)):
            pictures.append(world.render(picture, record.style))
            truth.append(answers(record, kind))
    return np.stack(pictures), np.array(truth)


def _roughen(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Mirror, blur and noise by chance, so that small flaws of generated pictures do not confuse the network."""
    if rng.random() < 0.5:
        pixels = pixels.flip(3)
    if rng.random() < 0.4:
        pixels = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return pixels + 0.08 * float(rng.random()) * torch.randn_like(pixels)


def truth_table(shard: Shard, numbers: list[int], kind: str) -> np.ndarray:
    """int (N, questions): the right answers about one kind of picture of these records."""
    return np.array([answers(shard.record(number), kind) for number in numbers])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train the measuring network.")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--steps", type=positive, default=1200)
    parser.add_argument("--to", type=Path, default=MEASURER, help="default: %(default)s")
    parser.add_argument("--threads", type=positive, default=2)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    measurer = train_measurer(arguments.run, arguments.steps)
    shard = list_shards(arguments.run / "records", "held_out")[0]
    numbers = list(range(512))
    facts: dict[str, Any] = {"steps": arguments.steps}
    for kind in ("target", "plain"):
        pictures = np.asarray(open_pictures(arguments.run / "records", shard, kind)[:512])
        right = accuracy(measurer.log_chances(pictures), truth_table(shard, numbers, kind))
        log.info("held out, %s: %s", kind, right)
        facts[kind] = right
    save_measurer(arguments.to, measurer, facts)


if __name__ == "__main__":
    run_command(main)
