"""The LoRAs that a node applies, in whichever way its class writes them down."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from uso_core.comfy.values import as_number

# The names under which USO's own LoRA is published (bytedance-research/USO, Comfy-Org/USO_1.0_Repackaged) and kept.
USO_NAMES = frozenset({"uso flux1 dit lora", "uso dit lora", "dit lora", "uso lora", "uso"})
BESIDE = "beside"  # the folder of a LoRA in our own workflows, if it is called as USO's
OTHERS_FOLDERS = frozenset({"uno", "umo", "dreamo", BESIDE})  # UNO's LoRA is called dit_lora too
NO_LORA = frozenset({"", "none", "null"})
TAG = re.compile(r"<lora:([^:>]{1,255})(?::\s*([-+]?(?:\d{1,3}(?:\.\d{0,6})?|\.\d{1,6})))?[^>]{0,64}>")
FILE_KEY = re.compile(r"(?:.*_)?lora(?:_name)?(?:_?(\d{1,2}))?(?:_name)?", re.IGNORECASE)
STRENGTH_WORDS = ("strength", "weight", "str", "wt")
MAX_LORAS = 100  # of one node


class LoRA(NamedTuple):
    """A LoRA as a workflow names it; `strength` is None if the workflow does not give it."""

    name: str
    strength: float | None


def is_uso(name: str) -> bool:
    """Whether a file's whole name is that of USO's own LoRA, not only a part of it."""
    *folders, file = re.split(r"[\\/]+", name.lower())
    words = re.split(r"[\W_]+", re.sub(r"\.(safetensors|sft|gguf)$", "", file))
    while words and re.fullmatch(r"v\d+|\d|fp8|bf16|fp16|fp32|e4m3fn", words[-1]):
        words.pop()
    if {word for folder in folders for word in re.split(r"[\W_]+", folder)} & OTHERS_FOLDERS:
        return False
    return " ".join(words) in USO_NAMES


def folder_of(lora: LoRA) -> str:
    """The folders in a LoRA's name, with slashes between."""
    return "/".join(re.split(r"[\\/]+", lora.name)[:-1])


def loras_of(values: Mapping[str, object]) -> Iterator[LoRA]:
    """The LoRAs in a node's values that are switched on: one, numbered ones, rows of a list, or tags in a text."""
    values = {key: value for key, value in itertools.islice(values.items(), 8 * MAX_LORAS) if len(key) <= 100}
    if values.get("toggle") is False:
        return
    rows = [value for value in values.values() if isinstance(value, dict)]
    rows += [row for value in values.values() if isinstance(value, list) for row in value if isinstance(row, dict)]
    found = [_row(row) for row in rows[:MAX_LORAS]]
    found += [_numbered(values, key, value) for key, value in values.items()]
    given = [lora for lora in found if lora is not None]
    if not given:
        texts = [value for value in values.values() if isinstance(value, str) and "<lora:" in value]
        tags = [tag for text in texts for tag in TAG.findall(text[:20_000])]
        given = [LoRA(name, float(strength) if strength else 1.0) for name, strength in tags[:MAX_LORAS]]
    yield from (lora for lora in given if lora.strength != 0)


def holds_lora(values: Mapping[str, object]) -> bool:
    """Whether a node's values have a place for a LoRA, switched on or off."""
    rows = [value for value in values.values() if isinstance(value, dict)]
    rows += [row for value in values.values() if isinstance(value, list) for row in value if isinstance(row, dict)]
    named = any(isinstance(row.get("lora", row.get("name")), str) for row in rows)
    return named or any(FILE_KEY.fullmatch(key[:100]) and isinstance(name, str) for key, name in values.items())


def _row(row: dict[str, Any]) -> LoRA | None:
    name = row.get("lora", row.get("name"))
    off = row.get("on") is False or row.get("active") is False
    if not isinstance(name, str) or name.lower() in NO_LORA or off:
        return None
    return LoRA(name, _number(row.get("strength")))


def _numbered(values: Mapping[str, object], key: str, name: object) -> LoRA | None:
    match = FILE_KEY.fullmatch(key)
    if match is None or not isinstance(name, str) or name.lower() in NO_LORA:
        return None
    number = match[1] or ""
    count = _number(values.get("lora_count", values.get("num_loras")))
    if number and count is not None and int(number) > count:
        return None
    if number and values.get(f"switch_{number}") in ("Off", False):
        return None
    simple = values.get("input_mode", values.get("mode")) == "simple"
    return LoRA(name, _strength(values, number, simple))


def is_strength(name: str) -> bool:
    """Whether an input of a node that applies LoRAs sets a strength for the model, by its name."""
    return any(word in name.lower() for word in STRENGTH_WORDS) and "clip" not in name.lower()


def _strength(values: Mapping[str, object], number: str, simple: bool) -> float | None:
    """The strength for the model among the numbers that belong to a LoRA."""
    own = {
        key.lower(): strength
        for key, value in values.items()
        if (strength := _number(value)) is not None
        and is_strength(key)
        and re.findall(r"\d+", key) == ([number] if number else [])
    }
    preferred = sorted(own, key=lambda key: ("model" in key) == simple)
    return own[preferred[0]] if preferred else None


def _number(value: object) -> float | None:
    number = as_number(value)
    return float(number) if number is not None else None
