"""The eight surroundings (and the plain backdrop), each placed by the scene's own seed."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .canvas import Canvas, arc, mix
from .specs import Scene

WHITE = (255, 255, 255)
NIGHT = np.array((24, 30, 78), np.float32)
NIGHT_AMOUNT = 0.68
WOOD = (120, 78, 48)


class Painter:
    """A canvas with chance: fractions of the picture in, canvas units out."""

    def __init__(self, canvas: Canvas, scene: Scene) -> None:
        self.canvas, self.scene = canvas, scene
        self.rng = np.random.default_rng(scene.seed)
        self.w, self.h = canvas.width, canvas.height

    def between(self, low: float, high: float) -> float:
        """A number by chance."""
        return float(self.rng.uniform(low, high))

    def tint(self, colour: tuple, amount: float = 12) -> tuple:
        """The colour, a little different in every picture."""
        return tuple(np.clip(np.array(colour) + self.rng.uniform(-amount, amount, 3), 0, 255))

    def ground(self, y: float, swell: float, colour: tuple, waves: float = 2) -> None:
        """Land from the wavy line around the height fraction y down to the lower border."""
        x = np.linspace(0, 1, 28)
        phase = self.between(0, 6.3)
        line = y + swell * np.sin(x * waves * 2.1 + phase) + swell * 0.4 * np.sin(x * waves * 5 + 2 * phase)
        edge = np.stack([x * self.w, line * self.h], 1)
        self.canvas.polygon(np.concatenate([edge, [(self.w, self.h), (0, self.h)]]), colour)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: tuple, outline: bool = True) -> None:
        """Rectangle in canvas units."""
        self.canvas.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour, outline)

    def disc(self, x: float, y: float, radius: float, colour: tuple, outline: bool = True) -> None:
        """Circle in canvas units."""
        self.canvas.polygon(arc(x, y, radius, radius, points=20), colour, outline)

    def sun(self, colour: tuple) -> None:
        """A sun in the upper third; by night it will be painted over by the moon's sky."""
        self.disc(self.between(0.12, 0.88) * self.w, self.between(0.1, 0.2) * self.h, 0.075, colour)

    def side(self) -> float:
        """x, in units, close to the left or right border, where the subject seldom stands."""
        return self.w * (self.between(0.08, 0.16) if self.between(0, 1) < 0.5 else self.between(0.84, 0.92))


def _plain(p: Painter) -> None:
    p.canvas.gradient(p.scene.backdrop, p.scene.backdrop)


def _beach(p: Painter) -> None:
    p.canvas.gradient(p.tint((120, 200, 245)), p.tint((205, 236, 250)))
    p.sun((255, 236, 130))
    sea = p.between(0.42, 0.5) * p.h
    p.box(0, sea, p.w, p.h, p.tint((40, 140, 205)))
    p.canvas.line([(0, sea + 0.1), (p.w, sea + 0.1)], (235, 248, 252), 0.018)
    p.ground(sea / p.h + 0.17, 0.012, p.tint((244, 214, 150)))
    x = p.side()
    lean = 0.06 if x < p.w / 2 else -0.06
    y = p.h * 0.36
    p.canvas.line([(x, 0.92 * p.h), (x + lean * 0.4, 0.6 * p.h), (x + lean, y)], (140, 96, 60), 0.035)
    green = p.tint((50, 150, 75))
    for degrees in (-160, -110, -60, -10, 30):
        a = math.radians(degrees)
        c, s = math.cos(a), math.sin(a)
        leaf = [(x + lean, y), (x + lean + 0.13 * c, y - 0.04 + 0.09 * s), (x + lean + 0.2 * c, y + 0.02 + 0.12 * s)]
        p.canvas.polygon(leaf, green)


