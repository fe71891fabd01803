"""A comparison grid: one request with two of its values varied, and the labelled contact sheet of its images."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from uso_core.errors import RequestError
from uso_core.request import MAX_LORA_STRENGTH, MAX_SEED, MAX_STEPS, MAX_STRENGTH, GenerationRequest, number, whole

MOST = 8  # values of an axis
AXES = ("content_strength", "style_strength", "guidance", "steps", "seed", "lora_strength")
WHOLE = {"steps": (1, MAX_STEPS), "seed": (0, MAX_SEED)}
RANGE = re.compile(r"(-?\d+(?:\.\d+)?)\s*\.\.\s*(-?\d+(?:\.\d+)?)(?:\s*/\s*(\d+(?:\.\d+)?))?")
CELL, SMALLEST_CELL = 512, 128  # pixels of a cell's long side: at most; those up to the second are doubled
PAPER, INK = "white", "#222"


@dataclass(frozen=True)
class Axis:
    """A value to vary, by its name in `AXES`, and up to eight values for it."""

    name: str
    values: tuple[float, ...]


def read_axis(name: str, text: str) -> Axis:
    """An axis from `0.5, 1, 1.5`, or a range as `0..2/0.5` or `1..4`.

    Raises `RequestError` for an unknown name, for what is no number, for a number that is out of the value's range or
    comes twice, and for more than eight.
    """
    if name not in AXES:
        raise RequestError("grid_axis", hint="choose_one_of", name=name, choices=", ".join(AXES))
    given: list[float] = []
    for part in filter(None, re.split(r"[,;\s]+", re.sub(r"\s*(\.\.|/)\s*", r"\1", text))):
        given += _values(part)
        if len(given) > MOST:
            raise RequestError("grid_too_many", name=name, most=MOST)
    if name in WHOLE:
        values: list[float] = [whole(name, value, *WHOLE[name]) for value in given]
    else:
        low, high = {"guidance": (0.0, 100.0), "lora_strength": (-MAX_LORA_STRENGTH, MAX_LORA_STRENGTH)}.get(
            name, (0.0, MAX_STRENGTH)
        )
        values = [number(name, value, low, high) for value in given]
    if not values or len(set(values)) < len(values):
        raise RequestError("grid_values", name=name, value=text)
    return Axis(name, tuple(values))


def _values(part: str) -> list[float]:
    if found := RANGE.fullmatch(part):
        low, high, step = float(found[1]), float(found[2]), float(found[3] or 1)
        count = int((high - low) / step + 1e-9) + 1 if step and high >= low else 0
        return [_short(low + place * step) for place in range(min(count, MOST + 1))]
    try:
        value = float(part)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise RequestError("grid_number", value=part)
    return [_short(value)]


def _short(value: float) -> float:
    rounded = round(value, 6)
    return int(rounded) if rounded == int(rounded) else rounded


def cells(request: GenerationRequest, across: Axis, down: Axis | None = None) -> list[list[GenerationRequest]]:
    """The requests row by row, each one image; all have one seed unless seeds are varied.

    Raises `RequestError` if one value is varied twice, or there is nothing that it could change.
    """
    if down is not None and across.name == down.name:
        raise RequestError("grid_axis_twice", name=across.name)
    base = dataclasses.replace(request.with_seed(), images=1)
    rows: Sequence[float | None] = down.values if down is not None else (None,)
    return [
        [
            _with(_with(base, across.name, value), down.name, row) if down is not None and row is not None
            else _with(base, across.name, value)
            for value in across.values
        ]
        for row in rows
    ]  # fmt: skip


def _with(request: GenerationRequest, name: str, value: float) -> GenerationRequest:
    needs = {"content_strength": request.content, "style_strength": request.styles, "lora_strength": request.loras}
    if name in needs and not needs[name]:
        raise RequestError("grid_without", hint="grid_without", name=name)
    if name == "style_strength":
        return dataclasses.replace(request, style_strengths=(value,) * len(request.styles))
    if name == "lora_strength":
        loras = tuple(dataclasses.replace(lora, strength=value) for lora in request.loras)
        return dataclasses.replace(request, loras=loras)
    varied: dict[str, Any] = {name: value}
    return dataclasses.replace(request, **varied)


def sheet(
    images: Mapping[tuple[int, int], Image.Image], across: Axis, down: Axis | None, names: Mapping[str, str]
) -> Image.Image:
    """The contact sheet: `images` by row and column, blank where one is missing; `names` label the axes."""
    rows = len(down.values) if down is not None else 1
    width, height = _cell(next(iter(images.values())).size)
    size = max(14, height // 16)
    font = ImageFont.load_default(size)
    left, top, gap = (int(size * 5) if down is not None else 0), int(size * 1.8), max(2, size // 6)
    if down is not None:
        texts = [_label(names[down.name], value) for value in down.values]
        left = int(max(font.getlength(text) for text in texts)) + size
    paper = Image.new("RGB", (left + len(across.values) * (width + gap), top + rows * (height + gap)), PAPER)
    draw = ImageDraw.Draw(paper)
    for column, value in enumerate(across.values):
        center = left + column * (width + gap) + width // 2
        draw.text((center, top // 2), _label(names[across.name], value), INK, font, anchor="mm")
    for row in range(rows):
        y = top + row * (height + gap)
        if down is not None:
            draw.text((size // 2, y + height // 2), texts[row], INK, font, anchor="lm")
        for column in range(len(across.values)):
            if (image := images.get((row, column))) is not None:
                method = Image.Resampling.NEAREST if image.width < width else Image.Resampling.LANCZOS
                paper.paste(image.resize((width, height), method), (left + column * (width + gap), y))
    return paper


def _cell(size: tuple[int, int]) -> tuple[int, int]:
    long = max(size)
    scale = CELL / long if long > CELL else 2 if long <= SMALLEST_CELL else 1
    return round(size[0] * scale), round(size[1] * scale)


def _label(name: str, value: float) -> str:
    return f"{name} {value:g}" if value < 1e6 else f"{name} {value:.0f}"
