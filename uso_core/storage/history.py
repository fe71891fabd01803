"""Every image the page made, kept in the output folder: found by day and prompt, limited in count and bytes.

    20261123-120000-7-000042.png   the image with its request inside   20261123-120000-7-000042.json   the same as JSON
    20261123-120000-7-000042.star  empty: its user starred it
    thumbnails/*.webp              small ones for the gallery          inputs/<sha256>.png       input images, each once

The last number only ever rises, so that no clock decides what is newest. An image is written after everything that
belongs to it: files without an image are left over from a killed process. One thread or process at a time changes the
folder.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image

from uso_core.errors import OutputError, RequestError
from uso_core.messages import message
from uso_core.request import GenerationRequest, Result
from uso_core.storage.files import (
    OUR_NAME,
    age_order,
    is_old,
    locked,
    png_bytes,
    remove_file,
    reserve_path,
    sweep_parts,
    write_pair,
    write_whole,
)
from uso_core.storage.png import read_request

THUMBNAIL_SIDE = 256
INPUTS, THUMBNAILS, SEQUENCE = "inputs", "thumbnails", ".sequence"
SWEEP_SECONDS = 5.0  # to wait for others before leaving a sweep to the next start
SHA256 = re.compile("[0-9a-f]{64}")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One kept image. `prompt` and `seed` are for display; the request itself is in the PNG."""

    path: Path
    when: datetime
    prompt: str
    seed: int
    starred: bool = False

    @property
    def thumbnail(self) -> Path:
        """The thumbnail, or the image itself if the thumbnail is lost."""
        return thumbnail_of(self.path)


