"""Files given to the browser but not kept: in Gradio's cache, which it clears by age and at the end."""

from __future__ import annotations

import contextlib
import secrets
import threading
from pathlib import Path

from gradio.utils import get_upload_folder
from PIL import Image

from uso_core.request import Result
from uso_core.storage.files import save_image


def passing_path(name: str) -> Path:
    """A new path in its own folder; Gradio deletes the file some time after a component has shown it."""
    folder = Path(get_upload_folder()) / secrets.token_hex(20)
    folder.mkdir(parents=True)
    return folder / name


class PrivateImages:
    """The images shown by pages in private mode, deleted when their page is closed."""

    def __init__(self) -> None:
        self._paths: dict[str, list[Path]] = {}
        self._lock = threading.Lock()

    def add(self, session: str, image: Image.Image, result: Result) -> Path:
        """Writes the PNG with its request inside, and nothing else; raises `OutputError` if it cannot be written."""
        path = save_image(image, result, passing_path(f"private-{result.seed}.png"), beside=False)
        with self._lock:
            self._paths.setdefault(session, []).append(path)
        return path

    def forget(self, session: str) -> None:
        """Deletes the images of a page."""
        with self._lock:
            paths = self._paths.pop(session, [])
        for path in paths:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
                path.parent.rmdir()
