"""The program's texts by key: a `Message` carries a key and its values, and only this module turns it into words.

translations/en.json holds every English text; every other file there is a translation: a new language is one file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any

FOLDER = Path(__file__).parent / "translations"
ENGLISH = "en"
OF_FIELDS = ("error_out_of_range", "error_no_number", "error_no_whole_number")  # whose `name` is a field's
LONGEST_VALUE, LONGEST_TEXT = 200, 1000  # characters that a text quotes of a value, and of a path or another text


class Bytes(int):
    """A number of bytes, shown in texts as "10.3 GB", "850 MB" or "44.5 kB". 1 GB is 10^9 bytes."""


class Shown(str):
    """A value as Python shows it, which texts never quote again."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True)
class Message:
    """Something to say: the key of its text, and the values that the text uses.

    Values are plain data, so that messages can be pickled and compared; a value may itself be a message, or a sequence
    of them: phrases are then joined by commas, sentences by spaces. `str()` is the English text.
    """

    key: str
    values: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", {name: _plain(value) for name, value in self.values.items()})

    def __hash__(self) -> int:
        return hash(self.key)

    def __str__(self) -> str:
        return words(self)


def message(key: str, /, **values: Any) -> Message:
    """A message with its values by name."""
    return Message(key, values)


def words(said: Message, language: str = ENGLISH) -> str:
    """The message in a language; raises `KeyError` for a key that the language lacks."""
    return _Words(language).vformat(languages()[language][said.key], (), _labelled(said, language))


def _labelled(said: Message, language: str) -> Mapping[str, Any]:
    """The values, a field's name as the page in another language calls it; programs get English, and their own name."""
    label = languages()[language].get(str(said.values.get("name")), "{")
    if language == ENGLISH or said.key not in OF_FIELDS or "{" in label:
        return said.values
    return {**said.values, "name": label}


@cache
def languages() -> dict[str, dict[str, str]]:
    """The texts by key, for each language ("de", "zh")."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}


def size_text(size: int, language: str = ENGLISH) -> str:
    """Bytes for display, as `Bytes` describes."""
    if size >= 10**9:
        return f"{size / 10**9:.1f} GB".replace(".", decimal_point(language))
    return (
        f"{round(size / 10**6)} MB" if size >= 10**6 else f"{size / 1000:.1f} kB".replace(".", decimal_point(language))
    )


def decimal_point(language: str) -> str:
    """The decimal separator of a language."""
    return languages()[language]["decimal_point"]


class _Words(Formatter):
    """Fills in a text with values in its language's form, shortened to a readable length."""

    def __init__(self, language: str) -> None:
        self._language = language

    def convert_field(self, value: Any, conversion: Any) -> Any:
        if conversion == "r" and isinstance(value, str) and len(value) > LONGEST_VALUE:
            value = value[:LONGEST_VALUE] + "…"
        return super().convert_field(value, conversion)

    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, Message):
            return words(value, self._language)
        if isinstance(value, tuple):
            parts = [self.format_field(each, format_spec) for each in value]
            sentences = all(part.endswith((".", "。")) for part in parts)
            return languages()[self._language]["between_sentences" if sentences else "between_phrases"].join(parts)
        if isinstance(value, Bytes):
            return size_text(value, self._language)
        text = format(value, format_spec)
        if len(text) > LONGEST_TEXT:
            return text[:LONGEST_TEXT] + "…"
        if isinstance(value, float):
            return text.replace(".", decimal_point(self._language))
        return text


def _plain(value: Any) -> Any:
    """A value as data: anything but a text, number or message is kept in its shown form."""
    if value is None or isinstance(value, str | int | float | Message):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Sequence) and any(isinstance(each, Message) for each in value):
        return tuple(_plain(each) for each in value)
    shown = str(value) if isinstance(value, BaseException) else repr(value)
    return Shown(shown if len(shown) <= LONGEST_VALUE else shown[:LONGEST_VALUE] + "…")