class History:
    """The images in one folder, which several processes may share; sweeps what a killed process left there first.

    Shows, counts and deletes only files with names of ours.
    """

    def __init__(self, folder: Path, max_images: int, max_bytes: int) -> None:
        self.folder = folder
        self._max_images, self._max_bytes = max_images, max_bytes
        self._told: set[Path] = set()  # images that could not be read, said once
        self.sweep()

    def add(self, image: Image.Image, result: Result) -> Path:
        """Keeps an image with its input images, then deletes the oldest ones beyond the limits, but never this one.

        Starred ones are the last to go.

        Raises `OutputError` if it cannot be written; then nothing of it remains.
        """
        png, thumbnail = png_bytes(image, result), _webp(image)
        inputs = {self._input(each.sha256): each.image for each in result.request.input_images if each.image}
        encoded = {place: _png(given) for place, given in inputs.items() if not place.exists()}  # before locking
        with locked(self.folder):
            path = reserve_path(self.folder, result.seed, self._last_sequence() + 1)
            try:
                for place, given in inputs.items():
                    if not place.exists():
                        _write(place, encoded.get(place) or _png(given))
                _write(_thumbnail(path), thumbnail)
                write_pair(path, png, result.to_dict())
            except BaseException:
                with contextlib.suppress(OutputError):
                    _remove(path)
                self._drop_inputs()
                raise
            self._prune()
        return path

    def entries(self, search: str = "", starred: bool = False) -> list[Entry]:
        """The kept images whose prompt contains every word of `search`, newest first; perhaps only the starred ones."""
        words = search.lower().split()
        found = [_entry(path) for path in self._images() if not starred or is_starred(path)]
        return [entry for entry in found if all(word in entry.prompt.lower() for word in words)]

    def find(self, name: str) -> Path | None:
        """The kept image with this file name, whatever a name from outside looks like."""
        path = self.folder / f"{Path(name).stem}.png"
        return path if name == path.name and OUR_NAME.fullmatch(path.stem) and path.is_file() else None

    def star(self, path: Path, on: bool) -> None:
        """Stars a kept image, or takes its star back; ignores a path that is not one.

        Raises `OutputError` if that cannot be written.
        """
        if path.parent.resolve() != self.folder.resolve() or self.find(path.name) is None:
            return
        with locked(self.folder):
            if not on:
                remove_file(_star(path))
            elif path.is_file():
                _write(_star(path), b"")

    def delete(self, path: Path) -> None:
        """Removes one kept image and what belongs to it; ignores a path outside the folder or a name that is not ours.

        Raises `OutputError` if the image cannot be removed.
        """
        ours = path.suffix == ".png" and OUR_NAME.fullmatch(path.stem)
        if not ours or path.parent.resolve() != self.folder.resolve() or not self.folder.is_dir():
            return
        with locked(self.folder):
            if age_order(path)[0] == self._last_sequence():
                with contextlib.suppress(OutputError):  # the image is deleted to make room
                    _write(self.folder / SEQUENCE, str(age_order(path)[0]).encode())
            _remove(path)
            self._drop_inputs()

    def restore(self, path: Path) -> tuple[GenerationRequest, dict[str, Path]]:
        """The request in a PNG of ours, and those of its input images that are still kept, by sha256.

        Raises `RequestError` if the file is not ours.
        """
        request = read_request(path)
        return request, self.inputs(each.sha256 for each in request.input_images)

    def inputs(self, hashes: Iterable[str]) -> dict[str, Path]:
        """Those of the input images with these hashes that are still kept, by sha256."""
        places = {sha256: self._input(sha256) for sha256 in hashes if SHA256.fullmatch(sha256)}
        return {sha256: place for sha256, place in places.items() if place.is_file()}

    def sweep(self) -> None:
        """Removes what killed processes left: half-written files, files without an image, and empty reservations.

        Rewrites a damaged JSON from its image. Leaves everything that a live process is writing.
        """
        if not self.folder.is_dir():
            return
        try:
            with locked(self.folder, SWEEP_SECONDS) as alone:
                sweep_parts((self.folder, self.folder / INPUTS, self.folder / THUMBNAILS), alone)
                self._sweep_lone(alone)
                self._repair()
                if alone:
                    self._drop_inputs()
        except OutputError as error:
            log.warning("%s", error)

    def _input(self, sha256: str) -> Path:
        """The name consists of hex digits only, whatever an untrusted file calls its image."""
        return self.folder / INPUTS / f"{sha256 if SHA256.fullmatch(sha256) else 'none'}.png"

    def _images(self) -> list[Path]:
        """The kept images, newest first."""
        with contextlib.suppress(OSError):
            found = (path for path in self.folder.glob("*.png") if OUR_NAME.fullmatch(path.stem) and path.is_file())
            return sorted(found, key=age_order, reverse=True)
        return []

    def _last_sequence(self) -> int:
        """The highest number given so far, even if its image was deleted, so that its name is never reused.

        It needs to be written down only when the newest image is deleted.
        """
        deleted = 0
        with contextlib.suppress(OSError, ValueError):
            deleted = int((self.folder / SEQUENCE).read_bytes()[:20])
        return max(deleted, *(age_order(path)[0] for path in self._images()), 0)

    def _prune(self) -> None:
        """Deletes the oldest images beyond the limits, with the input images that no remaining one uses."""
        used: set[str] = set()
        total, removed = 0, False
        images = self._images()
        for index, path in enumerate(sorted(images, key=lambda path: (path != images[0], not is_starred(path)))):
            names = _input_names(_record(path) or {})
            total += sum(map(_bytes, (path, path.with_suffix(".json"), _thumbnail(path))))
            total += sum(_bytes(self._input(name)) for name in names - used)
            used |= names
            if index and (index >= self._max_images or total > self._max_bytes):  # the newest always stays
                with contextlib.suppress(OutputError):
                    _remove(path)
                    removed = True
        if removed:
            self._drop_inputs()

    def _drop_inputs(self) -> None:
        """Removes input images that no kept image refers to; none while what an image refers to cannot be told."""
        records = {path: _record(path) for path in self._images()}
        unread = [path for path, record in records.items() if record is None and _bytes(path)]
        if unread:
            for path in set(unread) - self._told:
                log.warning("%s", message("inputs_kept", path=path, folder=self.folder / INPUTS))
            self._told |= set(unread)
            return
        used = {name for record in records.values() if record is not None for name in _input_names(record)}
        kept = {path.stem: path for path in (self.folder / INPUTS).glob("*.png") if SHA256.fullmatch(path.stem)}
        if kept.keys() <= used:
            return
        for path in records:  # what people changed in a JSON is in its image still
            with contextlib.suppress(RequestError):
                used |= {each.sha256 for each in read_request(path).input_images}
        for sha256 in kept.keys() - used:
            with contextlib.suppress(OSError):
                kept[sha256].unlink()

    def _sweep_lone(self, alone: bool) -> None:
        for path in self._images():
            if _bytes(path) == 0 and (alone or is_old(path)):
                _remove(path)
        kept = {path.stem for path in self._images()}
        for lone in (
            *self.folder.glob("*.json"),
            *self.folder.glob("*.star"),
            *(self.folder / THUMBNAILS).glob("*.webp"),
        ):
            if OUR_NAME.fullmatch(lone.stem) and lone.stem not in kept and (alone or is_old(lone)):
                remove_file(lone)

    def _repair(self) -> None:
        for path in self._images():
            if _beside(path) is None:
                with contextlib.suppress(RequestError):
                    record = read_request(path).to_dict()
                    _write(path.with_suffix(".json"), json.dumps(record, indent=2, ensure_ascii=False).encode())


