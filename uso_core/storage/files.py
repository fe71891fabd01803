"""Results on disk: names that we choose, reserved for one writer, written completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout
from PIL import Image

from uso_core.errors import OutputError
from uso_core.request import Result
from uso_core.storage.png import png_text

LOCK, NO_LOCKS = ".lock", (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
LOCK_SECONDS = 60.0  # to wait for another writer in the folder
OLD_SECONDS = 3600.0  # age at which a leftover is abandoned, on file systems without locks
PROBE_BYTES = 64 * 2**10
OUR_NAME = re.compile(r"\d{8}-\d{6}-\d+(?:-(\d+))?")  # without its extension
OUR_PART = re.compile(r"\.[0-9a-f]{16}\.part")
SEQUENCE_DIGITS = 6  # at least; a shorter last number predates sequences


def save_image(
    image: Image.Image, result: Result, path: Path, record: dict[str, Any] | None = None, beside: bool = True
) -> Path:
    """Writes the PNG with its request inside, and `record` (default: the result) as JSON beside it.

    Without `beside` there is no JSON. Each file appears under its name only when complete, the image last: if the image
    exists, so does its JSON. Raises `OutputError` naming the file that could not be written; then neither remains.
    """
    record = result.to_dict() if record is None else record
    write_pair(path, png_bytes(image, result), record if beside else None)
    return path


def png_bytes(image: Image.Image, result: Result) -> bytes:
    """The PNG of an image with its request inside."""
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=png_text(result))
    return file.getvalue()


def write_pair(path: Path, png: bytes, record: dict[str, Any] | None) -> None:
    """Writes an image, and the JSON beside it, if any.

    Raises `OutputError`, and leaves neither then; or both as they were, if they were there.
    """
    with contextlib.ExitStack() as both:
        new = both.enter_context(_new_file(path, lambda file: file.write(png)))
        if record is None:
            return _rename(new, path)
        json_path, text = path.with_suffix(".json"), json.dumps(record, indent=2, ensure_ascii=False)
        new_json = both.enter_context(_new_file(json_path, lambda file: file.write(text.encode(errors="replace"))))
        old_json = None
        with contextlib.suppress(OSError):
            old_json = json_path.read_bytes()
        _rename(new_json, json_path)
        try:
            return _rename(new, path)
        except OutputError:
            with contextlib.suppress(OSError, OutputError):
                if not old_json:  # none, or an empty one that kept the name
                    json_path.unlink(missing_ok=True)
                else:
                    write_whole(json_path, lambda file: file.write(old_json))
            raise


def write_whole(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Calls `write` on a temporary file beside `path` and renames it into place; raises `OutputError`."""
    with _new_file(path, write) as new:
        _rename(new, path)


@contextlib.contextmanager
def _new_file(path: Path, write: Callable[[IO[bytes]], Any]) -> Iterator[Path]:
    """A temporary file beside `path`, whole and on the disk; gone afterwards, unless it was renamed."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise not_writable(path, error) from None
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _rename(new: Path, path: Path) -> None:
    try:
        new.replace(path)
    except OSError as error:
        raise not_writable(path, error) from None


def remove_file(path: Path) -> None:
    """Deletes a file, if it exists; raises `OutputError` if it cannot."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError("file_not_deletable", hint="check_permissions", path=path, reason=reason) from None


def not_writable(path: Path, error: OSError) -> OutputError:
    """Why a file cannot be written, in one sentence: a full disk, a read-only folder, or what the system says."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError("disk_full", hint="make_room", folder=path.parent)
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return OutputError("folder_not_writable", hint="other_folder", folder=path.parent)
    return OutputError("file_not_writable", hint="free_space", path=path, reason=error.strerror or error)


def check_writable(folder: Path) -> None:
    """Writes a little into a folder, creating it if missing, and removes it again; raises `OutputError`."""
    probe = folder / f".{secrets.token_hex(8)}.part"  # swept, should the program end before removing it
    write_whole(probe, lambda file: file.write(bytes(PROBE_BYTES)))
    remove_file(probe)


def check_temporary_folder() -> None:
    """Raises `OutputError` if this machine has no writable folder for temporary files."""
    try:
        folder = Path(tempfile.gettempdir())
    except OSError:
        raise OutputError("no_temporary_folder") from None
    check_writable(folder)


@contextlib.contextmanager
def locked(folder: Path, seconds: float = LOCK_SECONDS) -> Iterator[bool]:
    """Locks a folder, creating it if missing: no other thread or process that takes this lock changes it meanwhile.

    Yields True, or False if the file system has no locks. A process that dies releases it. Raises `OutputError` if the
    folder is not writable, or somebody else holds the lock for more than `seconds`. It cannot be nested.
    """
    lock, alone = FileLock(folder / LOCK, timeout=seconds), True
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(poll_interval=0.01)
    except Timeout:
        raise OutputError("folder_busy", folder=folder) from None
    except NotImplementedError:  # filelock raises this for some file systems without locks
        alone = False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise not_writable(folder / LOCK, error) from None
        alone = False
    try:
        yield alone
    finally:
        lock.release()


def reserve_path(folder: Path, seed: int, sequence: int) -> Path:
    """Reserves a unique name for an image: date, time, seed, and a number of at least `sequence`.

    Creates its JSON, empty, which only one writer can do, even without locks. Raises `OutputError`.
    """
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    while True:
        path = folder / f"{stamp}-{seed}-{sequence:0{SEQUENCE_DIGITS}d}.png"
        reservation = path.with_suffix(".json")
        try:
            reservation.open("x").close()
        except FileExistsError:
            sequence += 1
            continue
        except OSError as error:
            raise not_writable(path, error) from None
        if not path.exists():
            return path
        reservation.unlink(missing_ok=True)  # of an image that lost its own
        sequence += 1


def age_order(path: Path) -> tuple[int, str]:
    """The sort key of our images, oldest first: the sequence, which no clock changes, then the name."""
    match = OUR_NAME.fullmatch(path.stem)
    number = match[1] if match else None
    return int(number) if number and len(number) >= SEQUENCE_DIGITS else 0, path.stem


def sweep_parts(folders: Iterable[Path], alone: bool) -> None:
    """Deletes half-written files in folders: all if nobody else is writing (`alone`), else those an hour old."""
    for folder in folders:
        for path in folder.glob(".*.part"):
            if OUR_PART.fullmatch(path.name) and (alone or is_old(path)):
                with contextlib.suppress(OSError):
                    path.unlink()


def is_old(path: Path) -> bool:
    """Whether a file has not been written to for an hour."""
    try:
        return time.time() - path.stat().st_mtime > OLD_SECONDS
    except OSError:
        return False
