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
from uso_core.request import (
    MAX_LORA_STRENGTH,
    MAX_SEED,
    MAX_STEPS,
    MAX_STRENGTH,
    GenerationRequest,
    InputImage,
    StoredStyle,
    number,
    whole,
)

MOST = 8  # values of an axis
AXES = ("content_strength", "style_strength", "guidance", "steps", "seed", "lora_strength", "style")
ALL = "all"  # of the styles
WHOLE = {"steps": (1, MAX_STEPS), "seed": (0, MAX_SEED)}
RANGE = re.compile(r"(-?\d+(?:\.\d+)?)\s*\.\.\s*(-?\d+(?:\.\d+)?)(?:\s*/\s*(\d+(?:\.\d+)?|\.\d+))?")
CELL, SMALLEST_CELL = 512, 128  # pixels of a cell's long side: at most; those up to the second are doubled
PAPER, INK = "white", "#222"
LAST_LETTER = "\u017f"  # of those that the sheet's font has


@dataclass(frozen=True)
class Axis:
    """A value to vary, by its name in `AXES`, and up to eight values for it.

    Those of `style` are places among the request's styles, from 1, each to be the only one; `labels` are their names.
    """

    name: str
    values: tuple[float, ...]
    labels: tuple[str, ...] = ()

    def to_dict(self, cells: Sequence[GenerationRequest]) -> dict[str, Any]:
        """Ready for JSON, with the styles themselves instead of their places; `cells` has one for each value."""
        values = [each.styles[0].to_dict() for each in cells] if self.name == "style" else list(self.values)
        return {"name": self.name, "values": values}


def parse_axis(text: str, styles: Sequence[InputImage | StoredStyle]) -> Axis:
    """An axis from `guidance=2, 4`, or `style` for all of a request's `styles`; raises as `read_axis` does."""
    name, _, values = text.partition("=")
    return read_axis(name.strip(), values, styles)


def read_axis(name: str, text: str, styles: Sequence[InputImage | StoredStyle] = ()) -> Axis:
    """An axis from `0.5, 1, 1.5`, or `0,5; 1; 1,5`, or a range as `0..2/0.5` or `1..4`.

    For `style`, the request's `styles`: `all`, nothing, or their places from 1. Raises `RequestError` for an unknown
    name, for what is no number, for a number that is out of the value's range or comes twice, for more than eight, and
    for styles where there are none.
    """
    if name not in AXES:
        raise RequestError("grid_axis", hint="choose_one_of", name=name, choices=", ".join(AXES))
    if name == "style":
        if not styles:
            raise RequestError("grid_without", hint="grid_without", name=name)
        text = f"1..{len(styles)}" if text.strip().lower() in ("", ALL) else text
    text = re.sub(r"\s*(\.\.|/)\s*", r"\1", text)
    if ";" in text:  # then a comma is a decimal one, as half of the world writes it
        text = re.sub(r"(?<=\d),(?=\d)", ".", text)
    elif re.search(r"\d,\d", text) and re.search(r"[^,\s]\s+[^,\s]", text):  # it may be a decimal one
        raise RequestError("grid_values", name=name, value=text)
    given: list[float] = []
    for part in filter(None, re.split(r"[,;\s]+", text)):
        if not (found := _values(part)):  # a range that runs backwards, or stands still
            raise RequestError("grid_values", name=name, value=part)
        given += found
        if len(given) > MOST:
            raise RequestError("grid_too_many", name=name, most=MOST)
    if limits := {**WHOLE, "style": (1, len(styles))}.get(name):
        values: list[float] = [whole(name, value, *limits) for value in given]
    else:
        low, high = {"guidance": (0.0, 100.0), "lora_strength": (-MAX_LORA_STRENGTH, MAX_LORA_STRENGTH)}.get(
            name, (0.0, MAX_STRENGTH)
        )
        values = [number(name, value, low, high) for value in given]
    if not values or len(set(values)) < len(values):
        raise RequestError("grid_values", name=name, value=text)
    return Axis(name, tuple(values), tuple(styles[int(each) - 1].name for each in values) if name == "style" else ())


def _values(part: str) -> list[float]:
    if found := RANGE.fullmatch(part):
        low, high, step = float(found[1]), float(found[2]), float(found[3] or 1)
        count = int(min((high - low) / step, MOST) + 1e-9) + 1 if step and low <= high < math.inf else 0
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
    styles = request.styles
    needs = {"content_strength": request.content, "style_strength": styles, "style": styles,
             "lora_strength": request.loras}  # fmt: skip
    if name in needs and not needs[name]:
        raise RequestError("grid_without", hint="grid_without", name=name)
    if name == "style":
        place = int(value) - 1
        return dataclasses.replace(
            request, styles=(styles[place],), style_strengths=request.style_strengths[place : place + 1]
        )
    if name == "style_strength":
        return dataclasses.replace(request, style_strengths=(value,) * len(request.styles))
    if name == "lora_strength":
        loras = tuple(dataclasses.replace(lora, strength=value) for lora in request.loras)
        return dataclasses.replace(request, loras=loras)
    varied: dict[str, Any] = {name: value}
    return dataclasses.replace(request, **varied)


def sheet(images: Mapping[tuple[int, int], Image.Image], across: Axis, down: Axis | None = None) -> Image.Image:
    """The contact sheet: `images` by row and column, blank where one is missing; labels are in English."""
    rows = len(down.values) if down is not None else 1
    width, height = _cell(next(iter(images.values())).size)
    size = max(14, height // 16)
    font = ImageFont.load_default(size)
    texts = _labels(down, font, max(width, size * 16)) if down is not None else []
    left, top, gap = (int(max(map(font.getlength, texts))) + size if texts else 0), int(size * 1.8), max(2, size // 6)
    paper = Image.new("RGB", (left + len(across.values) * (width + gap), top + rows * (height + gap)), PAPER)
    draw = ImageDraw.Draw(paper)
    for column, text in enumerate(_labels(across, font, width)):
        draw.text((left + column * (width + gap) + width // 2, top // 2), text, INK, font, anchor="mm")
    for row in range(rows):
        y = top + row * (height + gap)
        if texts:
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


def _labels(axis: Axis, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> list[str]:
    """What stands above a column or before a row; beyond `width` pixels a file loses its middle, a number its name."""
    name, labels = axis.name.replace("_", " "), []
    for place, value in enumerate(axis.values):
        if axis.labels:
            text = " ".join(axis.labels[place].split())
            if not text.isprintable() or max(text, default="\uffff") > LAST_LETTER:
                text = f"{name} {value:.0f}"
            whole_text, half = text, len(text) // 2
            while half > 1 and font.getlength(text) > width:
                half -= 1
                text = f"{whole_text[:half]}…{whole_text[-half:]}"
        else:
            shown = f"{value:g}" if value < 1e6 else f"{value:.0f}"
            text = f"{name} {shown}"
            text = text if font.getlength(text) <= width else shown
        labels.append(text)
    return labels
