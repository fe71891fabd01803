"""What nodes give that hold or compute a value: only where the file alone decides it.

A class that is not here (a random number, a language model, a wildcard, a regular expression, arithmetic) gives nothing
that is known. Facts from Comfy-Org/ComfyUI (comfy_extras/nodes_primitive.py, nodes_string.py) and from the packs named.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

MAX_TEXT_CHARACTERS = 100_000  # of a text that nodes put together

Inputs = Callable[[str], Any]  # an input's value by name
Results = tuple[Any, ...]  # by output; None where it is not known


class UnknownResult(Exception):
    """The file does not decide what a node gives."""


HELD = {  # class: the input that each output repeats
    "PrimitiveNode": ("value",),
    "PrimitiveInt": ("value",),
    "PrimitiveFloat": ("value",),
    "PrimitiveBoolean": ("value",),
    "PrimitiveString": ("value",),
    "PrimitiveStringMultiline": ("value",),
    # rgthree, KJNodes, Impact, Easy-Use, Crystools
    "Seed (rgthree)": ("seed",),
    "INTConstant": ("value",),
    "FloatConstant": ("value",),
    "StringConstant": ("string",),
    "ImpactInt": ("value",),
    "ImpactFloat": ("value",),
    "easy int": ("value",),
    "easy float": ("value",),
    "easy string": ("value",),
    "easy boolean": ("value",),
    "easy seed": ("seed",),
    "Seed Everywhere": ("seed",),
    "easy positive": ("positive",),
    "easy negative": ("negative",),
    "Primitive string [Crystools]": ("string",),
    "Primitive string multiline [Crystools]": ("string",),
    "Primitive integer [Crystools]": ("int",),
    "Primitive float [Crystools]": ("float",),
    "Primitive boolean [Crystools]": ("boolean",),
    # Comfyroll, Image Saver, WAS, tinyterra, JW, Logic, Derfuu
    "CR Text": ("text",),
    "CR Prompt Text": ("prompt",),
    "CR Seed": ("seed",),
    "Seed Generator": ("seed",),
    "Int Literal": ("int",),
    "Float Literal": ("float",),
    "String Literal": ("string",),
    "ttN int": ("int",),
    "ttN float": ("float",),
    "ttN text": ("text",),
    "JWInteger": ("value",),
    "JWFloat": ("value",),
    "JWString": ("text",),
    "JWStringMultiline": ("text",),
    "Int": ("Value",),
    "Float": ("Value",),
    "String": ("Value",),
    "DF_Integer": ("Value",),
    "DF_Float": ("Value",),
    "DF_Text": ("Text",),
    "DF_Text_Box": ("Text",),
}
NEVER_DYNAMIC = frozenset({  # classes whose texts the frontend sends as they stand
    "PrimitiveString", "PrimitiveStringMultiline", "StringConcatenate", "StringReplace", "StringSubstring",
    "StringTrim", "CaseConverter", "ImpactWildcardProcessor",
})  # fmt: skip


def results_of(kind: str, inputs: Inputs) -> Results:
    """What a node of a class gives, by output; raises `UnknownResult`, also from `inputs`."""
    if kind in HELD:
        return tuple(map(inputs, HELD[kind]))
    if kind not in COMPUTED:
        raise UnknownResult
    return COMPUTED[kind](inputs)


def _text(inputs: Inputs, name: str, otherwise: str | None = None) -> str:
    value = inputs(name)
    value = otherwise if value is None else value
    if not isinstance(value, str):
        raise UnknownResult
    return value


def _whole(inputs: Inputs, name: str) -> int:
    value = inputs(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise UnknownResult
    return value


def _joined(parts: list[str], delimiter: str) -> Results:
    if sum(map(len, parts)) + len(delimiter) * len(parts) > MAX_TEXT_CHARACTERS:
        raise UnknownResult
    return (delimiter.join(parts),)


def _concatenate(first: str, second: str, delimiter: str = "delimiter") -> Callable[[Inputs], Results]:
    return lambda inputs: _joined([_text(inputs, first), _text(inputs, second)], _text(inputs, delimiter, ""))


def _was_concatenate(inputs: Inputs) -> Results:
    """WAS: texts that are there, cleaned if asked for."""
    delimiter, clean = _text(inputs, "delimiter", ", "), inputs("clean_whitespace")
    if clean not in ("true", "false", True, False):
        raise UnknownResult
    texts = [_text(inputs, name, "") for name in ("text_a", "text_b", "text_c", "text_d")]
    texts = [text.strip() if clean in ("true", True) else text for text in texts]
    return _joined([text for text in texts if text], "\n" if delimiter == "\\n" else delimiter)


def _replaced(text: str, find: str, replace: str) -> Results:
    if not find or len(text) + text.count(find) * len(replace) > MAX_TEXT_CHARACTERS:
        raise UnknownResult
    return (text.replace(find, replace),)


def _replace(inputs: Inputs) -> Results:
    return _replaced(_text(inputs, "string"), _text(inputs, "find"), _text(inputs, "replace"))


def _find_and_replace(inputs: Inputs) -> Results:
    """WAS: `find` is a regular expression there, known if it has no special characters."""
    find, replace = _text(inputs, "find"), _text(inputs, "replace")
    if re.search(r"[^\w\s,'\"-]", find) or "\\" in replace:
        raise UnknownResult
    return _replaced(_text(inputs, "text"), find, replace)


def _substring(inputs: Inputs) -> Results:
    return (_text(inputs, "string")[_whole(inputs, "start") : _whole(inputs, "end")],)


def _trim(inputs: Inputs) -> Results:
    text, mode = _text(inputs, "string"), _text(inputs, "mode", "Both")
    strips = {"Both": text.strip, "Left": text.lstrip, "Right": text.rstrip}
    if mode not in strips:
        raise UnknownResult
    return (strips[mode](),)


def _case(inputs: Inputs) -> Results:
    text, mode = _text(inputs, "string"), _text(inputs, "mode")
    cases = {"UPPERCASE": text.upper, "lowercase": text.lower, "Capitalize": text.capitalize, "Title Case": text.title}
    if mode not in cases:
        raise UnknownResult
    return (cases[mode](),)


def _was_text(text: str) -> str:
    """WAS replaces [time] and similar tokens in its texts."""
    if "[" in text:
        raise UnknownResult
    return text


def _was_multiline(inputs: Inputs) -> Results:
    """WAS: lines that begin with # are comments; the rest keeps its line breaks."""
    lines = _was_text(_text(inputs, "text")).split("\n")
    return ("\n".join(line for line in lines if not line.strip().startswith("#")),)


