"""Opens untrusted images safely: upright, RGB, in bounded memory."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import hashlib
import importlib.util
import io
import itertools
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from uso_core.colors import Conversion, as_shown
from uso_core.errors import RequestError
from uso_core.file_formats import CAMERA_RAW, is_camera_raw, name_format
from uso_core.images.chunks import PNG_SIGNATURE, is_simple_png, png_bands, png_of_words, without_texts
from uso_core.messages import Bytes, Message, message
from uso_core.request import MAX_SIDE, SIZE_MULTIPLE, InputImage

MAX_FILE_BYTES = 200 * 2**20
HEAVY_FILE_BYTES = 16 * 2**20
MAX_PIXELS = 178_000_000  # Pillow itself opens no larger ones
MAX_DECODING_BYTES = 10**9  # of memory for decoding one image
MAX_REFERENCE_SIDE = MAX_SIDE  # no slot uses more: a larger image is reduced to this long side, in pixels
SMALL_PIXELS = 2**19  # images up to this stay decoded while their request waits: 1.6 MB
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "PPM")
# Measured peak memory of decoding; "JPEG" means progressive, whose coefficients are all held
BYTES_A_PIXEL = {"WEBP": 20, "AVIF": 12, "HEIF": 12, "JPEG": 12, "TIFF": 8, "": 5}
MAX_SCANS = 100  # of a JPEG; usually 1 or about 10, and each takes as long as a whole image
BAND_PIXELS = 2**20  # about how much of an image is read or hashed at a time
ORIENTATION, TILE_WIDTH, TILE_LENGTH = 0x0112, 322, 323  # tags of EXIF and TIFF
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
SEVERAL_FRAMES = ("GIF", "WEBP", "PNG", "AVIF", "TIFF")
_JPEG_SEGMENT = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")  # the markers followed by a length, and the end
# Limits on what takes memory at once: files held as they are, images being decoded, and large ones among these.
_HEAVY_FILES, _ANY_DECODER = threading.BoundedSemaphore(4), threading.BoundedSemaphore(4)
_LARGE_DECODER = threading.Lock()


def open_image(
    source: str | Path | bytes | Image.Image, name: str = "", background: str = "white", aside: bool = False
) -> InputImage:
    """Opens an image from a path, a file's bytes or pixels: upright (EXIF orientation applied) and RGB.

    What is transparent is composited onto `background`, a name in `colors.BACKGROUNDS`. An image with a long side above
    `MAX_REFERENCE_SIDE` pixels is reduced to that, in bounded memory; any other keeps every pixel. Raises
    `RequestError` naming the file if it is missing, too large, or cannot be decoded as an image. The hash covers the
    size and the RGB pixels, so that the same image is recognised in any file. With `aside` the pixels of a large image
    are dropped again while no more are decoded than may be at once: `brought_back` reads them from the path.
    """
    if isinstance(source, Image.Image):
        try:
            return _input_image(_upright(source, name or "image", background), name or "image")
        except (MemoryError, RequestError):
            raise
        except Exception as error:  # it may be of a file that is read only now, or of a mode that PIL cannot convert
            raise RequestError("image_damaged", hint="image_formats", name=name or "image", reason=error) from None
    if isinstance(source, bytes):
        return _decode(source, name or "image", background)
    try:
        path = Path(os.path.expanduser(source))  # `~name` may be a file
        if not path.is_file():
            key = "image_not_there" if not path.exists() else "image_is_folder" if path.is_dir() else "image_no_file"
            raise RequestError(key, hint="check_start_path", path=path)
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise RequestError(
                "image_too_large", hint="smaller_image", path=name or path, size=Bytes(size), most=Bytes(MAX_FILE_BYTES)
            )
        with _HEAVY_FILES if size > HEAVY_FILE_BYTES else contextlib.nullcontext():  # until they are decoded
            opened = _decode(path.read_bytes(), name or str(path), background, aside)
    except (OSError, RuntimeError, ValueError) as error:  # also a home that is unknown, a name that no disk takes
        reason = getattr(error, "strerror", None) or error
        raise RequestError("image_unreadable", hint="check_path", path=str(source), reason=reason) from None
    return dataclasses.replace(opened, name=name or path.name, path=path, background=background)


def is_spacious(given: InputImage) -> bool:
    """Whether its pixels take much memory while its request waits."""
    return given.image is not None and given.image.width * given.image.height > SMALL_PIXELS


def _input_image(image: Image.Image, name: str) -> InputImage:
    if image.width * image.height == 0:
        raise RequestError("image_no_pixels", hint="image_formats", name=name)
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    for band in _bands(image, 1):
        digest.update(band.tobytes())
    return InputImage(name, digest.hexdigest(), image, size=image.size)


def _decode(data: bytes, name: str, background: str, aside: bool = False) -> InputImage:
    """The image in a file's bytes, upright, RGB and no larger than `MAX_REFERENCE_SIDE`; raises `RequestError`.

    Its hash is taken before another may be decoded: many callers at once would otherwise hold an image each.
    """
    if not data:
        raise RequestError("image_empty", hint="image_formats", name=name)
    Image.init()
    most = MAX_PIXELS
    data = without_texts(data) if data.startswith(PNG_SIGNATURE) else data
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=_formats(data))
            if image.format == "TIFF" and is_camera_raw(data, getattr(image, "tag_v2", {})):
                raise _other_format(CAMERA_RAW, name)
            if image.format == "PNG":
                _scale_transparent_level(image, data)
            most = min(MAX_PIXELS, MAX_DECODING_BYTES // _bytes_a_pixel(image, data))
            if _pixels(image) > most:
                raise Image.DecompressionBombError
            if _is_large(image) and min(_bounded(image.size)) < SIZE_MULTIPLE:  # a single row would take much memory
                width, height = image.size
                raise RequestError("image_too_narrow", name=name, width=width, height=height)
            with _LARGE_DECODER if _is_large(image) else contextlib.nullcontext(), _ANY_DECODER:
                opened = _input_image(_upright(image, name, background, data), name)
                opened = dataclasses.replace(opened, notes=_notes(image, name))
                if aside and is_spacious(opened):
                    opened = dataclasses.replace(opened, image=None)
                    image.close()
                    del image
                    _return_freed_memory()
        return opened
    except (MemoryError, RequestError):
        raise
    except UnidentifiedImageError:
        if _is_readable(data):
            reason = "no image can be decoded from it"
            raise RequestError("image_damaged", hint="image_formats", name=name, reason=reason) from None
        if _is_heic(data):
            raise RequestError("image_heic", hint="image_heic", name=name) from None
        if kind := name_format(data):
            raise _other_format(kind, name) from None
        raise RequestError("no_image", hint="image_formats", name=name) from None
    except Image.DecompressionBombError:
        raise RequestError("image_too_many_pixels", hint="smaller_image", name=name, most=most) from None
    except Exception as error:  # decoders raise almost anything for damaged files
        raise RequestError("image_damaged", hint="image_formats", name=name, reason=error) from None


def _scale_transparent_level(image: Image.Image, data: bytes) -> None:
    """PIL scales a PNG's samples to 8 bits, but not the one that is transparent; 16 bits of grey it leaves alone."""
    depth, level = data[24], image.info.get("transparency")
    if depth in (2, 4) and isinstance(level, int) and image.mode == "L":
        image.info["transparency"] = level * 255 // (2**depth - 1)
    elif depth == 16 and isinstance(level, tuple):
        image.info["transparency"] = tuple(each >> 8 for each in level)


