"""The twelve subjects, drawn in a box that reaches from -1 to 1 both ways, y down, feet at y = 1."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .canvas import Canvas, Points, arc, mix, rounded
from .specs import Pose, Subject

DARK = (45, 38, 50)
WHITE = (255, 255, 255)
WOOD = (120, 78, 48)
GLASS = (200, 230, 245)
SMALLEST, LARGEST = 0.31, 0.37  # half width of a subject, in canvas units


class Brush:
    """Draws in a subject's own box on a canvas."""

    def __init__(self, canvas: Canvas, subject: Subject, pose: Pose) -> None:
        self.canvas, self.subject = canvas, subject
        room = 0.41 * min(canvas.width, canvas.height)  # never cut by the border
        self.scale = min(SMALLEST + (LARGEST - SMALLEST) * pose.size, room)
        margin = min(1.08 * self.scale, canvas.width / 2)
        self.x = margin + pose.x * (canvas.width - 2 * margin)
        self.y = pose.y * canvas.height
        self.cos, self.sin = math.cos(pose.tilt), math.sin(pose.tilt)
        self.first, self.second = subject.rgb, subject.second_rgb
        self.light, self.dark = mix(self.first, WHITE, 0.4), mix(self.first, DARK, 0.35)

    def place(self, points: Points) -> np.ndarray:
        """Box coordinates (N, 2) -> canvas coordinates (N, 2)."""
        local = np.asarray(points, np.float32)
        x = local[:, 0] * self.scale * self.subject.width
        y = (local[:, 1] - 1) * self.scale * self.subject.height
        return np.stack([self.x + x * self.cos - y * self.sin, self.y + x * self.sin + y * self.cos], 1)

    def fill(self, points: Points, colour: tuple) -> None:
        """A part with an outline."""
        self.canvas.polygon(self.place(points), colour)

    def line(self, points: Points, colour: tuple, width: float) -> None:
        """A line with an outline; width in box units."""
        self.canvas.line(self.place(points), colour, width * self.scale)

    def body(self, points: Points) -> None:
        """The main part: first colour, with the identity's pattern in the second."""
        placed = self.place(points)
        self.canvas.polygon(placed, self.first)
        subject, x0, y0 = self.subject, self.x, self.y
        frequency = subject.pattern_frequency / self.scale
        cos, sin = math.cos(subject.pattern_angle), math.sin(subject.pattern_angle)
        if subject.pattern == "striped":
            self.canvas.pattern(
                placed, lambda x, y: (((x - x0) * cos + (y - y0) * sin) * frequency) % 1 < 0.45, self.second
            )
        elif subject.pattern == "dotted":
            self.canvas.pattern(
                placed,
                lambda x, y: ((x - x0) * frequency % 1 - 0.5) ** 2 + ((y - y0) * frequency % 1 - 0.5) ** 2 < 0.085,
                self.second,
            )

    def face(self, x: float, y: float, size: float, plate: tuple | None = None) -> None:
        """Two eyes `size` left and right of (x, y) and a mouth, after the subject's mood.

        A plate of even colour lies under the face where a pattern would hide it.
        """
        draw = self.canvas.feature
        if plate is not None or self.subject.pattern != "plain":
            around = arc(x, y + 0.12 * size, 1.75 * size, 1.15 * size)
            self.canvas.polygon(self.place(around), plate or self.light, outline=False)
        mood = self.subject.mood
        for side in (-1, 1):
            eye = x + side * size
            if mood == "happy":
                draw(self.place(arc(eye, y, 0.32 * size, 0.42 * size)), DARK)
                draw(self.place(arc(eye + 0.1 * size, y - 0.15 * size, 0.12 * size, 0.15 * size)), WHITE)
            elif mood == "surprised":
                draw(self.place(arc(eye, y, 0.56 * size, 0.56 * size)), DARK)
                draw(self.place(arc(eye, y, 0.45 * size, 0.45 * size)), WHITE)
                draw(self.place(arc(eye, y, 0.22 * size, 0.22 * size)), DARK)
            else:
                lid = arc(eye, y - 0.1 * size, 0.42 * size, 0.4 * size, 20, 160, 8)
                draw(self.place(lid), DARK, width=0.075 * self.scale)
        if mood == "surprised":
            draw(self.place(arc(x, y + 0.72 * size, 0.2 * size, 0.24 * size)), DARK)
        elif mood == "happy":
            smile = arc(x, y + 0.35 * size, 0.45 * size, 0.42 * size, 15, 165, 10)
            draw(self.place(smile), DARK, width=0.07 * self.scale)
        else:
            flat = [(x - 0.25 * size, y + 0.66 * size), (x + 0.25 * size, y + 0.66 * size)]
            draw(self.place(flat), DARK, width=0.07 * self.scale)