def _entry(path: Path) -> Entry:
    record = _record(path) or {}
    prompt, seed = record.get("prompt"), record.get("seed")
    shown = prompt.encode(errors="replace").decode() if isinstance(prompt, str) else ""  # half characters break a page
    try:
        when = datetime.fromtimestamp(path.stat().st_mtime)
    except (OSError, ValueError, OverflowError):  # deleted meanwhile, or an impossible date
        when = datetime.min
    return Entry(path, when, shown, seed if isinstance(seed, int) else 0, is_starred(path))


def _record(path: Path) -> dict[str, Any] | None:
    """What is known of an image: the JSON beside it, or if that is damaged, the request inside it; None if nothing."""
    record = _beside(path)
    if record is None:
        with contextlib.suppress(RequestError):
            return read_request(path).to_dict()
    return record


def _beside(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and _is_whole(record) else None


def _is_whole(record: dict[str, Any]) -> bool:
    """Whether a record has what the history needs: the prompt, and the image's input images."""
    styles = record.get("styles")
    images = [record.get("content"), *(styles if isinstance(styles, list) else [0])]
    named = all(isinstance(each, dict) and isinstance(each.get("sha256"), str) for each in images if each is not None)
    return named and "content" in record and isinstance(record.get("prompt"), str)


def _input_names(record: dict[str, Any]) -> set[str]:
    images = [record.get("content"), *record.get("styles", [])]
    return {image["sha256"] for image in images if image}


def thumbnail_of(path: Path) -> Path:
    """An image's thumbnail, or the image itself if it has none."""
    small = _thumbnail(path)
    return small if small.is_file() else path


def is_starred(path: Path) -> bool:
    """Whether the user starred an image."""
    return _star(path).is_file()


def _star(path: Path) -> Path:
    return path.with_suffix(".star")


def _thumbnail(path: Path) -> Path:
    return path.parent / THUMBNAILS / f"{path.stem}.webp"


def _remove(path: Path) -> None:
    """Deletes an image, then what belongs only to it: after a kill in between, the next sweep finds the rest."""
    remove_file(path)
    for part in (path.with_suffix(".json"), _star(path), _thumbnail(path)):
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _webp(image: Image.Image) -> bytes:
    small, file = image.copy(), io.BytesIO()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    small.save(file, "WEBP")
    return file.getvalue()


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _write(path: Path, data: bytes) -> None:
    write_whole(path, lambda file: file.write(data))


def _bytes(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0
