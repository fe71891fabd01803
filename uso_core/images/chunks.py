"""PNG and WebP as files: their chunks, the texts in them, and a large PNG's rows a few at a time."""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from PIL import Image, PngImagePlugin

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
PNG_WORDS = (*PNG_TEXTS, b"eXIf")
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
MAX_WORDS_BYTES = 16 * 2**20  # per such chunk


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


def without_texts(data: bytes) -> bytes:
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


def is_simple_png(image: Image.Image, data: bytes) -> bool:
    """Whether a PNG stores its rows one after another, one byte per value."""
    depth, interlaced = data[24:25], data[28:29]
    return image.format == "PNG" and depth == b"\x08" and interlaced == b"\0"


def png_bands(data: bytes, image: Image.Image, rows: int) -> Iterator[Image.Image]:
    """A simple PNG in bands of so many rows from top to bottom, never unpacked as a whole.

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
