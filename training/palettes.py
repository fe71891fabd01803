"""Foreign images to learn palettes from, and the style in which the world's renderer answers them.

People bring images that no technique of the world made. What they want of them first is the colours: so a picture in
such a style is drawn in the nearest technique, its surroundings in the image's own colours from dark to light. The
images that measure this (`foreign_images`) are drawn otherwise and are never shown in training.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from .world.specs import Colour, Style

SIDE = 128
GRADE = 0.85  # how far the surroundings move to the palette
SHADES = 6  # of a palette, from dark to light
_ROWS, _COLUMNS = (values.astype(np.float32) / SIDE for values in np.mgrid[:SIDE, :SIDE])


def _colours(rng: np.random.Generator, count: int) -> np.ndarray:
    """RGB colours (count, 3) in 0..255: neighbouring or opposite hues, pale or deep, dull or vivid together."""
    hue, spread = rng.uniform(0, 360), rng.choice((25.0, 60.0, 180.0))
    saturation, value = rng.uniform(0.05, 0.85), rng.uniform(0.35, 0.85)
    hues = (hue + rng.uniform(-1, 1, count) * spread) % 360
    hsv = np.stack([hues, saturation + rng.uniform(-0.15, 0.15, count), value + rng.uniform(-0.35, 0.3, count)], 1)
    hsv[:, 1:] = hsv[:, 1:].clip(0, 1)
    return cv2.cvtColor(hsv[None].astype(np.float32), cv2.COLOR_HSV2RGB)[0] * 255


def _noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Slow noise (SIDE, SIDE) about 0."""
    grid = rng.standard_normal((cells, cells)).astype(np.float32)
    return cv2.resize(grid, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)


def _fields(rng: np.random.Generator) -> np.ndarray:
    """Rectangles of even colour with soft borders."""
    ground, *others = _colours(rng, int(rng.integers(3, 6)))
    image = np.ones((SIDE, SIDE, 3), np.float32) * ground
    for colour in others:
        (top, bottom), (left, right) = (sorted(rng.integers(0, SIDE, 2)) for _ in range(2))
        image[top : bottom + 8, left : right + 8] = colour
    return cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 5)) + rng.normal(0, rng.uniform(0, 8), (SIDE, SIDE, 1))


def _ridges(rng: np.random.Generator) -> np.ndarray:
    """A sky and hills, one behind the other, with grain: a hazy view."""
    sky, *hills = _colours(rng, int(rng.integers(3, 6)))
    image = sky * (0.8 + 0.35 * _ROWS[..., None])
    for number, colour in enumerate(hills):
        crest = 0.3 + 0.55 * number / len(hills) + 0.09 * _noise(rng, 5)[:1]
        image = np.where((crest < _ROWS)[..., None], colour, image)
    return cv2.GaussianBlur(image, (0, 0), 0.9) + rng.normal(0, 6, image.shape)


def _marble(rng: np.random.Generator) -> np.ndarray:
    """Colours that ran into each other, pale where the paper shows."""
    colours = _colours(rng, 4)
    flow = (_noise(rng, 6) * 0.7 + _noise(rng, 13) * 0.3 + 2).clip(0, 3 - 1e-4)
    low, part = flow.astype(int), (flow % 1)[..., None]
    image = colours[low] * (1 - part) + colours[low + 1] * part
    paper = (0.35 + 0.35 * _noise(rng, 9)).clip(0, 0.9)[..., None]
    return image + (248 - image) * paper


def _dabs(rng: np.random.Generator) -> np.ndarray:
    """Many short strokes over each other."""
    colours = _colours(rng, int(rng.integers(3, 7)))
    image = np.ones((SIDE, SIDE, 3), np.float32) * colours[0]
    for _ in range(260):
        start, angle = rng.uniform(0, SIDE, 2), rng.normal(0.6, 0.4)
        end = start + rng.uniform(5, 16) * np.array([np.cos(angle), np.sin(angle)])
        colour = colours[int(rng.integers(len(colours)))] + rng.normal(0, 12)
        cv2.line(image, start.astype(int).tolist(), end.astype(int).tolist(), colour.tolist(), 4, cv2.LINE_AA)
    return image


def _lights(rng: np.random.Generator) -> np.ndarray:
    """Round lights out of focus before the dark."""
    image = np.ones((SIDE, SIDE, 3), np.float32) * _colours(rng, 1)[0] * rng.uniform(0.08, 0.3)
    for colour in np.repeat(_colours(rng, 3), 4, 0):
        radius = np.hypot(_ROWS - rng.uniform(0, 1), _COLUMNS - rng.uniform(0, 1))
        disc = ((rng.uniform(0.03, 0.13) - radius) / 0.03 + 0.5).clip(0, 1) + 0.25 * np.exp(-radius / 0.12)
        image += disc[..., None].astype(np.float32) * colour / colour.max() * rng.uniform(90, 220)
    return image


def _scribble(rng: np.random.Generator) -> np.ndarray:
    """A pen that hardly leaves the paper."""
    paper, ink = _colours(rng, 2)
    paper, ink = 255 - (255 - paper) * rng.uniform(0.05, 0.5), ink * rng.uniform(0.1, 0.5)
    image = np.ones((SIDE, SIDE, 3), np.float32) * paper
    steps = cv2.GaussianBlur(rng.normal(0, 1, (1500, 2)), (1, 0), 1e-6, sigmaY=25)
    path = np.cumsum(steps / steps.std() * 1.7, 0)
    path = np.abs((path - path.mean(0) + SIDE / 2) % (2 * SIDE) - SIDE)  # folded back at the borders
    cv2.polylines(image, [path.astype(np.int32)], False, ink.tolist(), int(rng.integers(1, 4)), cv2.LINE_AA)
    return image + 5 * rng.standard_normal((SIDE, SIDE, 1))


