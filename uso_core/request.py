"""One generation as a frozen value, with the rules for what may be requested.

These rules hold for every model; what suits one model (available sizes, defaults) is in `catalog/models.py`.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uso_core.errors import RequestError
from uso_core.messages import Message, message

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

SIZE_MULTIPLE = 16  # one token covers 2 x 2 latents of 8 x 8 pixels
MAX_SIDE = 4096
MAX_STEPS = 500
MAX_GUIDANCE = 100.0
MAX_SEED = 2**53 - 1  # the largest integer that JSON readers in browsers keep exactly
MAX_PROMPT_CHARACTERS = 20_000
MAX_STYLES = 8
MAX_STRENGTH = 2.0
MAX_IMAGES = 64
MAX_LORAS = 8
MAX_LORA_STRENGTH = 4.0
SCHEDULES = ("uso", "flux")
SAMPLERS = ("euler", "ab2")
FORMAT_VERSION = 1


@dataclass(frozen=True)
class InputImage:
    """An input image: RGB pixels, with the name and hash by which a request refers to it.

    Equal images have equal pixels, whatever their names. `image` is None if the request was read from a file, which
    does not contain the image itself. `background` stands behind what was transparent; `notes` say what of the file was
    not taken. While a request waits, a large image is in its file alone: then `image` is None, and `size` is known.
    """

    name: str = field(compare=False)
    sha256: str
    image: Image.Image | None = field(default=None, compare=False, repr=False)
    path: Path | None = field(default=None, compare=False, repr=False)  # where it can be read again
    background: str = field(default="white", compare=False, repr=False)
    notes: tuple[Message, ...] = field(default=(), compare=False, repr=False)
    size: tuple[int, int] | None = field(default=None, compare=False, repr=False)  # width and height in pixels

    def to_dict(self) -> dict[str, str]:
        return {"name": self.name, "sha256": self.sha256}


@dataclass(frozen=True)
class StoredStyle:
    """A style stored under a name: the encoding of its images, so that they are no longer needed.

    `tokens` holds an array (K, D) float32 for each image, `strengths` a number for each; they fit only the model whose
    projector and vision tower have that `fingerprint`. A request read from a file has only the name and hash.
    """

    name: str = field(compare=False)
    sha256: str
    tokens: tuple[np.ndarray, ...] = field(default=(), compare=False, repr=False)
    strengths: tuple[float, ...] = field(default=(), compare=False)
    model: str = field(default="", compare=False)
    fingerprint: str = field(default="", compare=False)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "sha256": self.sha256, "saved": True}


@dataclass(frozen=True)
class LoRA:
    """A LoRA beside USO's: the name and hash of its file, and how strongly it is added (1 as trained, may be negative).

    `path` is where the file lies here; a request read from a file has none.
    """

    name: str = field(compare=False)
    sha256: str
    strength: float = 1.0
    path: Path | None = field(default=None, compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "sha256": self.sha256, "strength": self.strength}


@dataclass(frozen=True)
class Ask:
    """What is known of a request's field besides its type and default: all faces derive from it.

    `kind` is "text", "whole", "number", "flag", "choice", "image" or "list"; numbers are in [low, high]. `model` names
    the attribute of `catalog.Model` with the field's default, used if a face gives None. `flag` is the command line's;
    a field without one is not available there.
    """

    kind: str
    help: str
    low: float = 0
    high: float = 0
    choices: tuple[str, ...] = ()
    model: str = ""
    flag: str = ""


def asked(default: Any, kind: str, text: str, **known: Any) -> Any:
    """A request field with the facts that its faces need."""
    return dataclasses.field(default=default, metadata={"ask": Ask(kind, text, **known)})


def asks(kind: type[Any]) -> dict[str, Ask]:
    """The facts on each field of a request's class that callers may set, in order."""
    return {field.name: field.metadata["ask"] for field in dataclasses.fields(kind) if "ask" in field.metadata}


