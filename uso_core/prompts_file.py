"""Files of prompts: one a line, `{red|blue}` in each standing for each of its parts."""

from __future__ import annotations

import re
from pathlib import Path

from uso_core.errors import RequestError
from uso_core.request import check_prompt
from uso_core.text_files import decoded
from uso_core.wildcards import expand

MAX_BYTES = 50 * 2**20
NEW_LINE = re.compile(r"\r\n|\r|\n")  # as editors count lines; other separators may stand in a prompt
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f]")
JSON = re.compile(r'\[\s*($|[{"\[])|\{\s*($|"(?:[^"\\]|\\.)*"\s*:)')


def read_prompts(path: Path) -> tuple[str, ...]:
    """The prompts of a file; blank lines and those that begin with # are left out.

    Raises `RequestError` for a file that is no text, is JSON or holds no prompt, and for a line that is no prompt, by
    its number.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RequestError("eval_too_large", path=path, most=MAX_BYTES)
        text = decoded(path.read_bytes())
    except OSError as error:
        raise RequestError("file_unreadable", path=path, reason=error.strerror or error) from None
    except ValueError:  # no Unicode; or, outside of that, a path with a NUL
        raise RequestError("text_encoding", name=path) from None
    if CONTROL.search(text):  # UTF-16 without a mark, or another kind of file
        raise RequestError("text_encoding", name=path)
    lines = [(number, line.strip()) for number, line in enumerate(NEW_LINE.split(text), 1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not lines:
        raise RequestError("prompts_none", path=path)
    if JSON.match(lines[0][1]):
        raise RequestError("prompts_json", path=path)
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