def _dusk(rng: np.random.Generator) -> np.ndarray:
    """Dull and dark: patches without an outline before a slow change from one colour to another, with grain."""
    above, below, *others = _colours(rng, int(rng.integers(4, 7))) * rng.uniform(0.35, 0.9)
    image = above + (below - above) * _ROWS[..., None]
    for colour in others:
        amount = ((_noise(rng, int(rng.integers(3, 8))) - rng.uniform(0.2, 0.9)) * 4).clip(0, 1)[..., None]
        image = image + (colour - image) * amount
    return cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 2)) + rng.normal(0, rng.uniform(2, 8), image.shape)


def _weave(rng: np.random.Generator) -> np.ndarray:
    """Cloth: bands of colours across and along, one over the other."""
    colours = _colours(rng, 4) * rng.uniform(0.35, 1)
    across, along = (colours[np.repeat(rng.integers(4, size=32), 4)] for _ in range(2))
    over = ((np.arange(SIDE)[:, None] // 2 + np.arange(SIDE) // 2) % 2)[..., None]
    return np.where(over, across[:, None], along[None]) * (0.9 + 0.1 * _noise(rng, 20)[..., None])


def _sparks(rng: np.random.Generator) -> np.ndarray:
    """Bright lines from a few centres before the dark, and the light about them."""
    image = np.ones((SIDE, SIDE, 3), np.float32) * _colours(rng, 1)[0] * rng.uniform(0.03, 0.3)
    for colour in _colours(rng, int(rng.integers(2, 5))):
        lines = np.zeros((SIDE, SIDE), np.float32)
        centre, reach = rng.uniform(0, SIDE, 2), rng.uniform(12, 55)
        for angle in rng.uniform(0, 2 * np.pi, int(rng.integers(4, 14))):
            end = centre + reach * rng.uniform(0.5, 1) * np.array([np.cos(angle), np.sin(angle)])
            cv2.line(lines, centre.astype(int).tolist(), end.astype(int).tolist(), 1.0, 2, cv2.LINE_AA)
        light = (lines + rng.uniform(1, 5) * cv2.GaussianBlur(lines, (0, 0), rng.uniform(3, 9)))[..., None]
        image = image + light * colour / colour.max() * 255
    return image


def _hatching(rng: np.random.Generator) -> np.ndarray:
    """Straight strokes of a dark pen on tinted paper, crossed where it is darkest."""
    paper, ink = _colours(rng, 2)
    paper, ink = 255 - (255 - paper) * rng.uniform(0.15, 0.9), ink * rng.uniform(0.05, 0.4)
    strokes = np.zeros((SIDE, SIDE), np.float32)
    for number in range(int(rng.integers(30, 90))):
        start, angle = rng.uniform(0, SIDE, 2), 0.7 + 1.6 * (number % 3 == 0) + rng.normal(0, 0.1)
        end = start + rng.uniform(20, 60) * np.array([np.cos(angle), np.sin(angle)])
        cv2.line(strokes, start.astype(int).tolist(), end.astype(int).tolist(), 1.0, 1, cv2.LINE_AA)
    shade = (0.25 * _noise(rng, 4)).clip(0, 0.5)
    return paper + (ink - paper) * (strokes + shade).clip(0, 0.95)[..., None]


# How such images are drawn, one of two ways, and the technique that stands for both.
_KINDS: tuple[tuple[tuple[Callable[[np.random.Generator], np.ndarray], ...], str], ...] = (
    ((_fields, _dusk), "flat"), ((_ridges, _dusk), "flat"), ((_marble,), "watercolour"), ((_dabs, _weave), "oil"),
    ((_lights, _sparks), "neon"), ((_scribble, _hatching), "pencil"),
)  # fmt: skip


def technique(seed: int) -> str:
    """Of the seed's image."""
    return _KINDS[seed % len(_KINDS)][1]


def draw_image(seed: int) -> np.ndarray:
    """The image of a seed, uint8 (128, 128, 3)."""
    rng, (ways, _) = np.random.default_rng([seed, 20]), _KINDS[seed % len(_KINDS)]
    return ways[seed // len(_KINDS) % len(ways)](rng).clip(0, 255).astype(np.uint8)


def shades(image: np.ndarray) -> tuple[Colour, ...]:
    """SHADES colours of an image from dark to light, each the mean of as many pixels; image uint8 (H, W, 3)."""
    pixels = cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA).reshape(-1, 3).astype(float)
    order = (pixels @ (0.3, 0.59, 0.11)).argsort(kind="stable")
    means = [pixels[part].mean(0) for part in np.array_split(order, SHADES)]
    return tuple((float(red), float(green), float(blue)) for red, green, blue in means)


def style_of(image: np.ndarray, technique: str, variant: int = 0) -> Style:
    """The style that answers a foreign image."""
    palette = shades(image)
    return Style(technique, palette[0], palette[-1], GRADE, scale=0.5, angle=0.3, variant=variant, palette=palette)