def _mug(b: Brush) -> None:
    b.line(arc(0.55, 0.2, 0.38, 0.42, -80, 80), b.dark, 0.17)
    b.body(rounded(-0.78, -0.6, 0.56, 1, 0.18))
    b.fill(arc(-0.11, -0.6, 0.67, 0.18), b.dark)
    b.fill(arc(-0.11, -0.57, 0.55, 0.11), (90, 55, 40))
    b.face(-0.11, 0.18, 0.3)


def _house(b: Brush) -> None:
    b.fill([(0.35, -0.95), (0.62, -0.95), (0.62, -0.2), (0.35, -0.2)], b.dark)
    b.body([(-0.78, -0.1), (0.78, -0.1), (0.78, 1), (-0.78, 1)])
    b.fill([(-1, 0), (0, -0.95), (1, 0)], b.second)
    b.fill(arc(0, -0.38, 0.17, 0.17), GLASS)
    b.fill(rounded(-0.18, 0.62, 0.18, 1, 0.1), b.dark)
    b.face(0, 0.22, 0.3)


def _tree(b: Brush) -> None:
    b.fill([(-0.16, 0), (0.16, 0), (0.24, 1), (-0.24, 1)], WOOD)
    left, top, right = (
        arc(-0.42, -0.1, 0.54, 0.47, 90, 230, 10),
        arc(0, -0.5, 0.58, 0.5, 190, 350, 10),
        arc(0.42, -0.1, 0.54, 0.47, -50, 90, 10),
    )
    b.body(np.concatenate([left, top, right]))
    b.face(0, -0.2, 0.29)


def _fish(b: Brush) -> None:
    b.fill([(0.5, 0.1), (1.05, -0.42), (0.93, 0.1), (1.05, 0.62)], b.second)
    b.fill([(-0.3, -0.35), (0.3, -0.8), (0.38, -0.2)], b.second)
    b.body(arc(-0.15, 0.1, 0.84, 0.6))
    b.fill([(0.05, 0.2), (0.42, 0.05), (0.38, 0.42)], b.second)
    b.face(-0.5, 0.02, 0.22)


def _car(b: Brush) -> None:
    b.fill([(-0.6, 0.1), (-0.38, -0.55), (0.42, -0.55), (0.7, 0.1)], b.second)
    b.fill([(-0.42, 0.06), (-0.27, -0.4), (-0.03, -0.4), (-0.03, 0.06)], GLASS)
    b.fill([(0.07, 0.06), (0.07, -0.4), (0.33, -0.4), (0.5, 0.06)], GLASS)
    b.body(rounded(-1, 0.02, 1, 0.75, 0.22))
    for x in (-0.58, 0.58):
        b.fill(arc(x, 0.74, 0.27, 0.27), DARK)
        b.fill(arc(x, 0.74, 0.12, 0.12), (205, 205, 210))
    b.fill(arc(-0.93, 0.35, 0.08, 0.1), (255, 235, 140))
    b.face(0, 0.28, 0.23)


def _cat(b: Brush) -> None:
    b.line([(0.5, 0.8), (0.92, 0.6), (0.88, 0.15), (1.02, -0.05)], b.dark, 0.16)
    b.body(arc(0, 0.58, 0.6, 0.45))
    for side in (-1, 1):
        b.fill([(side * 0.58, -0.3), (side * 0.55, -0.98), (side * 0.1, -0.62)], b.second)
    b.fill(arc(0, -0.25, 0.66, 0.5), b.first)
    b.face(0, -0.32, 0.3, plate=b.first)
    b.canvas.polygon(b.place([(-0.07, -0.2), (0.07, -0.2), (0, -0.12)]), (240, 130, 140), outline=False)


def _robot(b: Brush) -> None:
    b.line([(0, -0.75), (0, -1)], DARK, 0.07)
    b.fill(arc(0, -1, 0.1, 0.1), b.second)
    for side in (-1, 1):
        b.line([(side * 0.5, 0.2), (side * 0.88, 0.42)], b.dark, 0.15)
        b.fill(arc(side * 0.9, 0.45, 0.13, 0.13), b.second)
        b.fill(rounded(side * 0.27 - 0.14, 0.7, side * 0.27 + 0.14, 1, 0.05), b.dark)
    b.body(rounded(-0.55, -0.02, 0.55, 0.8, 0.12))
    b.fill(rounded(-0.66, -0.8, 0.66, 0.0, 0.18), b.light)
    b.fill(rounded(-0.53, -0.68, 0.53, -0.12, 0.1), (215, 240, 245))
    b.face(0, -0.46, 0.26, plate=(215, 240, 245))


