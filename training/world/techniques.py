"""The ten techniques: from what is where (Drawing) to a picture.

Every technique is a function of a Drawing, a Style and the graded colours, with deterministic textures (few variants,
no per-picture noise): what a style image shows can be repeated exactly, so a model can learn it and a measurer can
judge it. Colours are float32 in 0..1; strokes are in pixels of a 128-pixel picture and scale with the area.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from .specs import Style

_LUMA = np.array([0.3, 0.59, 0.11], np.float32)


@dataclass(frozen=True)
class Drawing:
    """What is where: rgb (H, W, 3) uint8, edges (2H, 2W) uint8 0/1, mask (H, W) bool, face (H, W) float32 0..1."""

    rgb: np.ndarray
    edges: np.ndarray
    mask: np.ndarray
    face: np.ndarray


class Sheet:
    """A drawing made ready for a style: graded colours, palette, grid and outlines."""

    def __init__(self, drawing: Drawing, style: Style) -> None:
        self.drawing, self.style = drawing, style
        self.height, self.width = drawing.mask.shape
        self.unit = math.sqrt(self.height * self.width) / 128  # pixels per nominal pixel
        self.ink = np.array(style.ink, np.float32) / 255
        self.paper = np.array(style.paper, np.float32) / 255
        self.subject = drawing.mask[..., None].astype(np.float32)  # (H, W, 1)
        self.face = drawing.face[..., None]  # (H, W, 1)
        rows, columns = np.mgrid[: self.height, : self.width].astype(np.float32)
        self.x, self.y = columns / np.float32(self.unit), rows / np.float32(self.unit)  # nominal pixels
        colours = drawing.rgb.astype(np.float32) / 255
        luma = (colours @ _LUMA)[..., None]
        palette = self.ink * 0.9 * (1 - luma) + self.paper * luma
        if style.palette:
            shades = np.array(style.palette, np.float32) / 255
            places = np.linspace(0, 1, len(shades))
            palette = np.stack([np.interp(luma[..., 0], places, shade) for shade in shades.T], -1).astype(np.float32)
        # The surroundings take the style's palette; the subject keeps its colours, which are its identity.
        self.colours = colours + (palette - colours) * (style.grade * (1 - 0.8 * self.subject))
        self.luma = self.colours @ _LUMA  # (H, W)

    def outline(self, width: int) -> np.ndarray:
        """(H, W, 1) outlines about `width` half pixels wide, 0..1."""
        thick = cv2.dilate(self.drawing.edges, np.ones((width, width), np.uint8)).astype(np.float32)
        return cv2.resize(thick, (self.width, self.height), interpolation=cv2.INTER_AREA)[..., None]

    def strokes(self) -> np.ndarray:
        """(H, W, 1) all that a pen would draw: outlines and the face."""
        return np.maximum(self.outline(3), self.face)

    def wave(self, angle: float, period: float, wobble: float = 0.0) -> np.ndarray:
        """(H, W) stripes across `angle`, 0..1, `period` nominal pixels apart."""
        phase = self.x * math.cos(angle) + self.y * math.sin(angle)
        if wobble:
            phase = phase + wobble * smooth_noise(self.height, self.width, self.style.variant)
        return 0.5 + 0.5 * np.cos(phase * (2 * math.pi / period))

    def blur(self, picture: np.ndarray, sigma: float) -> np.ndarray:
        """Gaussian blur, sigma in nominal pixels; keeps the shape."""
        return cv2.GaussianBlur(picture, (0, 0), sigma * self.unit).reshape(picture.shape)


@lru_cache(maxsize=64)
def smooth_noise(height: int, width: int, variant: int) -> np.ndarray:
    """(H, W) float32 slow noise of unit variance."""
    rng = np.random.default_rng(7919 * variant + 11)
    total = np.zeros((height, width), np.float32)
    for cells, weight in ((4, 1.0), (9, 0.5)):
        grid = rng.standard_normal((cells, cells)).astype(np.float32)
        total += weight * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return total / total.std()


@lru_cache(maxsize=64)
def tiles(height: int, width: int, size: float, variant: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Voronoi tiles about `size` pixels wide: centre x and y (H, W) float32 and nearness to a border 0..1 (H, W)."""
    rng = np.random.default_rng(104729 * variant + 5)
    rows, columns = np.mgrid[-1 : height / size + 1, -1 : width / size + 1]
    centres = np.stack([columns + 0.5 * (rows % 2), rows], -1).reshape(-1, 2) + 0.5
    centres = (centres + rng.uniform(-0.2, 0.2, centres.shape)) * size
    y, x = np.mgrid[:height, :width].astype(np.float32)
    distance = (x[..., None] - centres[:, 0]) ** 2 + (y[..., None] - centres[:, 1]) ** 2
    nearest = np.argpartition(distance, 2, -1)[..., :2]
    near, second = np.sqrt(np.sort(np.take_along_axis(distance, nearest, -1), -1)).transpose(2, 0, 1)
    centre = centres[distance.argmin(-1)]
    border = 1 - np.clip((second - near) / 1.7, 0, 1)
    x, y = (np.clip(centre[..., axis], 0, (width, height)[axis] - 1).astype(np.float32) for axis in (0, 1))
    return x, y, border.astype(np.float32)


