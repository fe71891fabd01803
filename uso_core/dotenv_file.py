"""A `.env` file as people write it: any Unicode encoding, Windows paths in quotes, lines copied from a shell."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Collection
from pathlib import Path

from uso_core.errors import SettingsError
from uso_core.text_files import decoded

_SHELL = re.compile(r"\s*(?:set\s+|export\s+|\$env:)(?=[a-z_])", re.IGNORECASE)  # cmd, sh, PowerShell
_SET_IN_QUOTES = re.compile(r'\s*set\s+"(\w+)=(.*)"\s*', re.IGNORECASE)  # cmd again
_QUOTED = (  # first as the quotes say, then as a path that ends in a backslash says
    re.compile(r"""(\s*[\w.]+\s*=\s*)(["'])((?:(?!\2)[^\\]|\\.)*)\2\s*(?:#.*)?"""),
    re.compile(r"""(\s*[\w.]+\s*=\s*)(["'])(.*\\)\2\s*"""),
)
_SINGLE = re.compile(r"[^=]*=\s*'")
_VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)\}")  # without a default
_BACKSLASHES = re.compile(r"\\+")
_SHOWN = 40  # characters of a line, before any value


def read_dotenv(path: Path, known: Collection[str] = ()) -> dict[str, tuple[str, int]]:
    """Each name's value and line number.

    A backslash in quotes is a backslash: `"C:\\models\\new"` is a path without a line break, and so is the same with
    every backslash doubled. `${NAME}` stands for that variable, except in single quotes, as in a shell. Raises
    `SettingsError` if the file is no text, or naming a line that gives no name a value, or that gives one of the
    `known` names a variable that is not set.
    """
    from dotenv import dotenv_values
    from dotenv.parser import parse_stream

    try:
        text = decoded(path.read_bytes())
    except (OSError, UnicodeDecodeError):
        raise SettingsError("dotenv_unreadable", dotenv=path) from None
    as_written = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    text = "\n".join(_plain(line) for line in as_written)
    lines: dict[str, int] = {}
    before: dict[int, set[str]] = {}  # the names above each line
    for binding in parse_stream(io.StringIO(text)):
        written = binding.original.string
        line = binding.original.line + len(written) - len(written.lstrip("\n"))
        if binding.error or (binding.key is not None and binding.value is None):
            shown = re.split(r"[=:]", written.strip().split("\n")[0])[0][:_SHOWN]
            raise SettingsError("dotenv_line", dotenv=path, line=line, text=shown)
        if binding.key is not None:
            before[line] = set(lines)
            lines[binding.key] = line
    expanded, literal = (dotenv_values(stream=io.StringIO(text), interpolate=each) for each in (True, False))
    values: dict[str, str] = {}
    for name, line in lines.items():
        as_it_is = _SINGLE.match(as_written[line - 1])
        for wanted in _VARIABLE.findall(literal[name] or "") if name in known and not as_it_is else ():
            if wanted not in os.environ and wanted not in before[line]:
                raise SettingsError("dotenv_undefined", dotenv=path, line=line, name=name, wanted=wanted[:_SHOWN])
        values[name] = (literal if as_it_is else expanded)[name] or ""
    return {name: (values[name], line) for name, line in lines.items()}


def _plain(line: str) -> str:
    """A line as `python-dotenv` reads it: no word of a shell before the name, no backslash that means anything else."""
    if found := _SET_IN_QUOTES.fullmatch(line):
        return f"{found[1]}={_single(found[2])}"
    line = _SHELL.sub("", line, count=1) if _SHELL.match(line) else line
    if "\\" in line:
        for pattern in _QUOTED:
            if found := pattern.fullmatch(line):
                return line if f"\\{found[2]}" in found[3] else f"{found[1]}{_single(_literal(found[3]))}"
    return line


def _literal(value: str) -> str:
    """A value with its backslashes as meant: all are doubled, or none is."""
    doubled = all(len(run) % 2 == 0 for run in _BACKSLASHES.findall(value))
    return value.replace("\\\\", "\\") if doubled else value


def _single(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
