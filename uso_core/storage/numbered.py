"""Names for results in a folder of the user's: STEM_NUMBER.png, never that of an image of another request."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from uso_core.errors import RequestError
from uso_core.request import GenerationRequest
from uso_core.storage.files import not_writable
from uso_core.storage.png import read_request

MAX_RECORD_BYTES = 2**20
NOT_THE_IMAGE = ("device", "dtype", "seconds")  # in a record: they change no more than rounding
BESIDE = ("grid", "concat_refs")  # what a record tells of the file: a contact sheet's axes, references beside the image


class Place(NamedTuple):
    """A path for an image; where that very image lies already, if it does; whether nothing has the path's name.

    What has a name that is not free may be written over.
    """

    path: Path
    there: Path | None
    free: bool


def place(
    folder: Path,
    stem: str,
    number: int,
    request: GenerationRequest,
    taken: set[Path],
    overwrite: bool = False,
    beside: Mapping[str, Any] | None = None,
) -> Place:
    """The place for image `number` of a stem.

    `request` is that image's own, `beside` holds the further keys of its record, of `BESIDE`. An image of another
    request keeps its name, as does a lone record of one, and this one gets the next free number; with `overwrite` only
    the paths in `taken`, those of the same run, are kept.
    """
    wanted = _essence({**(beside or {}), "uso": request.to_dict()})
    lone: Path | None = None  # the record of this very image, which was deleted
    for each in itertools.count(number):
        path = folder / f"{stem}_{each}.png"
        if path in taken:
            continue
        if overwrite:
            return Place(path, None, False)
        if not (os.path.lexists(path) or os.path.lexists(path.with_suffix(".json"))):
            return Place(lone or path, None, lone is None)
        if request.seed is not None and _essence(_record(path)) == wanted:
            if not os.path.lexists(path):
                lone = lone or path
            elif _is_ours(path):
                return Place(path, path, False)
    raise AssertionError("numbers never end")


@contextlib.contextmanager
def claimed(look: Callable[[], Place]) -> Iterator[Path]:
    """The path that `look` finds, to write an image to, with its JSON: meanwhile no other program takes it.

    An empty JSON claims it. Raises `OutputError` if the folder cannot be written.
    """
    while True:
        path, _, free = look()
        claim = path.with_suffix(".json")
        if free:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                claim.open("x").close()
            except FileExistsError:  # another program was faster
                continue
            except OSError as error:
                raise not_writable(path, error) from None
        break
    try:
        yield path
    finally:
        if free and not path.exists():
            with contextlib.suppress(OSError):
                if claim.stat().st_size == 0:
                    claim.unlink()


def _is_ours(path: Path) -> bool:
    """Whether the image is as it was written: one that is empty, damaged or retouched lacks its request."""
    try:
        read_request(path)
        return True
    except RequestError:
        return False


def _record(path: Path) -> dict[str, Any]:
    """The record beside an image, as `inference.py` writes it; empty if there is none."""
    beside = path.with_suffix(".json")
    try:
        if beside.stat().st_size > MAX_RECORD_BYTES:
            return {}
        record = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _essence(record: dict[str, Any]) -> dict[str, Any]:
    """What makes the file: no names of files, and no size that follows from the content image."""
    found = record.get("uso")
    request = found if isinstance(found, dict) else {}
    left_out = {*NOT_THE_IMAGE, *(("width", "height") if request.get("keep_size") else ())}
    kept = {name: value for name, value in request.items() if name not in left_out}
    given = request.get("styles")
    images = [request.get("content"), *(given if isinstance(given, list) else ())]
    kept["content"], *kept["styles"] = [each.get("sha256") if isinstance(each, dict) else each for each in images]
    loras = request.get("loras")
    kept["loras"] = [
        (each.get("sha256"), each.get("strength")) if isinstance(each, dict) else each
        for each in (loras if isinstance(loras, list) else ())
    ]
    return kept | {name: record.get(name) for name in BESIDE}
