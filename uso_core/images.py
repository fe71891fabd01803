"""Images: opens untrusted files safely; the reference's resize and crop. PIL in, PIL out."""

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
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from uso_core.colors import Conversion, as_shown
from uso_core.errors import RequestError
from uso_core.file_formats import CAMERA_RAW, is_camera_raw, name_format
from uso_core.messages import Bytes, Message, message
from uso_core.request import MAX_SIDE, SIZE_MULTIPLE, GenerationRequest, InputImage

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
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
SEVERAL_FRAMES = ("GIF", "WEBP", "PNG", "AVIF", "TIFF")
PNG_WORDS = (*PNG_TEXTS, b"eXIf")
MAX_WORDS_BYTES = 16 * 2**20  # per such chunk
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
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


def png_chunks(file: IO[bytes]) -> Iterator[tuple[bytes, int, int]]:
    """The kind, start and length in bytes of each chunk's content in a PNG, up to its end or where it is cut off.

    Raises `ValueError` if the file does not begin like a PNG.
    """
    if file.read(len(PNG_SIGNATURE)) != PNG_SIGNATURE:
        raise ValueError("no PNG signature")
    while len(head := file.read(8)) == 8:
        place, length = file.tell(), int.from_bytes(head[:4], "big")
        yield head[4:], place, length
        file.seek(place + length + 4)  # after the checksum


