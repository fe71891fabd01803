"""Images of a request that waits: large ones stay in their files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from uso_core.errors import RequestError
from uso_core.images.opening import is_spacious, open_image
from uso_core.request import GenerationRequest, InputImage


def set_aside(request: GenerationRequest) -> GenerationRequest:
    """The request while it waits: large images that are in a file are not kept decoded."""
    return _with_images(request, lambda given: dataclasses.replace(given, image=None) if _is_aside(given) else given)


def brought_back(request: GenerationRequest) -> GenerationRequest:
    """The request with its images reloaded; raises `RequestError` if a file is gone or now holds another image."""
    return _with_images(request, _read_again)


def _is_aside(given: InputImage) -> bool:
    return given.path is not None and is_spacious(given)


def _read_again(given: InputImage) -> InputImage:
    if given.image is not None or given.path is None:
        return given
    again = open_image(given.path, given.name, given.background)
    if again.sha256 != given.sha256:
        raise RequestError("image_changed", hint="image_missing", name=given.name)
    return again


def _with_images(
    request: GenerationRequest, change: Callable[[InputImage], InputImage]
) -> GenerationRequest:  # fmt: skip
    styles = tuple(change(style) if isinstance(style, InputImage) else style for style in request.styles)
    content = change(request.content) if request.content is not None else None
    return dataclasses.replace(request, content=content, styles=styles)
