"""Images: opening an untrusted file safely, and the reference's resize and crop. PIL in, PIL out."""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from uso_core.errors import RequestError
from uso_core.messages import Bytes
from uso_core.request import SIZE_MULTIPLE, InputImage

MAX_FILE_BYTES = 200 * 2**20
MAX_PIXELS = 200_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "PPM")


def open_image(source: str | Path | bytes | Image.Image, name: str = "") -> InputImage:
    """An image from a path, a file's bytes or pixels: upright (EXIF orientation applied) and RGB.

    Raises `RequestError` naming the file if it is missing, too large, or not an image that can be decoded.
    The hash is that of the size and the RGB pixels, so that the same image is recognised in any file.
    """
    if isinstance(source, Image.Image):
        return _image(ImageOps.exif_transpose(source), name or "image")
    if isinstance(source, bytes):
        return _image(_decode(source, name or "image"), name or "image")
    try:
        path = Path(source).expanduser()
        if not path.is_file():
            key = "image_not_there" if not path.exists() else "image_is_folder" if path.is_dir() else "image_no_file"
            raise RequestError(key, hint="check_start_path", path=path)
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise RequestError(
                "image_too_large", hint="smaller_image", path=path, size=Bytes(size), most=Bytes(MAX_FILE_BYTES)
            )
        data = path.read_bytes()
    except (OSError, RuntimeError, ValueError) as error:  # also a home that is unknown, a name that no disk takes
        reason = getattr(error, "strerror", None) or error
        raise RequestError("image_unreadable", hint="check_path", path=str(source), reason=reason) from None
    return _image(_decode(data, str(path)), name or path.name)


def content_size(width: int, height: int, long_side: int) -> tuple[int, int]:
    """The size in pixels to which a content image is resized before the crop.

    The arithmetic, its order included, is the reference's (bytedance/USO b6784d7, `preprocess_ref`): the short side
    is truncated after the division.
    """
    if width >= height:
        return long_side, int((long_side / width) * height)
    return int((long_side / height) * width), long_side


def content_crop(width: int, height: int, long_side: int) -> tuple[int, int]:
    """The size in pixels of a prepared content image; raises `RequestError` if nothing is left of its short side."""
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
    """The content image as the reference feeds it: LANCZOS to `long_side`, centre-cropped to multiples of 16, RGB.

    An image of exactly 16 x 16 is left as it is. Raises `RequestError` if nothing would be left of the short side.
    """
    if image.size == (SIZE_MULTIPLE, SIZE_MULTIPLE):
        return image.convert("RGB")
    crop_width, crop_height = content_crop(*image.size, long_side)
    width, height = content_size(*image.size, long_side)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return image.crop((left, top, left + crop_width, top + crop_height)).convert("RGB")


def kept_size(content: tuple[int, int], long_side: int, target: int = 1024) -> tuple[int, int]:
    """The prepared content image's width and height scaled by target / long_side, floored to multiples of 16."""
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


def _image(image: Image.Image, name: str) -> InputImage:
    if image.mode.startswith("I;16"):  # PIL would clip the 16 bits to white instead of scaling them
        image = image.convert("I").point(lambda level: level * (1 / 257)).convert("L")
    image = image.convert("RGB")
    if image.width * image.height == 0:
        raise RequestError("image_no_pixels", hint="image_formats", name=name)
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode() + image.tobytes()).hexdigest()
    return InputImage(name, digest, image)


def _decode(data: bytes, name: str) -> Image.Image:
    if not data:
        raise RequestError("image_empty", hint="image_formats", name=name)
    Image.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            image.load()
            return ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        raise RequestError("no_image", hint="image_formats", name=name) from None
    except Image.DecompressionBombError:
        raise RequestError("image_too_many_pixels", hint="smaller_image", name=name, most=MAX_PIXELS) from None
    except MemoryError:
        raise
    except Exception as error:  # decoders of damaged files raise almost anything
        raise RequestError("image_damaged", hint="image_formats", name=name, reason=error) from None
