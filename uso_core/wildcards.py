"""Several prompts in one: `{red|blue}` stands for each of its parts."""

from __future__ import annotations

import re

from uso_core.errors import RequestError

MOST = 64  # prompts from one
TOKEN = re.compile(r"\\[{}|]|[{}|]|[^\\{}|]+|\\")  # an escaped sign, a sign, anything else


def expand(prompt: str) -> tuple[str, ...]:
    """Every prompt that one with choices stands for, in order and each once; braces without a bar are plain text.

    Choices may be nested or empty; a backslash before a brace or a bar keeps it. Raises `RequestError` for
    more than 64.
    """
    tokens = TOKEN.findall(prompt)
    ends = _ends(tokens)
    if not any(_bars(tokens, ends, start, end) for start, end in ends.items()):
        return ("".join(map(_plain, tokens)),)
    try:
        found = _sequence(tokens, ends, 0, len(tokens))
    except RecursionError:  # hundreds of braces in each other
        raise RequestError("too_many_prompts", most=MOST) from None
    return tuple(dict.fromkeys(re.sub(r" {2,}", " ", each).strip() for each in found))


def escaped(prompt: str) -> str:
    """A prompt of which `expand` makes this one alone: as it is, unless braces and a bar in it read as choices."""
    try:
        if expand(prompt) == (prompt,):
            return prompt
    except RequestError:
        pass
    return re.sub(r"[{}|]", r"\\\g<0>", prompt)


def _plain(token: str) -> str:
    return token[1:] if token in ("\\{", "\\}", "\\|") else token


def _ends(tokens: list[str]) -> dict[int, int]:
    """Where each brace that is closed is closed."""
    ends: dict[int, int] = {}
    opened: list[int] = []
    for place, token in enumerate(tokens):
        if token == "{":
            opened.append(place)
        elif token == "}" and opened:
            ends[opened.pop()] = place
    return ends


def _bars(tokens: list[str], ends: dict[int, int], start: int, end: int) -> list[int]:
    """The places of the bars that divide what is between two braces."""
    bars, place = [], start + 1
    while place < end:
        if tokens[place] == "|":
            bars.append(place)
        place = ends.get(place, place) + 1
    return bars


def _sequence(tokens: list[str], ends: dict[int, int], start: int, stop: int) -> list[str]:
    """What the tokens from `start` to before `stop` stand for."""
    found, place = [""], start
    while place < stop:
        token, end = tokens[place], ends.get(place, stop)
        if end < stop:
            bars = _bars(tokens, ends, place, end)
            edges = [place, *bars, end]
            parts = [
                part
                for low, high in zip(edges, edges[1:], strict=False)
                for part in _sequence(tokens, ends, low + 1, high)
            ]
            parts = list(dict.fromkeys(parts)) if bars else [f"{{{part}}}" for part in parts]
            place = end
        else:
            parts = [_plain(token)]
        if len(found) * len(parts) > MOST:
            raise RequestError("too_many_prompts", most=MOST)
        found = [before + part for before in found for part in parts]
        place += 1
    return found