def _other_format(kind: str, name: str) -> RequestError:
    return RequestError("image_other_format", hint="image_export", name=name, kind=kind)


def _formats(data: bytes) -> list[str]:
    """The formats that may be opened; HEIC where its package is installed."""
    if _is_heic(data) and importlib.util.find_spec("pillow_heif") is not None:
        import pillow_heif

        pillow_heif.register_heif_opener(thumbnails=False)
        return ["HEIF"]
    return [name for name in FORMATS if name in Image.OPEN]


def _notes(image: Image.Image, name: str) -> tuple[Message, ...]:
    """What of the file was not taken: all but its first frame or page. A JPEG's further images are no frames."""
    try:
        more = image.format in SEVERAL_FRAMES and getattr(image, "is_animated", False)
    except Exception:  # a damaged second frame
        more = True
    return (message("first_page" if image.format == "TIFF" else "first_frame", name=name),) if more else ()


def _return_freed_memory() -> None:
    """Returns to the system what large images took: glibc would keep it for the thread that decoded them."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)


def _pixels(image: Image.Image) -> int:
    """The number of pixels decoded at once: those of the image, or of a TIFF's tile larger than its image."""
    tags = getattr(image, "tag_v2", {})
    return max(image.width * image.height, int(tags.get(TILE_WIDTH, 0)) * int(tags.get(TILE_LENGTH, 0)))


