"""Content images as the reference prepares them, and sizes that follow from them. PIL in, PIL out."""

from __future__ import annotations

from PIL import Image

from uso_core.errors import RequestError
from uso_core.request import SIZE_MULTIPLE


def content_size(width: int, height: int, long_side: int) -> tuple[int, int]:
    """The size in pixels to which a content image is resized before cropping.

    The arithmetic and its order are the reference's (bytedance/USO b6784d7, `preprocess_ref`): the short side is
    truncated after the division.
    """
    if width >= height:
        return long_side, int((long_side / width) * height)
    return int((long_side / height) * width), long_side


def content_crop(width: int, height: int, long_side: int) -> tuple[int, int]:
    """The size in pixels of a prepared content image; raises `RequestError` if nothing remains of its short side."""
    if width == height == SIZE_MULTIPLE:
        return width, height
    resized = content_size(width, height, long_side)
    cropped = resized[0] // SIZE_MULTIPLE * SIZE_MULTIPLE, resized[1] // SIZE_MULTIPLE * SIZE_MULTIPLE
    if min(cropped) < SIZE_MULTIPLE:
        raise RequestError(
            "content_too_narrow",
            width=width,
            height=height,
            resized_width=resized[0],
            resized_height=resized[1],
            long_side=long_side,
            size_multiple=SIZE_MULTIPLE,
        )
    return cropped


def prepare_content(image: Image.Image, long_side: int) -> Image.Image:
    """Prepares the content image like the reference: LANCZOS to `long_side`, centre-cropped to multiples of 16, RGB.

    An image of exactly 16 x 16 stays unchanged. Raises `RequestError` if nothing would remain of the short side.
    """
    image = image.convert("RGB")  # first: a palette's numbers cannot be averaged
    if image.size == (SIZE_MULTIPLE, SIZE_MULTIPLE):
        return image
    crop_width, crop_height = content_crop(*image.size, long_side)
    width, height = content_size(*image.size, long_side)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return image.crop((left, top, left + crop_width, top + crop_height))


def kept_size(content: tuple[int, int], long_side: int, target: int = 1024) -> tuple[int, int]:
    """The prepared content image's width and height, scaled by target / long_side, floored to multiples of 16."""
    width, height = (int(side * (target / long_side)) // SIZE_MULTIPLE * SIZE_MULTIPLE for side in content)
    return max(width, SIZE_MULTIPLE), max(height, SIZE_MULTIPLE)


def beside_each_other(images: list[Image.Image]) -> Image.Image:
    """The images in one row, top-aligned on black, at their own sizes."""
    row = Image.new("RGB", (sum(image.width for image in images), max(image.height for image in images)))
    left = 0
    for image in images:
        row.paste(image, (left, 0))
        left += image.width
    return row
