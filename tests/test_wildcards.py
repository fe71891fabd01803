"""`{red|blue}` in a prompt."""

from __future__ import annotations

import pytest

from uso_core.errors import RequestError
from uso_core.wildcards import MOST, escaped, expand


@pytest.mark.parametrize(
    ("prompt", "meant"),
    [
        ("a red house", ["a red house"]),
        ("a {red|blue} house", ["a red house", "a blue house"]),
        ("a {red|blue} {house|boat}", ["a red house", "a red boat", "a blue house", "a blue boat"]),
        ("a {red|dark {blue|green}} house", ["a red house", "a dark blue house", "a dark green house"]),
        ("a {big |}house", ["a big house", "a house"]),
        ("a {red|red} house", ["a red house"]),
        ("the {set} of {a", ["the {set} of {a"]),
        (r"a \{red|blue\} house", ["a {red|blue} house"]),
        (r"{a|b} \{c\|d\}", ["a {c|d}", "b {c|d}"]),
        ("", [""]),
        ("x \ue000 y \ue001", ["x \ue000 y \ue001"]),  # private characters, of icon fonts
        ("{x{1|2}|y}", ["x1", "x2", "y"]),
        ("a {b {c|d} e}", ["a {b c e}", "a {b d e}"]),
        ("} a|b { {c|d}", ["} a|b { c", "} a|b { d"]),
        ("{" * 9000 + "}" * 9000, ["{" * 9000 + "}" * 9000]),
    ],
)
def test_choices(prompt, meant):
    assert list(expand(prompt)) == meant


def test_only_so_many():
    assert len(expand(" ".join(["{a|b}"] * 6))) == 64 == MOST
    with pytest.raises(RequestError) as caught:
        expand(" ".join(["{a|b}"] * 30))
    assert caught.value.key == "too_many_prompts"


def test_what_is_not_chosen_does_not_count():
    assert len(expand("{x{1|2|3|4|5|6|7|8|9}|y{a|b|c|d|e|f|g|h|i}}")) == 18
    with pytest.raises(RequestError):
        expand("{" * 5000 + "a|b" + "}" * 5000)


@pytest.mark.parametrize("prompt", ["a {red|blue} mug", "a {plain} mug", "a | b", r"a \{ b", "{a|" * 70 + "}" * 70])
def test_what_was_meant_literally_stays_one_prompt(prompt):
    assert expand(escaped(prompt)) == (prompt,)
