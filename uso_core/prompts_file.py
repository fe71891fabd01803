"""Files of prompts: one a line, `{red|blue}` in each standing for each of its parts."""

from __future__ import annotations

import re
from pathlib import Path

from uso_core.errors import RequestError
from uso_core.request import check_prompt
from uso_core.text_files import bounded, decoded
from uso_core.wildcards import expand

MAX_BYTES = 50 * 2**20
NEW_LINE = re.compile(r"\r\n|\r|\n")  # as editors count lines; other separators may stand in a prompt
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f]")
BEGINS = (  # other kinds of text, by what their first line begins with
    ("JSON", re.compile(r'\[\s*($|[{"\[])|\{\s*($|"(?:[^"\\]|\\.)*"\s*:)')),
    ("RTF", re.compile(r"\{\\rtf")),
    ("HTML", re.compile(r"<(!doctype|html|head|body)\b", re.IGNORECASE)),
    ("YAML", re.compile(r"---\s*$|(-\s+)?prompts?\s*:", re.IGNORECASE)),
    ("PDF", re.compile(r"%PDF-")),
    ("XML", re.compile(r"<\?xml\b")),
    (
        "CSV",
        re.compile(r"""(['"]?\w+['"]?\s*[,;\t]\s*)*['"]?prompts?['"]?(\s*[,;\t]\s*['"]?\w+['"]?)*$""", re.IGNORECASE),
    ),
)
TABLES = (".csv", ".tsv")
INVISIBLE = "\ufeff\u200b\u200c\u200d\u2060\u200e\u200f"  # what editors and web pages leave behind


def read_prompts(path: Path) -> tuple[str, ...]:
    """The prompts of a file; blank lines and those that begin with # are left out.

    Raises `RequestError` for a file that is no text, is text of another kind (JSON, a table, a page) or holds no
    prompt, and for a line that is no prompt, by its number.
    """
    try:
        text = decoded(bounded(path, MAX_BYTES))
    except OSError as error:
        raise RequestError("file_unreadable", path=path, reason=error.strerror or error) from None
    except ValueError:  # no Unicode; or, outside of that, a path with a NUL
        raise RequestError("text_encoding", name=path) from None
    text = text.removesuffix("\x1a")  # where DOS ended a text
    if CONTROL.search(text):  # UTF-16 without a mark, or another kind of file
        raise RequestError("text_encoding", name=path)
    lines = [(number, _bare(line)) for number, line in enumerate(NEW_LINE.split(text), 1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not lines:
        raise RequestError("prompts_none", path=path)
    if kind := _other_kind(path, lines[0][1]):
        raise RequestError(
            "prompts_kind", hint="prompts_json" if kind == "JSON" else "prompts_none", path=path, kind=kind
        )
    prompts: list[str] = []
    for number, line in lines:
        try:
            check_prompt(line)
            prompts += expand(line)
        except RequestError as error:
            reason, values = error.problem, error.values
            raise RequestError(
                "prompts_line", hint=error.hint_key, path=path, line=number, reason=reason, **values
            ) from None
    return tuple(prompts)


def _bare(line: str) -> str:
    """A line without spaces at its ends, or characters there that nobody sees."""
    while (bare := line.strip().strip(INVISIBLE)) != line:
        line = bare
    return line


def _other_kind(path: Path, first: str) -> str:
    """What the text is, if it is no list of prompts, by its name or its first line."""
    if path.suffix.lower() in TABLES:
        return path.suffix[1:].upper()
    return next((kind for kind, pattern in BEGINS if pattern.match(first)), "")
