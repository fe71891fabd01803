"""Several prompts in one: `{red|blue}` stands for each of its parts."""

from __future__ import annotations

import re

from uso_core.errors import RequestError

MOST = 64  # prompts from one
CHOICE = re.compile(r"\{([^{}]*\|[^{}]*)\}")  # the innermost: it has no braces inside
ESCAPED = {"\\{": "\ue000", "\\}": "\ue001", "\\|": "\ue002"}  # private characters, for as long as we look


def expand(prompt: str) -> tuple[str, ...]:
    """Every prompt that one with choices stands for, in order and each once; braces without a bar are plain text.

    Choices may be nested or empty; a backslash before a brace or a bar keeps it. Raises `RequestError` for
    more than 64.
    """
    text = prompt
    for written, kept in ESCAPED.items():
        text = text.replace(written, kept)
    if not CHOICE.search(text):
        return (_unescaped(text),)
    found = [text]
    while any(CHOICE.search(each) for each in found):
        found = list(dict.fromkeys(part for each in found for part in _first(each)))
        if len(found) > MOST:
            raise RequestError("too_many_prompts", most=MOST)
    return tuple(dict.fromkeys(re.sub(r" {2,}", " ", _unescaped(each)).strip() for each in found))


def _first(text: str) -> list[str]:
    choice = CHOICE.search(text)
    if choice is None:
        return [text]
    return [text[: choice.start()] + part + text[choice.end() :] for part in choice[1].split("|")]


def _unescaped(text: str) -> str:
    for written, kept in ESCAPED.items():
        text = text.replace(kept, written[1])
    return text
