"""Drawing with clean edges: colours, outlines and a subject mask painted side by side at twice the final size.

Coordinates are in units of sqrt(height * width) of the picture, so that a circle is a circle in every format and a
subject has about the same area in all of them; a square picture spans 0..1 both ways.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

OVERSAMPLING = 2
_FRACTION_BITS = 4  # OpenCV takes points as fixed-point numbers
Points = np.ndarray | list[tuple[float, float]]

cv2.setNumThreads(1)  # the renderer runs in several processes already


def arc(x: float, y: float, rx: float, ry: float, start: float = 0, end: float = 360, points: int = 28) -> np.ndarray:
    """Points (N, 2) on an ellipse from `start` to `end` degrees."""
    t = np.radians(np.linspace(start, end, points))
    return np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], 1)


def rounded(x0: float, y0: float, x1: float, y1: float, radius: float) -> np.ndarray:
    """Points (24, 2) of a rectangle with round corners."""
    t = np.radians(np.linspace(0, 90, 6))
    c, s = np.cos(t) * radius, np.sin(t) * radius
    corners = (
        (x1 - radius + c, y1 - radius + s),
        (x0 + radius - s, y1 - radius + c),
        (x0 + radius - c, y0 + radius - s),
        (x1 - radius + s, y0 + radius - c),
    )
    return np.concatenate([np.stack(corner, 1) for corner in corners])


def mix(a: tuple | np.ndarray, b: tuple | np.ndarray, amount: float) -> tuple[float, ...]:
    """Colour between a (amount 0) and b (amount 1)."""
    return tuple(np.array(a, float) * (1 - amount) + np.array(b, float) * amount)


class Canvas:
    """Colours, region numbers (their borders are the outlines) and the features of the face.

    rgb (H, W, 3) uint8, regions (H, W) uint8, face (H, W) uint8, all at OVERSAMPLING times the final size.
    """

    def __init__(self, height: int, width: int) -> None:
        """height, width: of the final picture, in pixels."""
        self.unit = OVERSAMPLING * math.sqrt(height * width)
        shape = (height * OVERSAMPLING, width * OVERSAMPLING)
        self.height, self.width = shape[0] / self.unit, shape[1] / self.unit
        self.rgb = np.zeros((*shape, 3), np.uint8)
        self.regions = np.zeros(shape, np.uint8)
        self.face = np.zeros(shape, np.uint8)
        self._region = 0

    def start_layer(self) -> None:
        """Forget the regions drawn so far, keep the colours."""
        self.regions[:] = 0
        self._region = 0

    def polygon(self, points: Points, colour: tuple, outline: bool = True) -> None:
        """Fill; with `outline` the shape is a region of its own, and line techniques draw its border."""
        fixed = self._fixed(points)
        cv2.fillPoly(self.rgb, [fixed], _integers(colour), cv2.LINE_AA, _FRACTION_BITS)
        if outline:
            cv2.fillPoly(self.regions, [fixed], self._next_region(), cv2.LINE_8, _FRACTION_BITS)

    def line(self, points: Points, colour: tuple, width: float, outline: bool = True) -> None:
        """Open line of the given width (in units)."""
        fixed, thickness = self._fixed(points), self._thickness(width)
        cv2.polylines(self.rgb, [fixed], False, _integers(colour), thickness, cv2.LINE_AA, _FRACTION_BITS)
        if outline:
            cv2.polylines(self.regions, [fixed], False, self._next_region(), thickness, cv2.LINE_8, _FRACTION_BITS)

    def feature(self, points: Points, colour: tuple, width: float | None = None) -> None:
        """Part of a face: filled, or a line if it has a width; techniques that simplify keep it legible."""
        fixed = self._fixed(points)
        dark = 255 if sum(colour) < 300 else 0
        if width is None:
            cv2.fillPoly(self.rgb, [fixed], _integers(colour), cv2.LINE_AA, _FRACTION_BITS)
            cv2.fillPoly(self.face, [fixed], dark, cv2.LINE_AA, _FRACTION_BITS)
        else:
            thickness = self._thickness(width)
            cv2.polylines(self.rgb, [fixed], False, _integers(colour), thickness, cv2.LINE_AA, _FRACTION_BITS)
            cv2.polylines(self.face, [fixed], False, dark, thickness, cv2.LINE_AA, _FRACTION_BITS)

    def gradient(self, top: tuple, bottom: tuple) -> None:
        """Fill everything from top to bottom."""
        amount = np.linspace(0, 1, self.rgb.shape[0])[:, None]
        self.rgb[:] = (np.array(top) * (1 - amount) + np.array(bottom) * amount).astype(np.uint8)[:, None]
        self.regions[:] = self._next_region()

    def pattern(self, points: Points, inside: Callable[[np.ndarray, np.ndarray], np.ndarray], colour: tuple) -> None:
        """Paint `colour` where inside(x, y) is true within the polygon."""
        mask = self.shape_mask(points)
        x0, y0, w, h = cv2.boundingRect(mask.astype(np.uint8))
        if w == 0:
            return
        x, y = np.meshgrid(np.arange(x0, x0 + w) / self.unit, np.arange(y0, y0 + h) / self.unit)
        chosen = inside(x, y) & mask[y0 : y0 + h, x0 : x0 + w]
        self.rgb[y0 : y0 + h, x0 : x0 + w][chosen] = np.array(_integers(colour), np.uint8)

    def shade(self, points: Points, factor: float) -> None:
        """Darken what is inside the polygon."""
        mask = self.shape_mask(points)
        self.rgb[mask] = (self.rgb[mask] * factor).astype(np.uint8)

    def shape_mask(self, points: Points) -> np.ndarray:
        """bool (H, W): inside the polygon."""
        mask = np.zeros(self.regions.shape, np.uint8)
        cv2.fillPoly(mask, [self._fixed(points)], 1, cv2.LINE_8, _FRACTION_BITS)
        return mask > 0

    def _fixed(self, points: Points) -> np.ndarray:
        return np.round(np.asarray(points, np.float32) * self.unit * 2**_FRACTION_BITS).astype(np.int32)

    def _thickness(self, width: float) -> int:
        return max(1, round(width * self.unit))

    def _next_region(self) -> int:
        self._region = self._region % 120 + 1
        return self._region


def _integers(colour: tuple | np.ndarray) -> tuple[int, ...]:
    return tuple(int(np.clip(value, 0, 255)) for value in colour)
