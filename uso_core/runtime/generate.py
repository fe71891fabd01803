"""The one recipe: a request and a loaded pipeline -> events, including the images.

The command line, the page and every executor iterate it. Whoever stops iterating (`close`) stops the work within one
step; whoever sends `Wish.SKIP` abandons the current image.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator

import torch
from PIL import Image

from uso_core import images
from uso_core.catalog.models import Model
from uso_core.errors import RequestError
from uso_core.events import Encoding, Event, ImageReady, Skipped, Step, StylesReady
from uso_core.loaders.other_lora import changes_text
from uso_core.messages import message
from uso_core.model.denoising import Prepared
from uso_core.model.pipeline import USOPipeline
from uso_core.request import GenerationRequest, Result, StoredStyle
from uso_core.runtime.executors import Wish
from uso_core.runtime.style_tokens import encoded, fingerprint

Events = Generator[Event, Wish | None, None]


def generate(
    pipeline: USOPipeline,
    model: Model,
    request: GenerationRequest,
    previews: bool = False,
    first: int = 0,
    end: int | None = None,
) -> Events:
    """Makes the images of a request with a settled seed; with `previews` each step yields a small image.

    Begins with image `first`, to continue an interrupted request, and makes none from `end` on.

    Raises `RequestError` if a stored style was made with other weights.
    """
    yield Encoding()
    began = time.perf_counter()
    # 1. Encode
    request = _sized(request, model)
    content = request.content.image if request.content else None
    styles, strengths = _styles_of(request, pipeline, model)
    condition = pipeline.encode(request.prompt, content, styles, request.content_size)
    # 2. Prepare what all steps and images share
    prepared = pipeline.prepare(condition, dataclasses.replace(request.sampling, style_strengths=strengths))
    text_left_out = (lora.name for lora in request.loras if lora.path and lora.strength and changes_text(lora.path))
    unread = dataclasses.replace(pipeline.unread(request.prompt), loras=tuple(text_left_out))
    for index in range(first, request.images if end is None else end):
        # 3. Denoise
        seed = _settled(request) + index
        generator = pipeline.generator(seed)
        latents = yield from _steps(pipeline, prepared, generator, request, index, previews)
        if latents is None:
            yield Skipped(index)
            continue
        # 4. Decode
        image = pipeline.to_images(pipeline.decode(latents, request.width, request.height))[0]
        dtype = str(pipeline.transformer.dtype).removeprefix("torch.")
        result = Result(request, seed, model.name, str(generator.device), dtype, time.perf_counter() - began)
        yield ImageReady(index, image, result, unread)
        began = time.perf_counter()


def encode_styles(pipeline: USOPipeline, model: Model, request: GenerationRequest) -> Events:
    """Encodes a request's styles so that they can be stored; makes no image."""
    yield Encoding()
    styles, strengths = _styles_of(request, pipeline, model)
    tokens = encoded(styles, pipeline)
    yield StylesReady(tokens, strengths or (1.0,) * len(tokens), model.name, fingerprint(pipeline))


def _steps(
    pipeline: USOPipeline,
    prepared: Prepared,
    generator: torch.Generator,
    request: GenerationRequest,
    index: int,
    previews: bool,
) -> Generator[Event, Wish | None, torch.Tensor | None]:
    """One image's steps; returns its packed latents (1, S, 4C), or None if it was skipped."""
    latents: torch.Tensor | None = None
    times = [time.perf_counter()]
    for done, step in enumerate(pipeline.denoise(prepared, generator), 1):
        latents = step.latents
        times = [*times[-5:], time.perf_counter()]
        seconds = (times[-1] - times[0]) / (len(times) - 1)
        preview = pipeline.preview(step.denoised, request.width, request.height) if previews else None
        wish = yield Step(done, request.steps, index + 1, request.images, seconds, preview)
        if wish is Wish.SKIP:
            return None
    return latents


def _styles_of(
    request: GenerationRequest, pipeline: USOPipeline, model: Model
) -> tuple[list[Image.Image | torch.Tensor], tuple[float, ...]]:
    """The styles for `encode`, tokens (1, K, D) or images, and a strength for each; no strengths if all are 1.

    Raises `RequestError` naming a stored style whose tokens another projector or vision tower made.
    """
    saved = any(isinstance(style, StoredStyle) for style in request.styles)
    ours = fingerprint(pipeline) if saved else ""
    styles: list[Image.Image | torch.Tensor] = []
    strengths: list[float] = []
    given = request.style_strengths or (1.0,) * len(request.styles)
    for style, strength in zip(request.styles, given, strict=True):
        if isinstance(style, StoredStyle):
            if style.fingerprint != ours:
                other = "style_for_weights" if style.model == model.name else "style_for_model"
                made_for = message(other, model=style.model)
                raise RequestError("style_made_elsewhere", name=style.name, made_for=made_for, model=model.name)
            placed = (torch.tensor(tokens).to(pipeline.compute_device) for tokens in style.tokens)
            styles += [tokens[None] for tokens in placed]
            strengths += [strength * each for each in style.strengths]
        elif style.image is not None:
            styles.append(style.image)
            strengths.append(strength)
    return styles, tuple(strengths) if any(strength != 1.0 for strength in strengths) else ()


def _sized(request: GenerationRequest, model: Model) -> GenerationRequest:
    """The request with the size that `keep_size` implies."""
    if not request.keep_size or request.content is None or request.content.image is None:
        return request
    cropped = images.content_crop(*request.content.image.size, request.content_size)
    width, height = images.kept_size(cropped, request.content_size, model.size)
    return dataclasses.replace(request, width=width, height=height)


def _settled(request: GenerationRequest) -> int:
    if request.seed is None:
        raise ValueError("the seed is settled on submission")
    return request.seed
