"""Results on disk: names of our own making, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from PIL import Image

from uso_core.errors import OutputError
from uso_core.request import Result
from uso_core.storage.png import png_text


def save_image(
    image: Image.Image, result: Result, path: Path, record: dict[str, Any] | None = None, beside: bool = True
) -> Path:
    """Writes the PNG with its request inside, and `record` (default: the result) as JSON beside it.

    Without `beside` there is no JSON. Each file appears under its name only when it is complete, and the image last:
    where it is, its JSON is too. Raises `OutputError` naming the file that could not be written; then neither is left.
    """
    text = json.dumps(record if record is not None else result.to_dict(), indent=2, ensure_ascii=False)
    json_path = path.with_suffix(".json")
    if beside:
        write_whole(json_path, lambda file: file.write(text.encode()))
    try:
        write_whole(path, lambda file: image.save(file, "PNG", pnginfo=png_text(result)))
    except OutputError:
        if beside:
            json_path.unlink(missing_ok=True)
        raise
    return path


def write_whole(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Calls `write` on a temporary file beside `path` and renames it into place."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OutputError("file_not_writable", hint="free_space", path=path, reason=error.strerror or error) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def new_path(folder: Path, seed: int) -> Path:
    """A name that is not taken yet: date, time and seed, so that files sort by age."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{n}" for n in range(1, 1000))):
        path = folder / f"{stamp}-{seed}{suffix}.png"
        if not path.exists():
            return path
    raise OutputError("too_many_results", folder=folder)