def _flower(b: Brush) -> None:
    b.line([(0, 0), (0.04, 0.5), (0, 1)], (60, 135, 60), 0.13)
    b.fill(arc(0.3, 0.68, 0.3, 0.12), (80, 160, 70))
    b.fill(arc(-0.28, 0.82, 0.28, 0.11), (80, 160, 70))
    angle = np.linspace(0, 2 * np.pi, 72)
    radius = 0.56 + 0.26 * np.abs(np.cos(b.subject.petals * angle / 2)) ** 0.7
    b.body(np.stack([radius * np.cos(angle), -0.22 + radius * np.sin(angle)], 1))
    centre = mix(b.second, (255, 230, 140), 0.6)
    b.fill(arc(0, -0.22, 0.42, 0.42), centre)
    b.face(0, -0.28, 0.2, plate=centre)


def _boat(b: Brush) -> None:
    b.line([(0, 0.3), (0, -1)], WOOD, 0.09)
    b.fill([(0.07, -0.95), (0.07, 0.16), (0.85, 0.16)], b.second)
    b.fill([(-0.07, -0.75), (-0.07, 0.16), (-0.62, 0.16)], mix(b.second, WHITE, 0.5))
    b.body([(-1, 0.24), (1, 0.24), (0.68, 0.98), (-0.68, 0.98)])
    b.face(0, 0.5, 0.24)


def _rocket(b: Brush) -> None:
    b.fill([(-0.24, 0.7), (0, 1.1), (0.24, 0.7)], (250, 180, 50))
    for side in (-1, 1):
        b.fill([(side * 0.36, 0.2), (side * 0.8, 0.82), (side * 0.3, 0.7)], b.second)
    t = np.linspace(-1, 1, 16)
    half = 0.52 * np.cos(t * 1.1) ** 0.8
    y = t * 0.85 - 0.12
    b.body(np.concatenate([np.stack([half, y], 1), np.stack([-half[::-1], y[::-1]], 1)]))
    b.fill([(-0.25, -0.84), (0, -1.2), (0.25, -0.84)], b.second)
    b.fill(arc(0, -0.12, 0.4, 0.37), GLASS)
    b.face(0, -0.18, 0.2, plate=GLASS)


def _clock(b: Brush) -> None:
    for side in (-1, 1):
        b.line([(side * 0.4, 0.6), (side * 0.6, 0.98)], b.dark, 0.15)
        b.fill(arc(side * 0.52, -0.66, 0.27, 0.22), b.second)
    b.body(arc(0, 0.1, 0.88, 0.82))
    b.fill(arc(0, 0.1, 0.64, 0.59), (252, 250, 240))
    b.face(0, 0.26, 0.24, plate=(252, 250, 240))
    hand = b.subject.hand
    b.line([(0, 0.02), (0.44 * math.cos(hand), 0.02 + 0.4 * math.sin(hand))], DARK, 0.07)
    b.line([(0, 0.02), (-0.02 - 0.24 * math.cos(hand), -0.2)], DARK, 0.1)


def _mushroom(b: Brush) -> None:
    b.fill(rounded(-0.4, -0.1, 0.4, 1, 0.2), (245, 230, 205))
    b.body(np.concatenate([arc(0, 0.1, 0.98, 1.0, 180, 360), [(0.62, 0.22), (-0.62, 0.22)]]))
    b.face(0, 0.5, 0.21, plate=(245, 230, 205))


_KINDS: dict[str, Callable[[Brush], None]] = {
    "mug": _mug,
    "house": _house,
    "tree": _tree,
    "fish": _fish,
    "car": _car,
    "cat": _cat,
    "robot": _robot,
    "flower": _flower,
    "boat": _boat,
    "rocket": _rocket,
    "clock": _clock,
    "mushroom": _mushroom,
}


def paint_subject(canvas: Canvas, subject: Subject, pose: Pose, shadow: bool) -> None:
    """Paint the subject; with `shadow` a soft dark oval lies under it."""
    brush = Brush(canvas, subject, pose)
    if shadow:
        canvas.shade(arc(brush.x, brush.y, brush.scale * 0.8, 0.024), 0.72)
    _KINDS[subject.kind](brush)
