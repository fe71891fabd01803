"""Input from outside: images as files, addresses or base64, and numbers as they were sent."""

from __future__ import annotations

import base64
import binascii
import hashlib
from abc import ABCMeta
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import gradio as gr
from anyio import CapacityLimiter, to_thread
from gradio.data_classes import ImageData
from gradio_client.utils import strip_invalid_filename_characters
from pydantic import BaseModel, model_validator

from uso_core.errors import RequestError, UsoError
from uso_core.images import MAX_FILE_BYTES
from uso_core.messages import Bytes
from uso_core.storage.files import write_whole
from uso_core.ui.fetch import FETCHES, fetch
from uso_core.ui.language import say, tell

FILE_ROUTE = "/gradio_api/file="  # where Gradio serves uploads and results
SHORTEST_BASE64 = 40  # characters
TOAST_SECONDS = 8.0  # until an error leaves the page by itself
FETCHING = CapacityLimiter(3 * FETCHES)  # threads that fetch or wait to, apart from those shared by all visitors


class ImageInputData(ImageData):
    """An image as sent by Gradio's clients, or plain text: an address, a data URL, or base64."""

    @model_validator(mode="before")
    @classmethod
    def from_text(cls, value: Any) -> Any:
        if value is None or isinstance(value, dict | BaseModel):
            return value
        return {"path": value if isinstance(value, str) else repr(value)}  # a number is no image that was sent


class WithoutStub(type(gr.Image)):  # type: ignore[misc]
    """Creates only a component's class: Gradio's own metaclass also writes a .pyi file beside the source."""

    def __new__(cls, name: str, bases: tuple[type, ...], attributes: dict[str, Any]) -> Any:
        return ABCMeta.__new__(cls, name, bases, attributes)


class NumberInput(gr.Number, metaclass=WithoutStub):
    """A number as it was sent: `request.py` names the wrong field and the remedy."""

    is_template = True  # the browser treats it as a Number

    def preprocess(self, payload: Any) -> Any:
        return payload


class TextInput(gr.Textbox, metaclass=WithoutStub):
    """A text as it was sent: Gradio would write a list or a number as one."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        return payload


class SliderInput(gr.Slider, metaclass=WithoutStub):
    """A slider's number as it was sent."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        return payload


class ChoiceInput(gr.Dropdown, metaclass=WithoutStub):
    """A choice as it was sent: the choices may have changed since the page was loaded."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        return payload


class ImageInput(gr.Image, metaclass=WithoutStub):
    """An image slot whose value is the path of a file that Gradio received, as it was sent, or None.

    Gradio's own reads any path that a caller names, and reveals internals in its answer to an unreachable address.
    """

    data_model = ImageInputData
    is_template = True

    def preprocess(self, payload: ImageData | None) -> str | None:
        """The file behind a value; raises `gr.Error` with a sentence if there is none that may be read."""
        if payload is None:
            return None
        try:
            return self._received(payload.path or payload.url or "", payload.orig_name)
        except UsoError as error:
            raise refusal(error) from None

    def kept(self, value: Any) -> str | None:
        """The path of a file that an earlier page received, if it is still there; `value` is as the browser kept it."""
        path = value.get("path") if isinstance(value, dict) else None
        return self._ours(path) if isinstance(path, str) else None

    async def async_move_resource_to_block_cache(self, url_or_file_path: str | Path | None) -> str | None:
        source = str(url_or_file_path)
        if not _is_address(source):
            return await super().async_move_resource_to_block_cache(url_or_file_path)
        if (shown := self._shown(source)) is not None:
            return shown
        try:
            if FETCHING.available_tokens < 1:
                raise RequestError("too_many_fetches")
            return await to_thread.run_sync(self._received, source, limiter=FETCHING)
        except UsoError as error:
            raise refusal(error) from None

    def _received(self, source: str, name: str | None = None) -> str:
        """The path of the file behind a path, an address, a data URL or base64; raises `RequestError`."""
        if _is_address(source):
            return self._shown(source) or self._keep(*fetch(source))
        if source.startswith("data:"):
            return self._keep(name or "image", _decode(source.partition(",")[2], shortest=0))
        if (given := self._ours(source)) is not None:
            return given
        if source.startswith((str(cache := Path(self.GRADIO_CACHE)), str(cache.resolve()))):
            raise RequestError("upload_gone", hint="choose_again", name=name or Path(source).name)
        return self._keep(name or "image", _decode(source))

    def _shown(self, address: str) -> str | None:
        """The path of the file that this server itself serves under an address, if any."""
        return self._ours(unquote(address).partition(FILE_ROUTE)[2])

    def _ours(self, path: str) -> str | None:
        """`path`, if it is where Gradio keeps what it received or shows; files there have secret names."""
        try:
            resolved = Path(path).resolve()
            if path and resolved.is_file() and Path(self.GRADIO_CACHE).resolve() in resolved.parents:
                return str(resolved)
        except (OSError, RuntimeError, ValueError):  # a name that no disk accepts
            pass
        return None

    def _keep(self, name: str, data: bytes) -> str:
        """Writes the data to a file of that name in a folder named by its content: completely, as others may read."""
        folder = Path(self.GRADIO_CACHE) / hashlib.sha256(data).hexdigest()
        path = folder / (strip_invalid_filename_characters(Path(name).name) or "image")
        write_whole(path, lambda file: file.write(data))
        return str(path.resolve())


def refusal(error: UsoError) -> gr.Error:
    """An error as the page's toast and the API's reply: the sentence and its hint, without a traceback in the log.

    Gradio shows it as HTML, so quoted values are escaped.
    """
    return gr.Error(
        escape(tell(error.told), quote=False), duration=TOAST_SECONDS, title=say("please_change"), print_exception=False
    )


def _is_address(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def _decode(content: str, shortest: int = SHORTEST_BASE64) -> bytes:
    if len(content) > MAX_FILE_BYTES * 4 // 3 + 4:
        raise RequestError("upload_too_large", hint="smaller_image", most=Bytes(MAX_FILE_BYTES))
    try:
        if len(content) < shortest:
            raise ValueError("no image is as short")
        return base64.b64decode("".join(content.split()), validate=True)
    except (binascii.Error, ValueError):
        raise RequestError("no_image_source", hint="image_source", source=content) from None
