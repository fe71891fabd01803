"""From specs to pixels."""

from __future__ import annotations

import cv2
import numpy as np

from .canvas import Canvas
from .scenes import paint_scene
from .specs import NO_STYLE, PLAIN_SCENE, Picture, Style
from .subjects import paint_subject
from .techniques import Drawing, stylise

_SUBJECT_REGIONS = 128  # regions of the subject are numbered from here, those of the scene below


def draw(picture: Picture, height: int, width: int) -> Drawing:
    """What is where in a picture of height x width pixels."""
    canvas = Canvas(height, width)
    paint_scene(canvas, picture.scene)
    scene_regions = canvas.regions.copy()
    canvas.start_layer()
    paint_subject(canvas, picture.subject, picture.pose, shadow=picture.scene.kind != PLAIN_SCENE)
    inside = canvas.regions > 0
    regions = np.where(inside, canvas.regions + _SUBJECT_REGIONS, scene_regions)
    edges = np.zeros(regions.shape, np.uint8)
    edges[:, 1:] |= regions[:, 1:] != regions[:, :-1]
    edges[1:] |= regions[1:] != regions[:-1]
    size = (width, height)
    return Drawing(
        rgb=cv2.resize(canvas.rgb, size, interpolation=cv2.INTER_AREA),
        edges=edges,
        mask=cv2.resize(inside.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0,
        face=cv2.resize(canvas.face, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255,
    )


def render(picture: Picture, style: Style = NO_STYLE, height: int = 128, width: int = 128) -> np.ndarray:
    """uint8 (height, width, 3)."""
    return stylise(draw(picture, height, width), style)
