"""The measuring instruments: a small network that names what a picture shows, and figures computed from pixels.

    python -m training.measure --run FOLDER --steps N       # trains the network on the renderer's pictures

The network sees only rendered pictures (a little blurred and noised), never generated ones. What it can tell of the
renderer's own held-out pictures is the ceiling for every figure it gives.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from . import checkpoint
from .data import Record, Shard, list_shards, open_pictures
from .vae import to_pixels
from .world.specs import (
    COLOUR_TECHNIQUES,
    COLOURS,
    MOODS,
    NO_STYLE,
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


def answers(record: Record, kind: str) -> list[int]:
    """The true answer to every question about one picture of a record; colours only where the technique keeps them."""
    picture = {"content": record.content, "style": record.other}.get(kind, record.target)
    technique = NO_STYLE.technique if kind in ("plain", "content") else record.style.technique
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


class Measurer(nn.Module):
    """Convolutional network with one answer per question."""

    def __init__(self) -> None:
        super().__init__()
        widths = ((3, 32, 2), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 192, 2), (192, 192, 1))
        layers: list[nn.Module] = []
        for into, out, stride in widths:
            layers += [nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.heads = nn.ModuleDict({name: nn.Linear(384, len(options)) for name, options in QUESTIONS.items()})

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, 3, 128, 128) in [-1, 1] -> logits (B, options) for each question."""
        features = self.features(pixels)
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)
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


def load_measurer(run: Path) -> Measurer:
    """The trained network of a run."""
    measurer = Measurer()
    measurer.load_state_dict(checkpoint.load_tensors(run / "measurer.safetensors"))
    return measurer.eval()


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
    pictures = {(s.name, kind): open_pictures(run / "records", s, kind) for s in shards for kind in _KINDS}
    torch.manual_seed(seed)
    measurer = Measurer().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(measurer.parameters(), lr=2e-3, weight_decay=0.02)
    state = checkpoint.load_state(run / "measurer_state.pt")
    if state is not None:
        measurer.load_state_dict(state["measurer"])
        optimizer.load_state_dict(state["optimizer"])
    for step in range(state["step"] if state else 0, steps):
        rng = checkpoint.chance(seed, step)
        shard = shards[int(rng.integers(len(shards)))]
        numbers = rng.integers(shard.count, size=batch)
        kinds = [str(kind) for kind in rng.choice(_KINDS, size=batch, p=(0.45, 0.1, 0.1, 0.35))]
        shown = np.stack([pictures[shard.name, kind][n] for kind, n in zip(kinds, numbers, strict=True)])
        truth = torch.tensor([answers(shard.record(int(n)), kind) for kind, n in zip(kinds, numbers, strict=True)])
        pixels = _roughen(to_pixels(shown), rng)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 50) * max(0.01, min(1.0, (1 - step / steps) / 0.6))
        with torch.autocast("cpu", torch.bfloat16):
            logits = measurer(pixels)
        loss = sum(F.cross_entropy(logits[name].float(), truth[:, i]) for i, name in enumerate(QUESTIONS))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if (step + 1) % 100 == 0:
            log.info("step %d of %d, loss %.3f", step + 1, steps, float(loss))
            done = {"measurer": measurer.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            checkpoint.save_state(run / "measurer_state.pt", done)
    checkpoint.save_tensors(run / "measurer.safetensors", measurer.state_dict())
    return measurer.eval()


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
    parser.add_argument("--steps", type=int, default=1200)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(2)
    measurer = train_measurer(arguments.run, arguments.steps)
    shard = list_shards(arguments.run / "records", "held_out")[0]
    numbers = list(range(512))
    pictures = np.asarray(open_pictures(arguments.run / "records", shard, "target")[:512])
    log.info("held out: %s", accuracy(measurer.log_chances(pictures), truth_table(shard, numbers, "target")))


if __name__ == "__main__":
    main()
