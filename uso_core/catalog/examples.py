"""The examples in examples/<name>/config.json, in USO's own format with a few additions.

prompt, seed, image_ref1 (content), image_ref2 and on (styles) are the reference's; title, aspect, content_strength and
style_strengths are ours. Sizes, steps and guidance come from the model, so that an example suits every model.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

from uso_core.catalog.models import Model
from uso_core.errors import RequestError
from uso_core.images import content_crop, kept_size, open_image
from uso_core.request import SIZE_MULTIPLE, GenerationRequest, InputImage
from uso_core.settings import ROOT
from uso_core.text_files import parsed_json

FOLDER = ROOT / "examples"
RESULT = "result.webp"  # in an example's folder: what the embedded model made of it
ASPECTS = {"1:1": (1, 1), "3:2": (3, 2), "2:3": (2, 3), "4:3": (4, 3), "3:4": (3, 4), "16:9": (16, 9), "9:16": (9, 16)}
AS_CONTENT = "as content"
MAX_CONFIG_BYTES = 64 * 1024
KEYS: dict[str, type | tuple[type, ...]] = {
    "prompt": str, "seed": int, "title": str, "aspect": str, "content_strength": (int, float), "style_strengths": list,
}  # fmt: skip

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """One example with its images read; `paths` are their files by sha256."""

    name: str
    title: str
    prompt: str
    seed: int
    content: InputImage | None
    styles: tuple[InputImage, ...]
    aspect: str = "1:1"
    content_strength: float = 1.0
    style_strengths: tuple[float, ...] = ()
    paths: dict[str, Path] = field(default_factory=dict, compare=False)

    def request(self, model: Model) -> GenerationRequest:
        """The example as a request, with a model's sizes and defaults."""
        if self.aspect == AS_CONTENT and self.content is not None and self.content.image is not None:
            width, height, content_size = sides_of_content(*self.content.image.size, model.content_size, model)
        else:
            width, height = sides(*ASPECTS.get(self.aspect, (1, 1)), model)
            content_size = model.content_size
        return GenerationRequest(
            self.prompt, self.content, self.styles, width=width, height=height, steps=model.steps,
            sampler=model.sampler, guidance=model.guidance, seed=self.seed, content_size=content_size,
            content_strength=self.content_strength, style_strengths=self.style_strengths,
        )  # fmt: skip


def sides(across: int, down: int, model: Model) -> tuple[int, int]:
    """Width and height for a model at this aspect, in multiples of 16 pixels: mostly about the model's own area."""
    scale = model.size / (down if model.keeps_height and across > down else (across * down) ** 0.5)
    width, height = (max(round(part * scale / SIZE_MULTIPLE), 1) * SIZE_MULTIPLE for part in (across, down))
    return width, height


def aspect_of(width: int, height: int) -> str:
    """The nearest aspect that becomes these sides when both are rounded to multiples of 16 pixels; "" if none does."""
    off = {}
    for name, (across, down) in ASPECTS.items():
        rounding = SIZE_MULTIPLE / 2 * (1 + across / down)  # of the height, seen in the width, beside the width's own
        if (distance := abs(width - height * across / down)) < rounding:
            off[name] = distance / rounding
    return min(off, key=off.__getitem__, default="")


def sides_of_content(across: int, down: int, content_size: int, model: Model) -> tuple[int, int, int]:
    """Width, height and content size in pixels for a result shaped like a content image of across x down pixels.

    A model that keeps its height gets content and result in one size, as it was trained to keep a layout.
    """
    size = model.size
    if model.keeps_height:
        wide = ceil(size * across / down / SIZE_MULTIPLE) * SIZE_MULTIPLE  # so that `size` remains after cropping
        size = content_size = min(wide if across > down else sides(across, down, model)[1], model.sides[1])
    return *kept_size(content_crop(across, down, content_size), content_size, size), content_size


def read_examples(folder: Path = FOLDER) -> list[Example]:
    """The examples in a folder, sorted by name; an unreadable one is logged and left out."""
    found = []
    for path in sorted(folder.glob("*/config.json")):
        try:
            found.append(read_example(path))
        except RequestError as error:
            log.warning("%s", error)
    return found


def read_example(path: Path) -> Example:
    """Reads one example from its config.json; raises `RequestError` naming the file and what is wrong with it."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise RequestError("example_too_large", hint="example", path=path, most=MAX_CONFIG_BYTES)
        values: Any = parsed_json(path.read_bytes(), path)
    except OSError as error:
        raise RequestError("file_unreadable", path=path, reason=error.strerror) from None
    if not isinstance(values, dict) or not isinstance(values.get("prompt"), str):
        raise RequestError("example_no_prompt", hint="example", path=path)
    for key, kind in KEYS.items():
        if key in values and (not isinstance(values[key], kind) or isinstance(values[key], bool)):
            raise RequestError("example_value", hint="example", key=key, path=path, value=values[key])
    if values.get("aspect", "1:1") not in (*ASPECTS, AS_CONTENT):
        raise RequestError(
            "example_aspect", path=path, value=values["aspect"], choices=", ".join((*ASPECTS, AS_CONTENT))
        )
    content = _image(values, "image_ref1", path)
    styles = [_image(values, key, path) for key in sorted(key for key in values if key.startswith("image_ref"))
              if key != "image_ref1"]  # fmt: skip
    images = [each for each in (content, *styles) if each is not None]
    example = Example(
        path.parent.name, values.get("title", path.parent.name), values["prompt"], values.get("seed", 0),
        content[0] if content else None, tuple(each[0] for each in styles if each), values.get("aspect", "1:1"),
        values.get("content_strength", 1.0), tuple(values.get("style_strengths", ())),
        {image.sha256: file for image, file in images},
    )  # fmt: skip
    GenerationRequest(
        example.prompt, example.content, example.styles, seed=example.seed,
        content_strength=example.content_strength, style_strengths=example.style_strengths,
    )  # fmt: skip
    return example


def _image(values: dict[str, Any], key: str, config: Path) -> tuple[InputImage, Path] | None:
    """The image under a key and its file, which must be beside the config."""
    name = values.get(key)
    if name in (None, ""):
        return None
    if not isinstance(name, str) or name != Path(name).name or "\\" in name:
        raise RequestError("example_image_not_beside", hint="example", key=key, config=config, value=name)
    return open_image(config.parent / name), config.parent / name
