"""The page in its visitors' languages (`messages.py`).

Fixed texts on the page (`label`) are translated in the browser, by its language; texts said at run time (`say`, `tell`)
by the language that the visitor's request asks for, which is the same one. Programs get English.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextvars import copy_context
from string import Formatter
from typing import Any, TypeVar

import gradio as gr
from gradio.context import LocalContext
from gradio.i18n import I18nData

from uso_core.messages import ENGLISH, Message, languages, words

NUMBERS = range(1, 5)  # of fields that exist several times
SAID_LATER = ("error_", "hint_", "note_", "plan_", "between_")  # key prefixes of texts that are never fixed
PREFIX = "uso_"  # of the keys in the browser, where Gradio has keys too

Each = TypeVar("Each")


def label(key: str, number: int | None = None) -> I18nData:
    """A fixed text that the browser translates, numbered if there are several.

    It may be part of a longer string, once: the browser replaces the first. Raises `KeyError` for an unknown key.
    """
    texts()[key]
    return I18nData(PREFIX + (key if number is None else f"{key}_{number}"))


def translations() -> gr.I18n:
    """What the browser needs for `label`."""
    return gr.I18n(**{language: dict(_fixed(texts)) for language, texts in languages().items()})


def say(key: str, **values: object) -> str:
    """A filled-in text, in the language of the current request; English if there is none."""
    return tell(Message(key, values))


def tell(said: Message) -> str:
    """A message in the language of the current request; English if there is none."""
    return words(said, _spoken())


def texts() -> dict[str, str]:
    """Every text by its key, in English."""
    return languages()[ENGLISH]


def say_on_load(page: gr.Blocks, made: Callable[[], list[Any]], outputs: list[Any]) -> None:
    """Puts what `made` returns into `outputs` again, if it was built in English, for another language."""

    def load() -> Any:
        values = made() if _spoken() != ENGLISH else [gr.skip()] * len(outputs)
        return values if len(outputs) > 1 else values[0]

    page.load(load, None, outputs, api_visibility="private", queue=False, show_progress="hidden")


def in_english(items: Iterator[Each]) -> Iterator[Each]:
    """The items of an iterator, made with English words whoever asks for them."""
    context = copy_context()
    context.run(LocalContext.request.set, None)
    while True:
        try:
            yield context.run(next, items)
        except StopIteration:
            return


def preferred(accept_language: str) -> str:
    """The language for a browser by its header: its first choice, which the browser itself uses, or English."""
    wished = re.split(r"[,;]", accept_language, maxsplit=1)[0].strip().lower()
    known = {language.lower(): language for language in languages()}
    return known.get(wished) or known.get(wished.partition("-")[0], ENGLISH)


def _spoken() -> str:
    request = LocalContext.request.get(None)
    headers = getattr(request, "headers", None)  # None too if another function calls this
    return preferred(headers.get("accept-language", "")) if headers is not None else ENGLISH


def _fixed(texts: dict[str, str]) -> Iterator[tuple[str, str]]:
    for key, text in texts.items():
        if key.startswith(SAID_LATER):
            continue
        names = {name for _, name, _, _ in Formatter().parse(text) if name}
        if not names:
            yield PREFIX + key, text
        elif names == {"number"}:
            yield from ((f"{PREFIX}{key}_{number}", text.format(number=number)) for number in NUMBERS)
