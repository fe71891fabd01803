"""Stored styles: one file each with style tokens, a name, a thumbnail, and what is needed to refuse a misfit.

    <sha256>.safetensors     tokens.0, tokens.1, ... (K, D) float32, one for each image; thumbnail, a WebP's bytes;
                             metadata: format, version, name, model, fingerprint, strengths (JSON), created (ISO 8601)

The hash covers tokens, strengths and fingerprint, so that a style keeps it under any name and on any machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from uso_core.errors import OutputError, RequestError
from uso_core.images import open_image
from uso_core.request import MAX_STYLES, StoredStyle, check_strengths
from uso_core.storage.files import locked, remove_file, sweep_parts, write_whole

FORMAT, VERSION = "uso-style", "1"
SUFFIX = ".safetensors"
THUMBNAIL_SIDE = 256
MAX_FILE_BYTES = 64 * 2**20  # eight images at FLUX's size take 19 MB
MAX_THUMBNAIL_BYTES = 2**20
MAX_TOKENS, MAX_WIDTH = 4096, 16384  # of one image; FLUX has 192 x 3072
MAX_NAME_CHARACTERS = 80
MAX_STORED = 500
SWEEP_SECONDS = 5.0  # to wait for others before leaving a sweep to the next start
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StyleEntry:
    """One stored style without its tokens: enough to show and choose it."""

    name: str
    sha256: str
    model: str
    strengths: tuple[float, ...]
    created: datetime
    thumbnail: bytes  # WebP


@dataclass(frozen=True)
class _Content:
    """Everything in a style file."""

    entry: StyleEntry
    tokens: tuple[np.ndarray, ...]
    fingerprint: str


class StyleStore:
    """The styles in one folder, which several processes may share: one thread or process at a time changes it.

    Sweeps what a killed process left half-written there first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sweep()

    def add(
        self, name: str, tokens: Sequence[np.ndarray], strengths: Sequence[float], model: str, fingerprint: str,
        thumbnail: Image.Image,
    ) -> StyleEntry:  # fmt: skip
        """Stores tokens (K, D) under a name. Raises `RequestError` for a name that is empty or taken, or a style that
        is already stored, `OutputError` if it cannot be written."""
        name = checked_name(name)
        if not tokens:
            raise RequestError("no_style_to_store")
        arrays = tuple(np.ascontiguousarray(each, np.float32) for each in tokens)
        checked = check_strengths(strengths, len(arrays)) or (1.0,) * len(arrays)
        sha256 = _hash(arrays, checked, fingerprint)
        entry = StyleEntry(name, sha256, model, checked, datetime.now().replace(microsecond=0), _webp(thumbnail))
        with locked(self.folder):
            self._refuse_twins(entry)
            self._write(_Content(entry, arrays, fingerprint))
        return entry

    def entries(self) -> list[StyleEntry]:
        """The stored styles, newest first; unreadable files are left out."""
        found = []
        for path in self._files():
            with contextlib.suppress(RequestError):
                found.append(_read(path, with_tokens=False).entry)
        return sorted(found, key=lambda entry: entry.created, reverse=True)

    def get(self, sha256: str) -> StoredStyle:
        """The style with its tokens; raises `RequestError` if it is missing or damaged."""
        content = self._content(sha256)
        entry = content.entry
        return StoredStyle(entry.name, sha256, content.tokens, entry.strengths, entry.model, content.fingerprint)

    def holds(self, sha256: str) -> bool:
        """Whether the style is stored."""
        return self.path(sha256).is_file()

    def path(self, sha256: str) -> Path:
        """The path of the style's file, existing or not: the name consists of hex digits only."""
        known = len(sha256) == 64 and set(sha256) <= set("0123456789abcdef")
        return self.folder / f"{sha256 if known else 'none'}{SUFFIX}"

    def free_name(self, name: object, of: str = "") -> str:
        """The name, tidied; raises `RequestError` if it is empty or taken by a style other than `of`."""
        checked = checked_name(name)
        if any(other.name.casefold() == checked.casefold() and other.sha256 != of for other in self.entries()):
            raise RequestError("style_name_taken", checked=checked)
        return checked

    def rename(self, sha256: str, name: str) -> StyleEntry:
        """Renames a style; raises `RequestError` for a name that is empty or taken."""
        if not self.holds(sha256):
            raise RequestError("style_gone", hint="style_again")
        with locked(self.folder):
            content = self._content(sha256)
            entry = dataclasses.replace(content.entry, name=self.free_name(name, sha256))
            self._write(_Content(entry, content.tokens, content.fingerprint))
        return entry

    def delete(self, sha256: str) -> None:
        """Removes a style, if it exists. Raises `OutputError` if it cannot be removed."""
        if self.holds(sha256):
            with locked(self.folder):
                remove_file(self.path(sha256))

    def sweep(self) -> None:
        """Removes what killed processes left half-written, and nothing that a live one is writing."""
        if not self.folder.is_dir():
            return
        try:
            with locked(self.folder, SWEEP_SECONDS) as alone:
                sweep_parts((self.folder,), alone)
        except OutputError as error:
            log.warning("%s", error)

    def take_in(self, path: Path) -> StyleEntry:
        """Stores an untrusted style file, rewriting it; raises `RequestError` for any format but ours.

        Adds a number to a name that is taken.
        """
        content = _read(path, with_tokens=True)
        image = open_image(content.entry.thumbnail, "the style's thumbnail").image
        if image is None:
            raise RequestError("style_no_thumbnail", hint="our_style", file=path.name)
        thumbnail = _webp(ImageOps.fit(image, (THUMBNAIL_SIDE, THUMBNAIL_SIDE)))
        with locked(self.folder):
            with contextlib.suppress(RequestError):  # a missing or damaged one is written
                return self._content(content.entry.sha256).entry
            names = {entry.name.casefold() for entry in self.entries()}
            name, number = content.entry.name, 2
            while name.casefold() in names:
                name, number = f"{content.entry.name[: MAX_NAME_CHARACTERS - 6]} ({number})", number + 1
            created = datetime.now().replace(microsecond=0)
            entry = dataclasses.replace(content.entry, name=name, created=created, thumbnail=thumbnail)
            self._refuse_twins(entry)
            self._write(dataclasses.replace(content, entry=entry))
        return entry

    def _content(self, sha256: str) -> _Content:
        path = self.path(sha256)
        if not path.is_file():
            raise RequestError("style_gone", hint="style_again")
        content = _read(path, with_tokens=True)
        if content.entry.sha256 != sha256:
            raise RequestError("style_damaged", name=content.entry.name)
        return content

    def _files(self) -> list[Path]:
        with contextlib.suppress(OSError):
            return [path for path in self.folder.glob(f"*{SUFFIX}") if path.is_file() and path == self.path(path.stem)]
        return []

    def _refuse_twins(self, entry: StyleEntry) -> None:
        stored = self.entries()
        for other in stored:
            if other.sha256 == entry.sha256:
                raise RequestError("style_stored_already", name=other.name)
        self.free_name(entry.name)
        if len(stored) >= MAX_STORED:
            raise RequestError("too_many_stored_styles", most=MAX_STORED)

    def _write(self, content: _Content) -> None:
        entry = content.entry
        tensors = {f"tokens.{number}": each for number, each in enumerate(content.tokens)}
        tensors["thumbnail"] = np.frombuffer(entry.thumbnail, np.uint8)
        metadata = {
            "format": FORMAT, "version": VERSION, "name": entry.name, "model": entry.model,
            "fingerprint": content.fingerprint, "strengths": json.dumps(entry.strengths),
            "created": entry.created.isoformat(),
        }  # fmt: skip
        data = save(tensors, metadata)
        write_whole(self.path(entry.sha256), lambda file: file.write(data))


