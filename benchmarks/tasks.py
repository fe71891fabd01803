"""The task of every contender: a prompt and synthetic images, in each mode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

PROMPT = "A red mug stands on a wooden table in the morning light."
PICTURE_SIDE = 512  # pixels
CELLS = 16  # of colour along a side


@dataclass(frozen=True)
class Task:
    """One image to make; sizes in pixels."""

    mode: str
    content: Image.Image | None
    styles: tuple[Image.Image, ...]
    size: int
    content_size: int
    steps: int


def tasks(size: int, content_size: int, steps: int) -> dict[str, Task]:
    """Every mode by its name, as in `counts.MODES`."""
    content, one, other = (image(seed) for seed in range(3))
    given: dict[str, tuple[Image.Image | None, tuple[Image.Image, ...]]] = {
        "text only": (None, ()),
        "content": (content, ()),
        "style": (None, (one,)),
        "content + style": (content, (one,)),
        "two styles": (None, (one, other)),
    }
    return {mode: Task(mode, *images, size, content_size, steps) for mode, images in given.items()}


def image(seed: int) -> Image.Image:
    """Soft patches of random colours."""
    cells = np.random.default_rng(seed).integers(0, 256, (CELLS, CELLS, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.BICUBIC)
