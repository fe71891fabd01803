"""Every image the page made, kept in the output folder: found again by day and prompt, bounded in count and bytes.

20261123-120000-7.png    the image with its request inside     20261123-120000-7.json   the same as JSON
thumbnails/*.webp        small ones for the gallery            inputs/<sha256>.png      input images, each once
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from uso_core.request import GenerationRequest, Result
from uso_core.storage.files import new_path, save_image, write_whole
from uso_core.storage.png import read_request

THUMBNAIL_SIDE = 256
INPUTS, THUMBNAILS = "inputs", "thumbnails"


@dataclass(frozen=True)
class Entry:
    """One kept image. `prompt` and `seed` are for showing; the request itself is in the PNG."""

    path: Path
    when: datetime
    prompt: str
    seed: int

    @property
    def thumbnail(self) -> Path:
        """The thumbnail, or the image itself where that is lost."""
        small = self.path.parent / THUMBNAILS / f"{self.path.stem}.webp"
        return small if small.is_file() else self.path


class History:
    """The images in one folder; nothing is kept in memory, so that several processes may share it."""

    def __init__(self, folder: Path, max_images: int, max_bytes: int) -> None:
        self.folder = folder
        self._max_images, self._max_bytes = max_images, max_bytes

    def add(self, image: Image.Image, result: Result) -> Path:
        """Keeps an image with its input images; raises `OutputError` if it cannot be written."""
        path = save_image(image, result, new_path(self.folder, result.seed))
        small = image.copy()
        small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        write_whole(self.folder / THUMBNAILS / f"{path.stem}.webp", lambda file: small.save(file, "WEBP"))
        for given in result.request.input_images:
            place = self._input(given.sha256)
            if given.image is not None and not place.exists():
                write_whole(place, partial(given.image.save, format="PNG"))
        self._prune()
        return path

    def entries(self, search: str = "") -> list[Entry]:
        """The kept images whose prompt contains every word of `search`, newest first."""
        words = search.lower().split()
        found = [_entry(path) for path in self._images()]
        return [entry for entry in found if all(word in entry.prompt.lower() for word in words)]

    def delete(self, path: Path) -> None:
        """Removes one kept image and what belongs to it; a path outside the folder, or none of ours, is left alone."""
        if path.parent.resolve() != self.folder.resolve() or path.suffix != ".png":
            return
        for part in (path, path.with_suffix(".json"), self.folder / THUMBNAILS / f"{path.stem}.webp"):
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
        self._sweep()

    def restore(self, path: Path) -> tuple[GenerationRequest, dict[str, Path]]:
        """The request in a PNG of ours, and those of its input images that are still kept, by sha256.

        Raises `RequestError` if the file is none of ours.
        """
        request = read_request(path)
        places = {each.sha256: self._input(each.sha256) for each in request.input_images}
        return request, {sha256: place for sha256, place in places.items() if place.is_file()}

    def _input(self, sha256: str) -> Path:
        """Only the hex digits make the name, whatever an untrusted file calls its image."""
        name = sha256 if len(sha256) == 64 and set(sha256) <= set("0123456789abcdef") else "none"
        return self.folder / INPUTS / f"{name}.png"

    def _images(self) -> list[Path]:
        with contextlib.suppress(OSError):
            return sorted((path for path in self.folder.glob("*.png") if path.is_file()), reverse=True)
        return []

    def _prune(self) -> None:
        total = 0
        for index, path in enumerate(self._images()):
            total += _bytes(path)
            if index and (index >= self._max_images or total > self._max_bytes):  # the newest always stays
                self.delete(path)

    def _sweep(self) -> None:
        """Removes input images that no kept image refers to."""
        used = {name for path in self._images() for name in _input_names(_record(path))}
        for path in (self.folder / INPUTS).glob("*.png"):
            if path.stem not in used:
                with contextlib.suppress(OSError):
                    path.unlink()


def _entry(path: Path) -> Entry:
    record = _record(path)
    prompt, seed = record.get("prompt"), record.get("seed")
    when = datetime.fromtimestamp(path.stat().st_mtime) if path.exists() else datetime.min
    return Entry(path, when, prompt if isinstance(prompt, str) else "", seed if isinstance(seed, int) else 0)


def _record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _input_names(record: dict[str, Any]) -> set[str]:
    styles = record.get("styles")
    images = [record.get("content"), *(styles if isinstance(styles, list) else [])]
    return {str(image.get("sha256")) for image in images if isinstance(image, dict)}


def _bytes(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0