def _over(below: np.ndarray, colour: np.ndarray | float, amount: np.ndarray) -> np.ndarray:
    return below + (colour - below) * np.clip(amount, 0, 1)


def _flat(s: Sheet) -> np.ndarray:
    return s.colours


def _watercolour(s: Sheet) -> np.ndarray:
    shift = (0.8 + 0.8 * s.style.scale) * s.unit
    noise = smooth_noise(s.height, s.width, s.style.variant)
    other = smooth_noise(s.height, s.width, s.style.variant + 10)
    x = (s.x * s.unit + noise * shift).astype(np.float32)
    y = (s.y * s.unit + other * shift).astype(np.float32)
    wash = cv2.remap(s.blur(s.colours, 0.8), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    rim = np.abs(wash - s.blur(wash, 2.2)).mean(-1, keepdims=True)
    wash = _over(wash, s.paper, 0.24 + 0.09 * noise[..., None] - 1.6 * rim)
    wash = _over(wash, wash * 0.25, 0.85 * s.face)
    border = np.minimum(
        np.minimum(s.x, s.x.max() - s.x), np.minimum(s.y, s.y.max() - s.y)
    )[..., None] + 2.0 * noise[..., None]  # fmt: skip
    return _over(wash, s.paper, (5.5 - border) * 0.8)


def _pixel(s: Sheet) -> np.ndarray:
    size = (4 if s.style.scale < 0.6 else 5) * s.unit
    grid = (max(1, round(s.width / size)), max(1, round(s.height / size)))
    small = cv2.resize(s.colours, grid, interpolation=cv2.INTER_AREA)
    dark = cv2.resize(s.outline(1)[..., 0], grid, interpolation=cv2.INTER_AREA)
    face = cv2.resize(s.drawing.face, grid, interpolation=cv2.INTER_AREA)
    small = np.round(np.clip((small - 0.5) * 1.2 + 0.5, 0, 1) * 6) / 6
    small = small * (1 - 0.4 * np.clip(dark * 2.2 - 0.35, 0, 1))[..., None]
    small = _over(small, 0.14, np.where(face > 0.3, 1.0, 0.0)[..., None])
    return cv2.resize(small, (s.width, s.height), interpolation=cv2.INTER_NEAREST)


def _pencil(s: Sheet) -> np.ndarray:
    period = 5.0 + 2 * s.style.scale
    first, second = s.wave(s.style.angle, period), s.wave(s.style.angle + 1.5, period)
    hatch = np.clip((0.8 - s.luma) * 1.3, 0, 0.6) * first * (0.45 + 0.4 * s.subject[..., 0])
    hatch = hatch + np.clip((0.4 - s.luma) * 1.6, 0, 0.5) * second * 0.5
    amount = np.clip(np.maximum(hatch[..., None] + 0.75 * s.outline(3), 0.95 * s.face), 0, 0.95)
    return _over(np.broadcast_to(s.paper, s.colours.shape), s.ink * 0.7 + 0.1, amount)


def _halftone(s: Sheet) -> np.ndarray:
    period = 5.5 + 2.5 * s.style.scale
    raster = s.wave(s.style.angle, period) + s.wave(s.style.angle + math.pi / 2, period) - 1
    bright = np.clip((s.colours - 0.5) * 1.3 + 0.56, 0, 1)
    dots = np.clip((raster - (bright @ _LUMA * 1.9 - 0.95)) * 2.2, 0, 1)[..., None]
    bright = _over(bright, s.paper, np.float32(0.12))
    picture = _over(bright, bright * 0.35 + s.ink * 0.2, 0.5 * dots * (1 - 0.6 * s.subject))
    return _over(picture, s.ink * 0.5, s.strokes())


def _neon(s: Sheet) -> np.ndarray:
    hue = s.colours / (s.colours.max(-1, keepdims=True) + 1e-3)
    hue = np.clip((hue - 0.5) * 1.9 + 0.35, 0.05, 1)
    tube = s.blur(hue, 1.5) * (0.3 + 0.7 * s.subject) + s.paper * 0.7 * (1 - s.subject)
    lines = s.strokes()
    glow = s.blur(lines * tube, 2.5 + 2.5 * s.style.scale)
    ground = np.broadcast_to(s.ink, s.colours.shape) + s.colours * (0.04 + 0.12 * s.subject)
    return ground + 1.4 * glow + 0.8 * lines * tube + 0.22 * s.blur(lines, 0.7)


def _oil(s: Sheet) -> np.ndarray:
    length = 5.0 + 2.5 * s.style.scale
    noise = smooth_noise(s.height, s.width, s.style.variant)
    direction = s.style.angle + 0.9 * noise
    smear = np.zeros_like(s.colours)
    for step in np.linspace(-1, 1, 5, dtype=np.float32):
        x = ((s.x + step * length * np.cos(direction)) * s.unit).astype(np.float32)
        y = ((s.y + step * length * np.sin(direction)) * s.unit).astype(np.float32)
        smear += cv2.remap(s.colours, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT) / 5
    strong = np.abs(smear - s.colours).max(-1, keepdims=True) > 0.16
    paint = np.where(strong, 0.25 * smear + 0.75 * s.colours, smear)  # strokes stop at outlines
    paint = np.clip((paint - 0.5) * 1.15 + 0.5, 0, 1)
    across = s.wave(s.style.angle + math.pi / 2, 4.4 + s.style.scale, wobble=3.0) * 2 - 1
    along = s.wave(s.style.angle, 17.0, wobble=5.0)
    relief = across * (0.4 + 0.6 * along)
    paint = paint * (1 + 0.13 * relief[..., None]) + 0.02 * relief[..., None]
    return _over(paint, 0.13, 0.9 * s.face)


def _mosaic(s: Sheet) -> np.ndarray:
    size = round((5.8 + 2.0 * s.style.scale) * 2) / 2 * s.unit
    x, y, border = tiles(s.height, s.width, size, s.style.variant)
    tile = cv2.remap(s.blur(s.colours, 0.8), x, y, cv2.INTER_NEAREST)
    picture = 0.62 * tile + 0.38 * s.colours
    grout = s.ink * 0.5 + s.paper * 0.25
    picture = _over(picture, grout, 0.6 * border[..., None] * (1 - 0.3 * s.subject))
    rim = np.clip(cv2.dilate(s.subject[..., 0], np.ones((3, 3))) - s.subject[..., 0], 0, 1)[..., None]
    return _over(_over(picture, grout * 0.6, 0.6 * rim), 0.13, s.face)


def _woodcut(s: Sheet) -> np.ndarray:
    period = 5.0 + 1.6 * s.style.scale
    luma = (s.luma - s.luma.mean()) / (s.luma.std() + 0.05) * 0.2 + 0.57 + 0.24 * s.subject[..., 0]
    grain = s.wave(math.pi / 2 - 0.5 * s.style.angle, period, wobble=1.2)
    cut = np.clip((grain * 0.8 + 0.1 - luma) * 4 + 0.5, 0, 1)
    mask = s.subject[..., 0]
    rim = np.clip(cv2.dilate(mask, np.ones((5, 5))) - mask, 0, 1)  # a light rim sets the subject off
    face_rim = np.clip(cv2.dilate(s.drawing.face, np.ones((5, 5))), 0, 1)
    cut = np.maximum(cut * (1 - 0.95 * rim) * (1 - face_rim), np.maximum(s.outline(3), s.face)[..., 0])
    return _over(np.broadcast_to(s.paper, s.colours.shape), s.ink, cut[..., None])


def _blueprint(s: Sheet) -> np.ndarray:
    cell = 12.8
    grid = np.maximum((s.x % cell) < 1, (s.y % cell) < 1)[..., None] * 0.14
    hatch = ((s.x + s.y) % (6 + 2 * s.style.scale) < 1.4)[..., None] * s.subject * 0.25
    shade = 0.12 * (s.luma[..., None] - 0.5)
    lines = np.maximum(np.maximum(grid + shade, hatch), np.maximum(0.85 * s.outline(2), s.face))
    return _over(np.broadcast_to(s.ink, s.colours.shape), np.array([0.92, 0.96, 1.0], np.float32), lines)


_TECHNIQUES: dict[str, Callable[[Sheet], np.ndarray]] = {
    "flat": _flat,
    "watercolour": _watercolour,
    "pixel": _pixel,
    "pencil": _pencil,
    "halftone": _halftone,
    "neon": _neon,
    "oil": _oil,
    "mosaic": _mosaic,
    "woodcut": _woodcut,
    "blueprint": _blueprint,
}


def stylise(drawing: Drawing, style: Style) -> np.ndarray:
    """The drawing in the style: uint8 (H, W, 3)."""
    picture = _TECHNIQUES[style.technique](Sheet(drawing, style))
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
