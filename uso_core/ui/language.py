"""The page in its visitors' languages (`messages.py`).

What is fixed on the page (`label`) is translated in the browser, by the browser's language; what is said while it runs
(`say`, `tell`) by the language that the visitor's request asks for, which is the same one. Programs are spoken to in
English.
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

NUMBERS = range(1, 5)  # of the fields that there are several of
SAID_LATER = ("error_", "hint_", "note_", "plan_", "between_")  # beginnings of keys of what is never fixed
PREFIX = "uso_"  # of the keys in the browser, which knows keys of Gradio's beside ours

Each = TypeVar("Each")


def label(key: str, number: int | None = None) -> I18nData:
    """A fixed text, numbered where there are several, that the browser puts into its language.

    It may be put into a longer string, once: the browser replaces the first. Raises `KeyError` for an unknown key.
    """
    texts()[key]
    return I18nData(PREFIX + (key if number is None else f"{key}_{number}"))


def translations() -> gr.I18n:
    """What the browser needs to know for `label`."""
    return gr.I18n(**{language: dict(_fixed(texts)) for language, texts in languages().items()})


def say(key: str, **values: object) -> str:
    """A text filled in, in the language of the request that is being answered; English where there is none."""
    return tell(Message(key, values))


def tell(said: Message) -> str:
    """A message in the language of the request that is being answered; English where there is none."""
    return words(said, _spoken())


def texts() -> dict[str, str]:
    """Every text by its key, in English."""
    return languages()[ENGLISH]


def say_on_load(page: gr.Blocks, made: Callable[[], list[Any]], outputs: list[Any]) -> None:
    """Puts what `made` returns into `outputs` again, where it was built in English, for another language."""

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
    """The language for a browser by its header: its first wish, as the browser itself goes by it, or English."""
    wished = re.split(r"[,;]", accept_language, maxsplit=1)[0].strip().lower()
    known = {language.lower(): language for language in languages()}
    return known.get(wished) or known.get(wished.partition("-")[0], ENGLISH)


def _spoken() -> str:
    request = LocalContext.request.get(None)
    headers = getattr(request, "headers", None)  # None too where a function is called by another
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
