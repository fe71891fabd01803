"""What a caller gives the pipeline, as diffusers' callers write it, checked and in one form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from PIL import Image

from uso_core.errors import RequestError
from uso_core.images import open_image
from uso_core.request import check_prompt

Embeds = list[tuple[torch.Tensor, torch.Tensor]]


def prompts_of(prompt: str | Sequence[str] | None) -> list[str]:
    """The prompts; None is an empty one. Raises `RequestError` for an empty list and for what is no text."""
    prompts = [prompt or ""] if prompt is None or isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise RequestError("no_prompts")
    for each in prompts:
        check_prompt(each)
    return prompts


def images_of(
    content: Image.Image | None, styles: Image.Image | Sequence[Image.Image] | None
) -> tuple[Image.Image | None, tuple[Image.Image, ...]]:
    """The content image and the style images, one alone counting as a list, upright and RGB as from a file.

    Raises `RequestError` for other things, and for an image that cannot be decoded.
    """
    given = (styles,) if isinstance(styles, Image.Image) else () if styles is None else styles
    if not isinstance(given, Iterable) or isinstance(given, str):
        raise RequestError("no_pil_image", name="style_images", value=type(styles).__name__)
    given = tuple(given)
    named = [("content_image", content), *(("style_images", each) for each in given)]
    for name, image in named:
        if image is not None and not isinstance(image, Image.Image) or (image is None and name == "style_images"):
            raise RequestError("no_pil_image", name=name, value=type(image).__name__)
    opened = [None if image is None else open_image(image, name).image for name, image in named]
    return opened[0], tuple(image for image in opened[1:] if image is not None)


def strengths_of(strengths: float | Iterable[float] | None) -> tuple[float, ...]:
    """The strengths of the style images as a tuple; raises `RequestError` for a number alone."""
    if strengths is None:
        return ()
    if not isinstance(strengths, Iterable) or isinstance(strengths, str):
        raise RequestError("no_list", hint="strengths_count", name="style_strengths", value=strengths)
    return tuple(strengths)


def embeds_of(prompt: object, text: torch.Tensor | None, pooled: torch.Tensor | None) -> Embeds:
    """An encoded prompt for each of a caller's; raises `RequestError` if its parts do not belong together."""
    if text is None and pooled is None:
        return []
    for name, given in (("prompt_embeds", text), ("pooled_prompt_embeds", pooled)):
        if given is not None and not isinstance(given, torch.Tensor):
            raise RequestError("no_tensor", name=name, value=type(given).__name__)
    if text is None or pooled is None or len(text) != len(pooled) or not len(text):
        raise RequestError("embeds_alone")
    if prompt:
        raise RequestError("prompt_and_embeds")
    return [(one[None], other[None]) for one, other in zip(text, pooled, strict=True)]


def check_embeds(embeds: Embeds, text_width: int, pooled_width: int) -> None:
    """Raises `RequestError` unless these are text (1, T, text_width) and pooled (1, pooled_width)."""
    for text, pooled in embeds[:1]:
        if text.dim() != 3 or text.shape[-1] != text_width:
            needed = ["B", "T", text_width]
            raise RequestError("embeds_shape", name="prompt_embeds", given=list(text.shape), needed=needed)
        if pooled.dim() != 2 or pooled.shape[-1] != pooled_width:
            needed = ["B", pooled_width]
            raise RequestError("embeds_shape", name="pooled_prompt_embeds", given=list(pooled.shape), needed=needed)


def check_latents(latents: torch.Tensor, images: int, tokens: int, channels: int) -> None:
    """Raises `RequestError` unless these are packed latents (1 or images, tokens, channels)."""
    if not isinstance(latents, torch.Tensor):
        raise RequestError("no_tensor", name="latents", value=type(latents).__name__)
    if latents.dim() != 3 or tuple(latents.shape[1:]) != (tokens, channels):
        raise RequestError("latents_shape", given=list(latents.shape), needed=["B", tokens, channels])
    if len(latents) not in (1, images):
        raise RequestError("latents_count", latents=len(latents), images=images)
