"""Files given to the browser but not kept: in Gradio's cache, which it clears by age and at the end."""

from __future__ import annotations

import contextlib
import secrets
import threading
from functools import partial
from pathlib import Path

from gradio.utils import get_upload_folder
from PIL import Image

from uso_core.request import Result
from uso_core.storage.files import not_writable, save_image, write_whole


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


class PrivateImages:
    """The images shown by private requests, deleted when their page is closed; a preview when the next one comes."""

    def __init__(self) -> None:
        self._paths: dict[str, list[Path]] = {}
        self._previews: dict[str, Path] = {}
        self._lock = threading.Lock()

    def add(self, session: str, image: Image.Image, result: Result) -> Path:
        """Writes the PNG with its request inside, and nothing else; raises `OutputError` if it cannot be written."""
        path = save_image(image, result, passing_path(f"private-{result.seed}.png"), beside=False)
        with self._lock:
            self._paths.setdefault(session, []).append(path)
            _remove(self._previews.pop(session, None))
        return path

    def preview(self, session: str, image: Image.Image) -> str:
        """The path of a preview, which replaces the previous one."""
        path = passing_path("preview.png")
        write_whole(path, partial(image.save, format="PNG"))
        with self._lock:
            _remove(self._previews.pop(session, None))
            self._previews[session] = path
        return str(path)

    def forget(self, session: str, after_seconds: float = 0.0) -> None:
        """Deletes a page's images, at once or after some time."""
        with self._lock:
            paths = [*self._paths.pop(session, []), *filter(None, [self._previews.pop(session, None)])]
        if after_seconds and paths:
            timer = threading.Timer(after_seconds, _remove_all, [paths])
            timer.daemon = True
            timer.start()
        else:
            _remove_all(paths)


def _remove_all(paths: list[Path]) -> None:
    for path in paths:
        _remove(path)


def _remove(path: Path | None) -> None:
    if path is not None:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
            path.parent.rmdir()