def _forest(p: Painter) -> None:
    p.canvas.gradient(p.tint((190, 224, 200)), p.tint((225, 240, 205)))
    p.ground(0.42, 0.03, p.tint((120, 175, 120)))
    count = max(4, round(6 * p.w))
    for i in range(count):
        x = (i + 0.5) / count * p.w + p.between(-0.03, 0.03)
        foot, height, half = p.between(0.58, 0.66) * p.h, p.between(0.32, 0.46), p.between(0.085, 0.115)
        colour = p.tint((30, 104, 62), 14)
        p.box(x - 0.018, foot - 0.05, x + 0.018, foot + 0.06, WOOD)
        for tier in range(3):
            low, reach = foot - tier * height * 0.27, half * (1 - 0.22 * tier)
            top = foot - height * (0.5 + 0.25 * tier)
            p.canvas.polygon([(x - reach, low), (x + reach, low), (x, top)], mix(colour, WHITE, 0.07 * tier))
    p.ground(0.64, 0.015, p.tint((96, 156, 74)))


def _city(p: Painter) -> None:
    p.canvas.gradient(p.tint((250, 190, 150)), p.tint((255, 226, 190)))
    p.sun((255, 245, 205))
    x, street = -0.02, 0.74 * p.h
    while x < p.w:
        width, height = p.between(0.15, 0.22), p.between(0.24, 0.5) * p.h
        p.box(x, street - height, x + width, street + 0.05, p.tint((122, 112, 142), 18))
        for row in np.arange(street - height + 0.05, street - 0.06, 0.09):
            for column in np.arange(x + 0.03, x + width - 0.05, 0.06):
                lit = p.between(0, 1) < 0.6
                p.box(column, row, column + 0.032, row + 0.045, (255, 226, 130) if lit else (84, 78, 104), False)
        x += width
    p.box(0, street, p.w, p.h, p.tint((94, 92, 102)))
    for dash in np.arange(0.03, p.w, 0.22):
        p.box(dash, 0.9 * p.h, dash + 0.12, 0.92 * p.h, (240, 235, 215))


def _desert(p: Painter) -> None:
    p.canvas.gradient(p.tint((255, 170, 90)), p.tint((255, 220, 150)))
    p.sun((255, 246, 190))
    p.ground(0.5, 0.05, p.tint((222, 140, 80)))
    p.ground(0.63, 0.03, p.tint((238, 178, 100)))
    x, y, green = p.side(), p.between(0.7, 0.76) * p.h, p.tint((70, 140, 80))
    p.canvas.line([(x, y), (x, y - 0.32)], green, 0.06)
    p.canvas.line([(x, y - 0.12), (x - 0.08, y - 0.12), (x - 0.08, y - 0.21)], green, 0.04)
    p.canvas.line([(x, y - 0.09), (x + 0.08, y - 0.09), (x + 0.08, y - 0.19)], green, 0.04)


def _snow(p: Painter) -> None:
    p.canvas.gradient(p.tint((150, 190, 225)), p.tint((215, 232, 245)))
    foot = 0.62 * p.h
    for low, high in ((0.02, 0.3), (0.35, 0.65), (0.7, 0.98)):
        x, height, half = p.between(low, high) * p.w, p.between(0.26, 0.42), p.between(0.26, 0.34)
        p.canvas.polygon([(x - half, foot), (x, foot - height), (x + half, foot)], p.tint((112, 132, 160)))
        cap = [(-0.3, -0.7), (0, -1), (0.3, -0.7), (0.05, -0.58)]
        p.canvas.polygon([(x + half * a, foot + height * b) for a, b in cap], (250, 252, 255))
    p.ground(0.62, 0.02, p.tint((240, 245, 252), 5))
    for _ in range(20):
        p.disc(p.between(0, p.w), p.between(0, 0.95 * p.h), p.between(0.009, 0.014), WHITE, False)


def _underwater(p: Painter) -> None:
    p.canvas.gradient(p.tint((80, 200, 215)), p.tint((18, 92, 160)))
    for _ in range(2):
        x = p.between(0.1, 1) * p.w
        p.canvas.polygon([(x, 0), (x + 0.1, 0), (x - 0.1, 0.8), (x - 0.26, 0.8)], (112, 210, 225), False)
    p.ground(0.82, 0.02, p.tint((212, 194, 140)))
    for place in (0.08, 0.22, 0.8, 0.92):
        x, height = (place + p.between(-0.04, 0.04)) * p.w, p.between(0.24, 0.45)
        y = np.linspace(0.92 * p.h, 0.92 * p.h - height, 9)
        p.canvas.line(np.stack([x + 0.022 * np.sin(y * 25), y], 1), p.tint((30, 150, 95), 8), 0.034)
    for _ in range(6):
        x, y, radius = p.between(0, p.w), p.between(0.05, 0.7) * p.h, p.between(0.018, 0.03)
        p.disc(x, y, radius, (190, 236, 245))
        p.disc(x, y, radius * 0.55, (90, 190, 215), False)


