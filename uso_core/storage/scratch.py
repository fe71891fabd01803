"""Files that nobody keeps: in a folder of this process, deleted at its end, or by the next start after a kill."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

from filelock import FileLock, Timeout

from uso_core.errors import OutputError
from uso_core.storage.files import check_writable, not_writable

PREFIX, LOCK = "uso-", ".lock"
BOUND_SECONDS = 60  # between two checks of the folder's size


class Scratch:
    """The folder, held by a lock while its process lives."""

    def __init__(self, path: Path, lock: FileLock) -> None:
        self.path, self._lock = path, lock
        self._ended = threading.Event()

    @classmethod
    def claim(cls, base: Path | None = None) -> Scratch:
        """A new folder in `base` (default: the system's temporary folder); sweeps what killed processes left.

        Raises `OutputError` if nothing can be written there.
        """
        try:
            base = base or Path(tempfile.gettempdir())
            base.mkdir(parents=True, exist_ok=True)
            sweep(base)
            path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        except FileNotFoundError:
            raise OutputError("no_temporary_folder") from None
        except OSError as error:
            raise not_writable(Path(base or ".") / PREFIX, error) from None
        check_writable(path)
        lock = FileLock(_lock_of(path))
        with contextlib.suppress(NotImplementedError):  # on a file system without locks only its age protects it
            lock.acquire(timeout=0)
        return cls(path, lock)

    def keep_below(self, most_bytes: int) -> None:
        """From now on, once a minute, removes the oldest files while all together exceed this many bytes."""

        def watch() -> None:
            while not self._ended.wait(BOUND_SECONDS):
                bound(self.path, most_bytes)

        threading.Thread(target=watch, name="scratch", daemon=True).start()

    def remove(self) -> None:
        """Removes the folder with everything in it."""
        self._ended.set()
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.release()
        with contextlib.suppress(OSError):
            _lock_of(self.path).unlink(missing_ok=True)


def sweep(base: Path) -> None:
    """Removes the folders of processes that are gone; those of living processes and of other programs stay."""
    for folder in base.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError, Timeout, NotImplementedError):
            held = _lock_of(folder)
            if not folder.is_dir() or folder.is_symlink() or not held.exists():  # perhaps another program's
                continue
            with FileLock(held).acquire(timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
            held.unlink(missing_ok=True)


def _lock_of(folder: Path) -> Path:
    """Its lock is elsewhere, so that the folder holds only temporary files."""
    return Path(tempfile.gettempdir()) / f".{folder.name}{LOCK}"


def bound(folder: Path, most_bytes: int) -> None:
    """Removes the oldest files until the others take at most this many bytes."""
    found = []
    for parent, _, names in os.walk(folder):  # `rglob` fails where another thread deletes a folder meanwhile
        for path in (Path(parent, name) for name in names):
            with contextlib.suppress(OSError):
                state = path.lstat()
                found.append((state.st_mtime, state.st_size, path))
    total = sum(size for _, size, _ in found)
    for when, size, path in sorted(found, key=lambda each: each[0]):
        if total <= most_bytes:
            return
        if time.time() - when > BOUND_SECONDS:  # new files are still being shown
            with contextlib.suppress(OSError):
                path.unlink()
                total -= size