def png_file(chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Builds a PNG from chunks, each a kind and its content; adds IEND."""
    parts = [PNG_SIGNATURE]
    for kind, content in (*chunks, (b"IEND", b"")):
        parts += [len(content).to_bytes(4, "big"), kind, content, _checksum(kind, content)]
    return b"".join(parts)


def _checksum(kind: bytes, content: bytes) -> bytes:
    return zlib.crc32(content, zlib.crc32(kind)).to_bytes(4, "big")


def png_of_words(file: IO[bytes]) -> bytes:
    """A one-pixel PNG with the texts and EXIF of another PNG, which may be large, damaged or untrusted.

    Raises `ValueError` if the file does not begin like a PNG, or a text has a wrong checksum.
    """
    one_pixel = {b"IHDR": (1).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0]), b"IDAT": zlib.compress(bytes(2))}  # grey
    kept = []
    for kind, place, length in png_chunks(file):
        if kind in PNG_WORDS and length <= MAX_WORDS_BYTES:
            file.seek(place)
            content = file.read(length)
            if file.read(4) != _checksum(kind, content):
                raise ValueError("wrong checksum")
            kept.append((kind, content))
        elif kind in one_pixel:
            kept.append((kind, one_pixel.pop(kind)))
    return png_file(kept)


def webp_texts(path: Path) -> list[str]:
    """The texts in an untrusted WebP's EXIF; none if it is damaged, too long, or no WebP."""
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exif = Image.Exif()
            exif.load(_webp_exif(file))
            return [value for value in exif.values() if isinstance(value, str)]
    except MemoryError:
        raise
    except Exception:  # parsers of EXIF raise almost anything
        return []


def _webp_exif(file: IO[bytes]) -> bytes:
    head = file.read(12)
    while head[:4] == b"RIFF" and head[8:] == b"WEBP" and len(chunk := file.read(8)) == 8:
        length = int.from_bytes(chunk[4:], "little")
        if chunk[:4] == b"EXIF":
            return file.read(length) if length <= MAX_WORDS_BYTES else b""
        file.seek(length + length % 2, 1)
    return b""


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
    data = _without_texts(data) if data.startswith(PNG_SIGNATURE) else data
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
                if aside and _is_spacious(opened):
                    opened = dataclasses.replace(opened, image=None)
                    image.close()
                    del image
                    _return_freed_memory()
        return opened
    except (MemoryError, RequestError):
        raise
    except UnidentifiedImageError:
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


def _is_large(image: Image.Image) -> bool:
    return max(image.size) > MAX_REFERENCE_SIDE


def _is_heic(data: bytes) -> bool:
    """Whether it is a photo as telephones store it, which Pillow does not read."""
    return data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS and b"avif" not in data[8:40]


def _without_texts(data: bytes) -> bytes:
    """A PNG without texts, and without a profile too large for Pillow: neither is needed for pixels."""
    kept, view = [], memoryview(data)
    for kind, place, length in png_chunks(io.BytesIO(data)):
        if kind in PNG_TEXTS or (kind == b"iCCP" and _is_profile_unusable(data[place : place + length])):
            continue
        kept.append(view[place - 8 : place + length + 4])
    return data if sum(map(len, kept)) + len(PNG_SIGNATURE) >= len(data) else b"".join([PNG_SIGNATURE, *kept])


def _is_profile_unusable(content: bytes) -> bool:
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(content.partition(b"\0")[2][1:], PngImagePlugin.MAX_TEXT_CHUNK)
    except zlib.error:
        return True
    return bool(unpacker.unconsumed_tail)


def _upright(image: Image.Image, name: str, background: str, data: bytes = b"") -> Image.Image:
    """Turns an image, whose file's bytes are `data`, according to its EXIF; makes it RGB; reduces it if too large.

    Below the bound no pixel of an opaque sRGB image changes. A large image is reduced during decoding, as far as its
    format permits.
    """
    if not _is_large(image):
        image.load()
        return as_shown(image, name, background)(_turned(image))
    bands, told, size = None, image, _bounded(image.size)
    if _is_simple_png(image, data):
        bands, told = _png_bands(data, image), Image.open(io.BytesIO(png_of_words(io.BytesIO(data))), formats=["PNG"])
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
    """Reduces a large image in RGB, averaging bands by the largest whole factor that leaves more than the bound."""
    factor = max(image.size) // MAX_REFERENCE_SIDE
    size = -(-image.width // factor), -(-image.height // factor)
    target, top = Image.new("RGB", size), 0
    for band in bands or _bands(image, factor):
        small = convert(band).reduce(factor)
        target.paste(small, (0, top))
        top += small.height
    return target


def _bands(image: Image.Image, factor: int) -> Iterator[Image.Image]:
    """An image from top to bottom in bands of rows; the row count is a multiple of `factor`."""
    rows = _band_rows(image.width, factor)
    image.load()
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _band_rows(width: int, factor: int) -> int:
    return max(1, BAND_PIXELS // (width * factor)) * factor


def _is_simple_png(image: Image.Image, data: bytes) -> bool:
    """Whether a PNG stores its rows one after another, one byte per value."""
    depth, interlaced = data[24:25], data[28:29]
    return image.format == "PNG" and depth == b"\x08" and interlaced == b"\0"


def _png_bands(data: bytes, image: Image.Image) -> Iterator[Image.Image]:
    """The bands of a simple PNG, never unpacked as a whole.

    A row is stored as its difference from the one above, so each band is decoded as a PNG of its own that begins with
    the last row of the previous band. Raises `ValueError` or `zlib.error` if the file is damaged.
    """
    file, header, colours = io.BytesIO(data), b"", []
    for kind, place, length in png_chunks(file):
        if kind == b"IHDR":
            header = data[place : place + length]
        elif kind in (b"PLTE", b"tRNS"):
            colours.append((kind, data[place : place + length]))
        elif kind == b"IDAT":
            break
    row_bytes = 1 + image.width * PNG_CHANNELS[header[9]]
    rows = _band_rows(image.width, max(image.size) // MAX_REFERENCE_SIDE)
    above, left = bytes(row_bytes), image.height
    for packed in _unpacked(data, row_bytes * rows, row_bytes * image.height):
        count = len(packed) // row_bytes
        part = [(b"IHDR", header[:4] + (count + 1).to_bytes(4, "big") + header[8:]), *colours]
        part_file = io.BytesIO(png_file([*part, (b"IDAT", zlib.compress(above + packed, 0))]))
        with Image.open(part_file, formats=["PNG"]) as band:
            band.load()
            above, left = b"\0" + band.crop((0, count, band.width, count + 1)).tobytes(), left - count
            yield band.crop((0, 1, band.width, count + 1))
    if left:
        raise ValueError("image file is truncated")


def _unpacked(data: bytes, piece: int, total: int) -> Iterator[bytes]:
    """The unpacked content of a PNG's IDAT chunks, at most `total` bytes, in pieces of `piece` bytes."""
    unpacker, held = zlib.decompressobj(), bytearray()
    for kind, place, length in png_chunks(io.BytesIO(data)):
        packed = data[place : place + length] if kind == b"IDAT" else b""
        while kind == b"IDAT" and total:
            held += unpacker.decompress(packed, min(piece, total) - len(held))
            packed = unpacker.unconsumed_tail
            if len(held) == min(piece, total):
                yield bytes(held)
                total -= len(held)
                held.clear()
            elif not packed:
                break


def set_aside(request: GenerationRequest) -> GenerationRequest:
    """The request while it waits: large images that are in a file are not kept decoded."""
    return _with_images(request, lambda given: dataclasses.replace(given, image=None) if _is_aside(given) else given)


def brought_back(request: GenerationRequest) -> GenerationRequest:
    """The request with its images reloaded; raises `RequestError` if a file is gone or now holds another image."""
    return _with_images(request, _read_again)


def _is_aside(given: InputImage) -> bool:
    return given.path is not None and _is_spacious(given)


def _is_spacious(given: InputImage) -> bool:
    """Whether its pixels take much memory while its request waits."""
    return given.image is not None and given.image.width * given.image.height > SMALL_PIXELS


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