def settled(kind: type[Any], values: Mapping[str, Any], model: object) -> dict[str, Any]:
    """The arguments of a request's class from values by field name, as every face gives them.

    None or a missing value means the model's default if the field has one, else the field's. A seed of -1 means that
    one is drawn. Other names are ignored.
    """
    given: dict[str, Any] = {}
    for name, ask in asks(kind).items():
        value = values.get(name)
        if value is None and ask.model:
            value = getattr(model, ask.model)
        if value is not None and not (name == "seed" and value == -1):
            given[name] = value
    if "guidance" in given and (trained := getattr(model, "guidances", None)):
        number("guidance", given["guidance"], *trained)  # the model's range, which a request does not know
    return given


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to denoise: the pipeline's values. Raises `RequestError` naming a value that is out of range.

    Width and height are floored to multiples of 16, as in the reference. Strengths go from 0 (as if the image were
    absent) through 1 (as trained) to 2; `style_strengths` has one for each style, or none if all are 1.
    """

    width: int = asked(1024, "whole", "width in pixels, floored to a multiple of 16", low=SIZE_MULTIPLE, high=MAX_SIDE,
                       model="size", flag="--width")  # fmt: skip
    height: int = asked(1024, "whole", "height in pixels, floored to a multiple of 16", low=SIZE_MULTIPLE,
                        high=MAX_SIDE, model="size", flag="--height")  # fmt: skip
    steps: int = asked(25, "whole", "denoising steps", low=1, high=MAX_STEPS, model="steps", flag="--num_steps")
    guidance: float = asked(4.0, "number", "how closely to follow the prompt", high=MAX_GUIDANCE, model="guidance",
                            flag="--guidance")  # fmt: skip
    schedule: str = asked(SCHEDULES[0], "choice", "time steps: uso as published, or flux as in ComfyUI",
                          choices=SCHEDULES, flag="--schedule")  # fmt: skip
    sampler: str = asked(SAMPLERS[0], "choice", "euler as published, or ab2, of second order, which needs fewer steps",
                         choices=SAMPLERS, model="sampler", flag="--sampler")  # fmt: skip
    content_strength: float = asked(1.0, "number", "0 as if the content image were absent, 1 as trained, up to 2",
                                    high=MAX_STRENGTH, flag="--content_strength")  # fmt: skip
    style_strengths: tuple[float, ...] = asked((), "list", "the same for each style image",
                                               flag="--style_strengths")  # fmt: skip
    fast: bool = asked(False, "flag", "skip steps in which little changes: faster, slightly different",
                       flag="--fast")  # fmt: skip

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            value, ask = getattr(self, each.name), each.metadata.get("ask")
            if ask is not None and ask.kind in _CHECKS and not (value is None and each.default is None):
                object.__setattr__(self, each.name, _CHECKS[ask.kind](each.name, value, ask))
        for name in ("width", "height"):
            object.__setattr__(self, name, getattr(self, name) // SIZE_MULTIPLE * SIZE_MULTIPLE)
        strengths = tuple(number("style strength", strength, 0.0, MAX_STRENGTH) for strength in self.style_strengths)
        object.__setattr__(self, "style_strengths", strengths if any(each != 1.0 for each in strengths) else ())

    @property
    def sampling(self) -> Sampling:
        """Only the sampling values."""
        return Sampling(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Sampling)})


@dataclass(frozen=True)
class GenerationRequest(Sampling):
    """What to generate. Raises `RequestError` naming a value that is out of range.

    `seed=None` stays None until `with_seed()`; image j of `images` uses seed + j. `content_size` is the long side in
    pixels to which the content image is resized. A stored style's strength multiplies the strengths stored in it. With
    `keep_size` the result has the content image's shape, its long side being the model's default size. `loras` are
    added to the model in their order; those of strength 0 are left out.
    """

    prompt: str = asked("", "text", "what the image shows, as a natural sentence; may be empty", flag="--prompt")
    content: InputImage | None = asked(None, "image", "the image whose subject to keep")
    styles: tuple[InputImage | StoredStyle, ...] = ()
    seed: int | None = asked(None, "whole", "image j uses seed + j; -1 draws one", high=MAX_SEED, flag="--seed")
    images: int = asked(1, "whole", "how many images to make, with consecutive seeds", low=1, high=MAX_IMAGES,
                        flag="--num_images_per_prompt")  # fmt: skip
    content_size: int = asked(512, "whole", "long side in pixels to which the content image is resized",
                              low=SIZE_MULTIPLE, high=MAX_SIDE, model="content_size", flag="--content_ref")  # fmt: skip
    keep_size: bool = asked(False, "flag", "use the content image's shape instead of width and height",
                            flag="--instruct_edit")  # fmt: skip
    model: str | None = None
    loras: tuple[LoRA, ...] = ()

    def __post_init__(self) -> None:
        check_prompt(self.prompt)
        for lora in self.loras:
            number("LoRA strength", lora.strength, -MAX_LORA_STRENGTH, MAX_LORA_STRENGTH)
        object.__setattr__(self, "loras", tuple(lora for lora in self.loras if lora.strength))
        if len(self.loras) > MAX_LORAS:
            raise RequestError("too_many_loras", count=len(self.loras), most=MAX_LORAS)
        object.__setattr__(self, "styles", tuple(self.styles))
        check_count(self.style_strengths, len(self.styles))
        super().__post_init__()
        if self.seed is not None:
            whole("seed", self.seed, 0, MAX_SEED - self.images + 1)
        images = sum(len(style.tokens) or 1 if isinstance(style, StoredStyle) else 1 for style in self.styles)
        if images > MAX_STYLES:
            raise RequestError("too_many_styles", images=images, most=MAX_STYLES)
        if self.keep_size and self.content is None:
            raise RequestError("keep_size_without_content")

    @property
    def input_images(self) -> tuple[InputImage, ...]:
        """The content image, if any, then the style images; stored styles have none."""
        styles = tuple(style for style in self.styles if isinstance(style, InputImage))
        return (self.content, *styles) if self.content else styles

    @property
    def mode(self) -> Message:
        """The mode, which follows from what is filled in."""
        parts = ["style" if len(self.styles) == 1 else "styles"] if self.styles else []
        parts += ["subject"] if self.content else [] if parts else ["text"]
        if self.styles and self.content and not self.prompt.strip():
            parts.append("layout")
        return message(f"request_{'_'.join(parts)}", styles=len(self.styles))

    def with_seed(self) -> GenerationRequest:
        """The same request with a seed; if it has none, a random one below 10^8, easy to read aloud."""
        return self if self.seed is not None else dataclasses.replace(self, seed=secrets.randbelow(10**8))

    def to_dict(self) -> dict[str, Any]:
        """Values ready for JSON; images by name and hash. `from_dict` reads them back."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["content"] = self.content.to_dict() if self.content else None
        values["styles"] = [style.to_dict() for style in self.styles]
        values["style_strengths"] = list(self.style_strengths)
        values["loras"] = [lora.to_dict() for lora in self.loras]
        if not self.loras:  # as before there were any
            del values["loras"]
        return {"version": FORMAT_VERSION, **values}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GenerationRequest:
        """Reads `to_dict`'s untrusted output; raises `RequestError` on an unknown version, key or type."""
        if not isinstance(values, dict):
            raise RequestError("settings_no_object", hint="our_file")
        values = dict(values)
        version = values.pop("version", None)
        if version != FORMAT_VERSION or isinstance(version, bool):
            raise RequestError("settings_version", version=version, format_version=FORMAT_VERSION)
        unknown = sorted(set(values) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise RequestError("settings_unknown_entry", hint="settings_version", value=unknown[0])
        if values.get("content") is not None:
            values["content"] = _image(values["content"])
        for name in ("styles", "style_strengths", "loras"):
            if not isinstance(values.get(name, []), list):
                raise RequestError("no_list", hint="our_file", name=name, value=values[name])
        values["styles"] = tuple(_style(style) for style in values.get("styles", []))
        values["loras"] = tuple(_lora(lora) for lora in values.get("loras", []))
        if not isinstance(values.get("model"), str | None):
            raise RequestError("model_no_name", value=values["model"])
        return cls(**values)


@dataclass(frozen=True)
class Result:
    """The outcome besides the pixels: enough to repeat it, and how long it took (seconds)."""

    request: GenerationRequest
    seed: int
    model: str
    device: str
    dtype: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        request = dataclasses.replace(self.request, seed=self.seed, images=1, model=self.model)
        return {**request.to_dict(), "device": self.device, "dtype": self.dtype, "seconds": round(self.seconds, 3)}


def check_prompt(prompt: object) -> None:
    if not isinstance(prompt, str):
        raise RequestError("prompt_no_text", prompt=prompt)
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise RequestError("prompt_half_character")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise RequestError("prompt_too_long", characters=len(prompt), most=MAX_PROMPT_CHARACTERS)


def check_strengths(strengths: Sequence[float], styles: int) -> tuple[float, ...]:
    """The strengths as floats, () if all are 1; raises `RequestError` unless there is one per style image."""
    checked = Sampling(style_strengths=tuple(strengths)).style_strengths
    check_count(tuple(strengths), styles)
    return checked


def check_count(strengths: Sequence[float], styles: int) -> None:
    if strengths and len(strengths) != styles:
        raise RequestError("strengths_count", strengths=len(strengths), styles=styles)


def number(name: str, value: object, low: float, high: float) -> float:
    """`value` as a float in [low, high]; else raises a `RequestError` that quotes it."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise RequestError("no_number", hint="number_range", name=name, value=value, low=low, high=high)
    try:
        result = float(value)
    except OverflowError:
        result = math.nan
    if not (math.isfinite(result) and low <= result <= high):
        raise RequestError("out_of_range", hint="number_range", name=name, value=value, low=low, high=high)
    return result


def whole(name: str, value: object, low: int, high: int) -> int:
    """`value` as an int in [low, high], 512.0 as 512, but not 512.5; else raises a `RequestError` that quotes it."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        result = int(value)
    elif isinstance(value, numbers.Real) and not isinstance(value, bool) and float(value).is_integer():
        result = int(float(value))
    else:
        raise RequestError("no_whole_number", hint="whole_range", name=name, value=value, low=low, high=high)
    if not low <= result <= high:
        raise RequestError("out_of_range", hint="whole_range", name=name, value=value, low=low, high=high)
    return result


def _image(value: object) -> InputImage:
    if isinstance(value, dict) and set(value) == {"name", "sha256"} and all(isinstance(v, str) for v in value.values()):
        return InputImage(value["name"], value["sha256"])
    raise RequestError("no_image_reference", value=value)


def _style(value: object) -> InputImage | StoredStyle:
    if not isinstance(value, dict) or "saved" not in value:
        return _image(value)
    if value["saved"] is not True:
        raise RequestError("no_style_reference", hint="our_file", value=value)
    named = _image({key: each for key, each in value.items() if key != "saved"})
    return StoredStyle(named.name, named.sha256)


def _lora(value: object) -> LoRA:
    if not isinstance(value, dict) or set(value) != {"name", "sha256", "strength"}:
        raise RequestError("no_lora_reference", hint="our_file", value=value)
    named = _image({name: value[name] for name in ("name", "sha256")})
    strength = number("LoRA strength", value["strength"], -MAX_LORA_STRENGTH, MAX_LORA_STRENGTH)
    return LoRA(named.name, named.sha256, strength)


def _choice(name: str, value: object, ask: Ask) -> object:
    if value not in ask.choices:
        raise RequestError(
            "no_such_choice", hint="choose_one_of", name=name, value=value, choices=", ".join(ask.choices)
        )
    return value


def _flag(name: str, value: object, ask: Ask) -> object:
    if not isinstance(value, bool):
        raise RequestError("no_flag", name=name, value=value)
    return value


_CHECKS: dict[str, Callable[[str, Any, Ask], object]] = {
    "whole": lambda name, value, ask: whole(name.replace("_", " "), value, int(ask.low), int(ask.high)),
    "number": lambda name, value, ask: number(name.replace("_", " "), value, ask.low, ask.high),
    "choice": _choice,
    "flag": _flag,
}