def mosaic(images: Sequence[Image.Image]) -> Image.Image:
    """A small square image of up to four images side by side."""
    side, shown = THUMBNAIL_SIDE, list(images)[:4]
    square = Image.new("RGB", (side, side))
    columns, rows = (1, 1) if len(shown) == 1 else (2, 1) if len(shown) == 2 else (2, 2)
    width, height = side // columns, side // rows
    for index, image in enumerate(shown):
        across = side if len(shown) == 3 and index == 2 else width  # the third of three spans the lower half
        square.paste(
            ImageOps.fit(image.convert("RGB"), (across, height)), (index % columns * width, index // columns * height)
        )
    return square


def checked_name(name: object) -> str:
    """A style's name without invisible characters; raises `RequestError` if it is then empty, or too long."""
    text = name if isinstance(name, str) else ""
    text = " ".join("".join(each if unicodedata.category(each)[0] != "C" else " " for each in text).split())
    if not text:
        raise RequestError("style_no_name")
    if len(text) > MAX_NAME_CHARACTERS:
        raise RequestError("style_name_too_long", characters=len(text), most=MAX_NAME_CHARACTERS)
    return text


def _webp(thumbnail: Image.Image) -> bytes:
    file = io.BytesIO()
    thumbnail.convert("RGB").save(file, "WEBP", quality=80)
    return file.getvalue()


def _hash(tokens: Sequence[np.ndarray], strengths: Sequence[float], fingerprint: str) -> str:
    digest = hashlib.sha256(f"{fingerprint}{[float(each) for each in strengths]}".encode())
    for each in tokens:
        digest.update(f"{each.shape}".encode() + each.astype("<f4").tobytes())
    return digest.hexdigest()


def _read(path: Path, with_tokens: bool) -> _Content:
    """Reads a style file, perhaps untrusted; raises `RequestError` for any format but ours.

    Without tokens the hash is the file's name, and only header and thumbnail are read.
    """
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise RequestError("style_too_large", hint="our_style", file=path.name, size=size, most=MAX_FILE_BYTES)
        with safe_open(path, framework="numpy") as file:
            values: dict[str, str] = file.metadata() or {}
            count = _checked_shapes(file, path.name)
            thumbnail = file.get_tensor("thumbnail").tobytes()
            tokens = tuple(file.get_tensor(f"tokens.{number}") for number in range(count)) if with_tokens else ()
    except (OSError, SafetensorError, ValueError, TypeError):
        raise RequestError("style_unreadable", hint="our_style", file=path.name) from None
    if values.get("format") != FORMAT:
        raise RequestError("no_style_file", hint="our_style", file=path.name)
    if values.get("version") != VERSION:
        version = str(values.get("version"))[:20]
        raise RequestError("style_version", file=path.name, version=version, readable=VERSION)
    if not all(np.isfinite(each).all() for each in tokens):
        raise RequestError("style_not_finite", hint="our_style", file=path.name)
    try:
        given: Any = json.loads(values["strengths"])
        created = datetime.fromisoformat(values["created"]).replace(tzinfo=None)
        name, model, fingerprint = values["name"], values["model"], values["fingerprint"]
    except (KeyError, ValueError, RecursionError):
        raise RequestError("style_metadata_missing", hint="our_style", file=path.name) from None
    if not isinstance(given, list) or len(given) != count or max(len(model), len(fingerprint)) > 100:
        raise RequestError("style_metadata_invalid", hint="our_style", file=path.name)
    strengths = check_strengths(given, count) or (1.0,) * count
    sha256 = _hash(tokens, strengths, fingerprint) if with_tokens else path.stem
    entry = StyleEntry(checked_name(name), sha256, checked_name(model), strengths, created, thumbnail)
    return _Content(entry, tokens, fingerprint)


def _checked_shapes(file: Any, name: str) -> int:
    """The number of images in the style; raises `RequestError` unless all tensors are ours and of one width."""
    keys = set(file.keys())
    count = len(keys) - 1
    slices = {key: file.get_slice(key) for key in keys}
    shapes = {key: tuple(each.get_shape()) for key, each in slices.items()}
    expected = {"thumbnail", *(f"tokens.{number}" for number in range(count))}
    good = 1 <= count <= MAX_STYLES and keys == expected
    good = good and slices["thumbnail"].get_dtype() == "U8" and len(shapes["thumbnail"]) == 1
    good = good and shapes["thumbnail"][0] <= MAX_THUMBNAIL_BYTES
    tokens = [shapes[f"tokens.{number}"] for number in range(count)] if good else []
    good = good and all(slices[f"tokens.{number}"].get_dtype() == "F32" for number in range(count))
    good = good and all(len(each) == 2 and 1 <= each[0] <= MAX_TOKENS and 1 <= each[1] <= MAX_WIDTH for each in tokens)
    if not good or len({each[1] for each in tokens}) != 1:
        raise RequestError("style_tensors", hint="our_style", name=name)
    return count