def _was_strings(inputs: Inputs) -> Results:
    return tuple(_was_text(_text(inputs, name, "")) for name in ("text", "text_b", "text_c", "text_d"))


def _constant_multiline(inputs: Inputs) -> Results:
    text = _text(inputs, "string")
    return (text.replace("\n", "").strip() if inputs("strip_newlines") else text,)


def _drawn(inputs: Inputs) -> Results:
    """Impact: the text that was drawn, unless it still holds something to draw."""
    text = _text(inputs, "populated_text")
    choices = "{" in text and "|" in text[text.index("{") :]
    if not text or choices or "__" in text or "<lora:" in text:
        raise UnknownResult
    return (text,)


COMPUTED: dict[str, Callable[[Inputs], Results]] = {
    "StringConcatenate": _concatenate("string_a", "string_b"),
    "JoinStrings": _concatenate("string1", "string2"),
    "CR Text Concatenate": _concatenate("text1", "text2", "separator"),
    "easy promptConcat": _concatenate("prompt1", "prompt2", "separator"),
    "Text Concatenate": _was_concatenate,
    "StringReplace": _replace,
    "StringSubstring": _substring,
    "StringTrim": _trim,
    "CaseConverter": _case,
    "Text Find and Replace": _find_and_replace,
    "Text Multiline": _was_multiline,
    "Text String": _was_strings,
    "StringConstantMultiline": _constant_multiline,
    "ImpactWildcardProcessor": _drawn,
}