def _room(p: Painter) -> None:
    wall = p.tint((236, 205, 178), 16)
    p.canvas.gradient(wall, wall)
    floor = p.between(0.67, 0.73) * p.h
    for x in np.arange(0.06, p.w, 0.16):
        p.box(x, 0, x + 0.05, floor, mix(wall, WHITE, 0.22), False)
    p.box(0, floor, p.w, p.h, p.tint((160, 104, 68)))
    p.box(0, floor - 0.025, p.w, floor, (250, 244, 235))
    frame, pane = (250, 246, 238), p.tint((150, 208, 240))
    left = p.between(0, 1) < 0.5
    x, y = (0.06 if left else p.w - 0.36), 0.08
    p.box(x, y, x + 0.3, y + 0.34, frame)
    for column in (0.025, 0.16):
        for row in (0.025, 0.18):
            p.box(x + column, y + row, x + column + 0.115, y + row + 0.135, pane)
    x = p.w - 0.22 if left else 0.06
    p.box(x, 0.14, x + 0.16, 0.32, WOOD)
    p.box(x + 0.022, 0.162, x + 0.138, 0.298, p.tint((220, 120, 110), 26))
    p.canvas.polygon(arc(p.w / 2, 0.89 * p.h, 0.4 * p.w, 0.07), p.tint((190, 70, 80), 26))


def _space(p: Painter) -> None:
    p.canvas.gradient(p.tint((26, 20, 58), 8), p.tint((58, 34, 96), 8))
    for _ in range(22):
        p.disc(p.between(0, p.w), p.between(0, 0.75) * p.h, p.between(0.007, 0.012), (255, 250, 215), False)
    x, y = p.side(), p.between(0.14, 0.24) * p.h
    planet = p.tint((228, 140, 96), 22)
    p.disc(x, y, 0.1, planet)
    p.canvas.line(arc(x, y, 0.16, 0.045, -20, 200), (250, 220, 170), 0.018)
    p.ground(0.72, 0.02, p.tint((150, 146, 170)))
    for _ in range(4):
        crater = arc(p.between(0, p.w), p.between(0.8, 0.96) * p.h, p.between(0.04, 0.07), 0.018)
        p.canvas.polygon(crater, (118, 114, 140))


_KINDS: dict[str, Callable[[Painter], None]] = {
    "plain": _plain,
    "beach": _beach,
    "forest": _forest,
    "city": _city,
    "desert": _desert,
    "snow": _snow,
    "underwater": _underwater,
    "room": _room,
    "space": _space,
}


def _nightfall(p: Painter) -> None:
    """Darken all that has been painted and put moon and stars into the sky."""
    p.canvas.rgb[:] = (p.canvas.rgb * np.float32(1 - NIGHT_AMOUNT) + NIGHT * NIGHT_AMOUNT).astype(np.uint8)
    for _ in range(12):
        p.disc(p.between(0, p.w), p.between(0, 0.3) * p.h, p.between(0.006, 0.011), (255, 250, 215), False)
    x, y = p.between(0.2, 0.8) * p.w, p.between(0.11, 0.18) * p.h
    sky = tuple(float(v) for v in p.canvas.rgb[2, 2])
    p.disc(x, y, 0.085, (252, 244, 200))
    p.disc(x + 0.042, y - 0.022, 0.07, sky, False)


def paint_scene(canvas: Canvas, scene: Scene) -> None:
    """Paint the surroundings over the whole canvas."""
    painter = Painter(canvas, scene)
    _KINDS[scene.kind](painter)
    if scene.night:
        _nightfall(painter)
