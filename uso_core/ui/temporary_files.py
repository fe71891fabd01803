"""Files given to the browser but not kept: in Gradio's cache, which it clears by age and at the end."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import threading
import time
from functools import partial
from pathlib import Path

from gradio.utils import get_upload_folder
from PIL import Image

from uso_core.request import Result
from uso_core.storage.files import not_writable, save_image, write_whole

PREVIEW_SECONDS = 60.0  # a browser or a program that lags may still fetch a preview


def passing_path(name: str) -> Path:
    """A new path in its own folder; Gradio deletes the file some time after a component has shown it.

    Raises `OutputError` if nothing can be written there.
    """
    folder = Path(get_upload_folder()) / secrets.token_hex(20)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise not_writable(folder / name, error) from None
    return folder / name


def discard(path: Path) -> None:
    """Deletes a file from `passing_path` before its time."""
    _remove_all([path])


class PassingImages:
    """What runs show but do not keep: previews, and the images of private requests. Deleted when their owner leaves.

    An owner is an open page, or one call of the API.
    """

    def __init__(self) -> None:
        self._paths: dict[str, list[Path]] = {}
        self._previews: dict[str, list[tuple[float, Path]]] = {}  # with the time of each
        self._leaving: list[tuple[float, list[Path]]] = []  # when to delete what, by a monotonic clock
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()

    def add(self, owner: str, image: Image.Image, result: Result) -> Path:
        """Writes the PNG with its request inside, and nothing else; raises `OutputError` if it cannot be written.

        Of two images with one seed, too, the name tells which is meant.
        """
        name = f"private-{result.seed}-{secrets.token_hex(4)}.png"
        path = save_image(image, result, passing_path(name), beside=False)
        self.own(owner, path)
        return path

    def own(self, owner: str, path: Path) -> None:
        """Takes over a file that was written elsewhere, to be deleted when the owner leaves."""
        with self._lock:
            self._paths.setdefault(owner, []).append(path)

    def copy(self, owner: str, kept: Path) -> Path:
        """A copy of a kept file at a secret address; raises `OutputError` if it cannot be written."""
        path = passing_path(kept.name)
        try:
            shutil.copyfile(kept, path)
        except OSError as error:
            raise not_writable(path, error) from None
        self.own(owner, path)
        return path

    def preview(self, owner: str, image: Image.Image) -> str:
        """The path of a preview; the owner's old ones are deleted."""
        path, now = passing_path("preview.png"), time.monotonic()
        write_whole(path, partial(image.save, format="PNG"))
        with self._lock:
            shown = self._previews.get(owner, [])
            self._previews[owner] = [each for each in shown if each[0] > now - PREVIEW_SECONDS] + [(now, path)]
        _remove_all([old for when, old in shown if when <= now - PREVIEW_SECONDS])
        return str(path)

    def forget(self, owner: str, after_seconds: float = 0.0) -> None:
        """Deletes an owner's files, at once or after some time."""
        with self._lock:
            paths = [*self._paths.pop(owner, []), *(path for _, path in self._previews.pop(owner, []))]
            if after_seconds and paths:
                self._leaving.append((time.monotonic() + after_seconds, paths))
                self._wait()
                return
        _remove_all(paths)

    def _wait(self) -> None:
        """Sets the one timer for whatever leaves next; the lock is held."""
        if self._timer is not None:
            self._timer.cancel()
        seconds = min(when for when, _ in self._leaving) - time.monotonic()
        self._timer = threading.Timer(max(0.0, seconds), self._let_go)
        self._timer.daemon = True
        self._timer.start()

    def _let_go(self) -> None:
        with self._lock:
            now = time.monotonic()
            due = [paths for when, paths in self._leaving if when <= now]
            self._leaving = [(when, paths) for when, paths in self._leaving if when > now]
            self._timer = None
            if self._leaving:
                self._wait()
        for paths in due:
            _remove_all(paths)


def _remove_all(paths: list[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
            path.parent.rmdir()
