"""Style images such as people bring: nothing of the toy world is in them. Drawn from a seed, uint8 (128, 128, 3)."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

SIDE = 128
_ROWS, _COLUMNS = np.mgrid[:SIDE, :SIDE] / SIDE


def _hue(rng: np.random.Generator, saturation: float, value: float) -> np.ndarray:
    """An RGB colour (3,) in 0..255 of any hue."""
    hsv = np.array([[[rng.uniform(0, 360), saturation, value]]], np.float32)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0] * 255


def _cloud(rng: np.random.Generator, size: float) -> np.ndarray:
    """Smooth noise (SIDE, SIDE) of unit deviation; size in pixels."""
    noise = cv2.GaussianBlur(rng.standard_normal((SIDE, SIDE)), (0, 0), size)
    return noise / noise.std()


def _photograph(rng: np.random.Generator) -> np.ndarray:
    """Sky, ground and blurred things in soft light, with sensor noise."""
    sky, ground = _hue(rng, rng.uniform(0.1, 0.7), rng.uniform(0.3, 1)), _hue(rng, 0.4, rng.uniform(0.2, 0.7))
    image = sky + (ground - sky) * np.clip(_ROWS * 1.6 - 0.3, 0, 1)[..., None]
    for _ in range(9):
        y, x, size = rng.uniform(0.2, 0.9), rng.uniform(0, 1), rng.uniform(0.05, 0.2)
        distance = np.hypot(_ROWS - y, (_COLUMNS - x) * rng.uniform(0.6, 1.6))
        amount = np.clip((size - distance) / 0.04, 0, 1)[..., None]
        image = image + (_hue(rng, 0.5, rng.uniform(0.2, 0.9)) - image) * amount
    return cv2.GaussianBlur(image, (0, 0), 1.0) + rng.normal(0, 5, image.shape)


def _wash(rng: np.random.Generator) -> np.ndarray:
    """Watercolour: three transparent washes on white paper, darker at their edges."""
    image = np.full((SIDE, SIDE, 3), 250.0)
    for _ in range(3):
        shape = _cloud(rng, 14)
        inside, edge = np.clip(shape * 3, 0, 1), np.exp(-((shape / 0.12) ** 2))
        amount = (0.7 * inside + 0.25 * edge + 0.04 * _cloud(rng, 1) * inside).clip(0, 1)[..., None]
        image = image * (1 - amount * (1 - _hue(rng, rng.uniform(0.4, 0.8), rng.uniform(0.7, 0.95)) / 255))
    return image


def _ink(rng: np.random.Generator) -> np.ndarray:
    """Black brush strokes on paper of one pale colour."""
    paper, ink = _hue(rng, rng.uniform(0.02, 0.25), 0.95), rng.uniform(10, 50, 3)
    strokes = np.zeros((SIDE, SIDE))
    for _ in range(7):
        ends = rng.uniform(0, SIDE, (4, 2))
        t = np.linspace(0, 1, 40)[:, None]
        curve = (1 - t) ** 3 * ends[0] + 3 * t * (1 - t) ** 2 * ends[1] + 3 * t**2 * (1 - t) * ends[2] + t**3 * ends[3]
        cv2.polylines(strokes, [curve.astype(np.int32)], False, 1.0, int(rng.integers(2, 12)), cv2.LINE_AA)
    amount = (cv2.GaussianBlur(strokes, (0, 0), 0.8) * (0.85 + 0.1 * _cloud(rng, 3))).clip(0, 1)[..., None]
    return paper + (ink - paper) * amount


def _glow(rng: np.random.Generator) -> np.ndarray:
    """Bright tubes before a dark wall."""
    image = np.ones((SIDE, SIDE, 3)) * _hue(rng, 0.8, rng.uniform(0.05, 0.25))
    for _ in range(4):
        tube = np.zeros((SIDE, SIDE))
        centre, axes = rng.integers(20, 108, 2), rng.integers(10, 50, 2)
        whole, start = (float(value) for value in rng.uniform(120, 360, 2))
        cv2.ellipse(tube, centre.tolist(), axes.tolist(), start, 0, whole, 1.0, 3, cv2.LINE_AA)
        light = (tube + 6 * cv2.GaussianBlur(tube, (0, 0), 7))[..., None]
        image = image + light * _hue(rng, rng.uniform(0.6, 1), 1.0)
    return image


_DRAW: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "photograph": _photograph, "wash": _wash, "ink": _ink, "glow": _glow,
}  # fmt: skip
FOREIGN_KINDS = tuple(_DRAW)


def foreign_image(kind: str, seed: int) -> np.ndarray:
    """The image of a kind and a seed."""
    rng = np.random.default_rng([seed, FOREIGN_KINDS.index(kind)])
    return _DRAW[kind](rng).clip(0, 255).astype(np.uint8)
