"""What an eye sees and `judge` does not ask for: shape, and whether an image could be the renderer's.

distance   the Fréchet distance of the measuring network's features between images and the renderer's answers to other
           trials. Its floor is that of the renderer's own answers to the same trials: as few images, so as much chance.
told       how often a small network tells images from the renderer's answers to the same trials, each alone or the two
           side by side. It begins as the measuring network, learns from three quarters of the trials and is asked about
           the last quarter, four times over; 0.5 is perfect.
palettes   of two images, alike but for their foreign style images, whether each has the palette of its own one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .autoencoder import to_pixels
from .foreign_images import FOREIGN_KINDS, foreign_image
from .judge import APART
from .measure import Measurer, palette_distance
from .trials import Painter, Trial, make_trial, render_number

OTHERS, OTHER_TRIALS = 512, 10_000  # how many other trials, and the number of the first
FOLDS, EPOCHS, PAIRS_AT_ONCE, RATE = 4, 8, 16, 1e-3
PAIRS = 24  # of foreign style images
Eye = dict[str, dict[str, float]]


@torch.no_grad()
def features(measurer: Measurer, images: Sequence[np.ndarray]) -> np.ndarray:
    """float64 (N, 224): the means of what the measuring network sees near and far; images uint8 (128, 128, 3)."""
    parts = []
    for start in range(0, len(images), 64):
        near = measurer.near(to_pixels(np.stack(images[start : start + 64])))
        parts.append(torch.cat([near.mean((2, 3)), measurer.far(near).mean((2, 3))], 1))
    return torch.cat(parts).double().numpy()


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Between the normal distributions with the moments of two samples (N, C) and (M, C)."""
    roots = [(each - each.mean(0)) / (len(each) - 1) ** 0.5 for each in (a, b)]  # root.T @ root is the covariance
    spreads = sum(float((root**2).sum()) for root in roots)
    shared = float(np.linalg.norm(roots[0] @ roots[1].T, "nuc"))  # the trace of the root of both covariances' product
    return float(((a.mean(0) - b.mean(0)) ** 2).sum()) + spreads - 2 * shared


class Critic(nn.Module):
    """Whether an image is rendered: the measuring network up to its 16 x 16 places, and the mean of their verdicts."""

    def __init__(self, measurer: Measurer) -> None:
        super().__init__()
        self.near, self.verdict = copy.deepcopy(measurer.near), nn.Conv2d(96, 1, 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, h, w) in [-1, 1] -> log odds (B,)."""
        return self.verdict(self.near(pixels)).mean((1, 2, 3))


def _roughly(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A window of 112 pixels, half of the time mirrored, so that no image is learnt by heart."""
    y, x = rng.integers(pixels.shape[-1] - 111, size=2)
    window = pixels[:, :, y : y + 112, x : x + 112]
    return window.flip(3) if rng.random() < 0.5 else window


def log_odds(
    measurer: Measurer, numbers: Sequence[int], made: np.ndarray, rendered: np.ndarray, epochs: int = EPOCHS
) -> np.ndarray:
    """float (2, N): how surely each image is taken for rendered by a network that saw no image of its record.

    numbers: of the trials; made, rendered: uint8 (N, 128, 128, 3), the answers to them.
    """
    fold = np.array(numbers) // 2 % FOLDS  # a blend shows the styles of both records of a pair
    told = np.zeros((2, len(made)))
    for held_out in range(FOLDS):
        torch.manual_seed(held_out)
        rng, critic = np.random.default_rng(held_out), Critic(measurer).train()
        optimizer = torch.optim.AdamW(critic.parameters(), lr=RATE, weight_decay=0.05)
        learnt = np.flatnonzero(fold != held_out)
        per_epoch = -(-len(learnt) // PAIRS_AT_ONCE)
        rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=epochs * per_epoch)
        for _ in range(epochs):
            for chosen in np.array_split(rng.permutation(learnt), per_epoch):
                pixels = _roughly(to_pixels(np.concatenate([made[chosen], rendered[chosen]])), rng)
                truth = torch.tensor([0.0, 1.0]).repeat_interleave(len(chosen))
                optimizer.zero_grad(set_to_none=True)
                F.binary_cross_entropy_with_logits(critic(pixels), truth).backward()
                optimizer.step()
                rates.step()
        critic.eval()
        for number in np.flatnonzero(fold == held_out):
            with torch.no_grad():
                pixels = to_pixels(np.stack([made[number], rendered[number]]))
                told[:, number] = ((critic(pixels) + critic(pixels.flip(3))) / 2).numpy()
    return told


def told_alone(told: np.ndarray) -> float:
    """The share of images (2, N) that are rightly told, each by itself."""
    return round(float(np.mean([told[0] < 0, told[1] >= 0])), 3)


def told_of_two(told: np.ndarray) -> float:
    """The share of trials (2, N) in which the renderer's answer seems the more likely one; half of the ties."""
    return round(float(np.mean(told[0] < told[1]) + np.mean(told[0] == told[1]) / 2), 3)


def look(measurer: Measurer, trials: Sequence[Trial], made: Sequence[np.ndarray]) -> tuple[Eye, np.ndarray]:
    """Distance, its floor and what is told, of each mode; the log odds (2, N) that made and rendered are rendered."""
    others = {
        (kind, settled): features(
            measurer, [render_number(OTHER_TRIALS + number, settled)[kind] for number in range(OTHERS)]
        )
        for kind, settled in {(trial.kind, trial.settled) for trial in trials}
    }
    truths = [trial.truth for trial in trials]
    told = log_odds(measurer, [trial.number for trial in trials], np.stack(made), np.stack(truths))
    seen, seen_truths = features(measurer, made), features(measurer, truths)
    modes = np.array([trial.mode for trial in trials])
    figures: Eye = {}
    for trial in trials:
        if trial.mode in figures:
            continue
        those, reference = modes == trial.mode, others[trial.kind, trial.settled]
        figures[trial.mode] = {
            "distance": round(frechet_distance(seen[those], reference), 2),
            "floor": round(frechet_distance(seen_truths[those], reference), 2),
            "told_alone": told_alone(told[:, those]),
            "told_of_two": told_of_two(told[:, those]),
        }
    return figures, told


def own_palettes(painter: Painter, pairs: int = PAIRS) -> float:
    """Share of images that are nearer to their own foreign style image's palette than to that of the image beside."""
    nearer: list[bool] = []
    number = 0
    while len(nearer) < 2 * pairs:
        kinds = [FOREIGN_KINDS[(number + step) % len(FOREIGN_KINDS)] for step in (0, 1 + number // 4 % 3)]
        styles = [foreign_image(kind, 2 * number + side) for side, kind in enumerate(kinds)]
        if palette_distance(*styles) > APART:
            prompt = make_trial("style", number).prompt
            made = [painter.paint(prompt, styles=(style,), seed=number) for style in styles]
            for image, own, other in zip(made, styles, styles[::-1], strict=True):
                nearer.append(palette_distance(image, own) < palette_distance(image, other))
        number += 1
    return round(float(np.mean(nearer)), 3)