def _bytes_a_pixel(image: Image.Image, data: bytes) -> int:
    """Decoding's peak in bytes per pixel; raises `ValueError` for a JPEG that would take hours to decode."""
    if not isinstance(image, JpegImageFile):
        return BYTES_A_PIXEL.get(image.format or "", BYTES_A_PIXEL[""])
    scans = list(itertools.islice(_jpeg_scans(data), MAX_SCANS + 1))
    if len(scans) > MAX_SCANS:
        raise ValueError(f"more than {MAX_SCANS} scans")
    at_once = scans == [image.layers] and not image.info.get("progressive")
    return BYTES_A_PIXEL["" if at_once else "JPEG"]


def _jpeg_scans(data: bytes) -> Iterator[int]:
    """The number of components in each scan of a JPEG, not counting images embedded in it or appended to it."""
    place = 2
    while (found := _JPEG_SEGMENT.search(data, place)) and found[1] != b"\xd9":
        if found[1] == b"\xda":
            yield int.from_bytes(data[found.end() + 2 : found.end() + 3], "big")
        place = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")


def _is_readable(data: bytes) -> bool:
    """Whether a file begins like one of a format that is read here, so that it is damaged if it is not."""
    avif = data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis") and "AVIF" in Image.OPEN
    return avif or _formats(data) == ["HEIF"]


def _is_large(image: Image.Image) -> bool:
    return max(image.size) > MAX_REFERENCE_SIDE


def _is_heic(data: bytes) -> bool:
    """Whether it is a photo as telephones store it, which Pillow does not read."""
    return data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS and b"avif" not in data[8:40]


def _upright(image: Image.Image, name: str, background: str, data: bytes = b"") -> Image.Image:
    """Turns an image, whose file's bytes are `data`, according to its EXIF; makes it RGB; reduces it if too large.

    Below the bound no pixel of an opaque sRGB image changes. A large image is reduced during decoding, as far as its
    format permits.
    """
    if not _is_large(image):
        image.load()
        return as_shown(image, name, background)(_turned(image))
    bands, told, size = None, image, _bounded(image.size)
    if is_simple_png(image, data):
        bands = png_bands(data, image, _band_rows(image.width, _factor(image)))
        told = Image.open(io.BytesIO(png_of_words(io.BytesIO(data))), formats=["PNG"])
    elif isinstance(image, JpegImageFile):
        image.draft(image.mode, size)
    if bands is None:
        image.load()
    reduced = _reduced(image, as_shown(image, name, background), bands).resize(size, Image.Resampling.LANCZOS)
    with contextlib.suppress(Exception):  # what stands in a damaged EXIF
        reduced.getexif()[ORIENTATION] = told.getexif().get(ORIENTATION, 1)
    return _turned(reduced)


def _turned(image: Image.Image) -> Image.Image:
    """Upright, if its EXIF can be read."""
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # parsers of EXIF raise almost anything
        return image


def _bounded(size: tuple[int, int]) -> tuple[int, int]:
    """A size in pixels with its long side at the bound."""
    width, height = (max(1, round(side * MAX_REFERENCE_SIDE / max(size))) for side in size)
    return width, height


def _reduced(image: Image.Image, convert: Conversion, bands: Iterator[Image.Image] | None) -> Image.Image:
    """Reduces a large image in RGB, averaging bands."""
    factor = _factor(image)
    size = -(-image.width // factor), -(-image.height // factor)
    target, top = Image.new("RGB", size), 0
    for band in bands or _bands(image, factor):
        small = convert(band).reduce(factor)
        target.paste(small, (0, top))
        top += small.height
    return target


def _factor(image: Image.Image) -> int:
    """The largest whole one that leaves a large image no smaller than the bound."""
    return max(image.size) // MAX_REFERENCE_SIDE


def _bands(image: Image.Image, factor: int) -> Iterator[Image.Image]:
    """An image from top to bottom in bands of rows; the row count is a multiple of `factor`."""
    rows = _band_rows(image.width, factor)
    image.load()
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _band_rows(width: int, factor: int) -> int:
    return max(1, BAND_PIXELS // (width * factor)) * factor
