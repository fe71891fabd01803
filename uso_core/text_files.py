"""Text files as people save them: any Unicode encoding, and JSON whose faults are told by line and column."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from uso_core.errors import RequestError, UsoError
from uso_core.messages import Message, message

_LAST_COMMA = re.compile(r",\s*$")
_QUOTES = "'\u2018\u2019\u201c\u201d\u201e"
_SLIPS = (  # the beginnings of Python's words
    ("Invalid \\", "json_backslash"),
    ("Extra data", "json_more"),
    ("Unterminated string", "json_quote"),
    ("Invalid control", "json_control"),
    ("Expecting ':'", "json_colon"),
)
_DIGITS = 4300  # the longest number that Python reads


def bounded(path: Path, most: int) -> bytes:
    """The bytes of a file, of a pipe or a device too; raises `RequestError` where there are more, or `OSError`."""
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise RequestError("eval_too_large", path=path, most=most)
    return data


def decoded(data: bytes) -> str:
    """The text in UTF-8, UTF-16 or UTF-32, with or without a byte order mark; raises `UnicodeDecodeError`.

    Without a mark the zeros around the first characters tell, as in JSON (RFC 4627, section 3).
    """
    return data.decode(json.detect_encoding(data)).removeprefix("\ufeff")


def parsed_json(data: bytes | str, name: object, kind: type[UsoError] = RequestError) -> Any:
    """The value of a JSON text named `name`; raises `kind` with line, column and reason.

    A key that stands twice in one object is refused: all but its last value would be dropped.
    """
    text = _text(data, name, kind)
    try:
        return _loads(text, name, kind)
    except json.JSONDecodeError as error:
        raise _fault(error, name, kind) from None


def parsed_json_lines(data: bytes | str, name: object, kind: type[UsoError] = RequestError) -> Any:
    """The same, and for JSON Lines (an object on each line) the list of its objects."""
    text = _text(data, name, kind)
    try:
        whole = _loads(text, name, kind)
        return [whole] if isinstance(whole, dict) else whole
    except json.JSONDecodeError as error:
        lines = [(number, line) for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1) if line.strip()]
        try:
            first = json.loads(lines[0][1]) if lines else None
        except (ValueError, RecursionError):
            first = None
        if not isinstance(first, dict):
            raise _fault(error, name, kind) from None
    entries = []
    for number, line in lines:
        try:
            entries.append(_loads(line, name, kind))
        except json.JSONDecodeError as error:
            raise _fault(error, name, kind, number - 1) from None
    return entries


def _text(data: bytes | str, name: object, kind: type[UsoError]) -> str:
    try:
        text = decoded(data) if isinstance(data, bytes) else data.removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise kind("text_encoding", name=name) from None
    if not text.strip():
        raise kind("json_empty", hint="json_wrong", name=name)
    return text


def _loads(text: str, name: object, kind: type[UsoError]) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            keys = [key for key, _ in pairs]
            raise kind("json_twice", name=name, key=next(key for key in keys if keys.count(key) > 1))
        return values

    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise kind("json_nested", hint="json_wrong", name=name) from None
    except ValueError:
        raise kind("json_number", name=name, most=_DIGITS) from None


def told(error: json.JSONDecodeError) -> tuple[Message, int, int]:
    """Why a text is no JSON, and the line and column where."""
    reason, place = _reason(error)
    return reason, error.doc.count("\n", 0, place) + 1, place - error.doc.rfind("\n", 0, place)


def _fault(error: json.JSONDecodeError, name: object, kind: type[UsoError], lines_before: int = 0) -> UsoError:
    reason, line, column = told(error)
    return kind("json_wrong", name=name, line=line + lines_before, column=column, reason=reason)


def _reason(error: json.JSONDecodeError) -> tuple[Message, int]:
    """Why it is no JSON, and the character where; Python's words where no usual slip fits."""
    text, place, said = error.doc, error.pos, error.msg
    here, comma = text[place : place + 1], _LAST_COMMA.search(text[:place])
    if "trailing comma" in said:
        return message("json_comma"), place
    if here and here in "]}" and comma:
        return message("json_comma"), comma.start()
    for words, key in _SLIPS:
        if said.startswith(words):
            return message(key), place
    if not here:
        return message("json_ends"), place
    if here in _QUOTES:
        return message("json_quotes"), place
    if here in "/#":
        return message("json_comment"), place
    if said.startswith("Expecting ',' delimiter"):
        return message("json_no_comma"), place
    return message("json_other", said=said), place
