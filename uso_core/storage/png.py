"""Images that record how they were made: the request as versioned JSON in PNG text."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from uso_core.errors import RequestError
from uso_core.images import png_of_words
from uso_core.request import GenerationRequest, Result
from uso_core.text_files import parsed_json

KEY = "uso"
MAX_TEXT_CHARACTERS = 1 * 2**20
FACTS = ("device", "dtype", "seconds")  # of a result, beside its request; older files may contain the last one


def png_text(result: Result) -> PngImagePlugin.PngInfo:
    """PNG text chunks for a result: `uso` holds its request and facts as JSON.

    The duration is only in the record beside the image, so that the same request gives the same file, byte for byte.
    """
    values = {name: value for name, value in result.to_dict().items() if name != "seconds"}
    text = PngImagePlugin.PngInfo()
    written = json.dumps(values, ensure_ascii=False)  # with names of files, which need not be Unicode
    text.add_itxt(KEY, written.encode(errors="replace").decode())
    return text


def png_texts(path: Path) -> dict[str, str]:
    """The texts in an untrusted PNG by their keys; raises `RequestError` if it cannot be read as one."""
    try:
        with path.open("rb") as file, Image.open(file, formats=["PNG"]):
            file.seek(0)
            words = io.BytesIO(png_of_words(file))  # its pixels may take gigabytes
        with Image.open(words, formats=["PNG"]) as image:
            image.load()
            return {str(key): value for key, value in image.info.items() if isinstance(value, str)}
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        raise RequestError("no_png", hint="our_png", file=path.name) from None


def read_request(path: Path) -> GenerationRequest:
    """The request in a PNG of ours, or in the JSON beside one.

    The file is untrusted: raises `RequestError` for any other format.
    """
    if path.suffix.lower() == ".json":
        record = as_record(parsed_json(path.read_bytes(), path.name))
        if record is None:
            raise RequestError("no_settings", hint="our_png", file=path.name)
        return parse_request(json.dumps(record))
    text = png_texts(path).get(KEY)
    if text is None:
        raise RequestError("no_settings", hint="our_png", file=path.name)
    return parse_request(text)


def as_record(values: Any) -> dict[str, Any] | None:
    """The record in the parsed JSON beside an image of the history or of the command line, if it is one."""
    if isinstance(values, dict) and isinstance(values.get(KEY), dict):
        values = values[KEY]
    return values if isinstance(values, dict) and isinstance(values.get("prompt"), str) else None


def parse_request(text: str) -> GenerationRequest:
    """The request in the JSON of `png_text`; raises `RequestError` saying what is wrong with it."""
    if len(text) > MAX_TEXT_CHARACTERS:
        raise RequestError("settings_too_large", hint="our_file")
    try:
        values: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise RequestError("settings_no_json", hint="our_file") from None
    if isinstance(values, dict):
        values = {name: value for name, value in values.items() if name not in FACTS}
    return GenerationRequest.from_dict(values)
