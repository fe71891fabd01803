"""Images: opening untrusted files safely, and the reference's resize and crop."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import struct
import subprocess
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from uso_core import images as module
from uso_core.errors import RequestError
from uso_core.images import (
    MAX_REFERENCE_SIDE,
    beside_each_other,
    brought_back,
    content_size,
    kept_size,
    open_image,
    prepare_content,
    set_aside,
)
from uso_core.messages import message
from uso_core.request import GenerationRequest
from uso_core.settings import ROOT

ORIENTATION = 0x0112  # EXIF


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Pixels of which no two transformations give the same."""
    shape = (height, width, len(Image.new(mode, (1, 1)).getbands()))
    values = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.frombytes(mode, (width, height), values.tobytes())


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A grey PNG whose header claims a size, whatever its pixels are."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [png_chunk(b"IHDR", header), png_chunk(b"IDAT", zlib.compress(pixels)), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


# --- the content image, by the reference's rule -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "long_side", "expected"),
    [
        ((1024, 768), 512, (512, 384)),
        ((768, 1024), 512, (384, 512)),
        ((512, 512), 512, (512, 512)),
        ((3, 2), 512, (512, 341)),
        ((49, 49), 512, (512, 511)),  # 512 / 49 * 49 is 511.99999999999994: the order of the arithmetic shows
        ((98, 49), 512, (512, 255)),  # 512 * 49 / 98 would be 256
        ((49, 98), 512, (255, 512)),
        ((10, 1000), 512, (5, 512)),
        ((1, 1), 1024, (1024, 1024)),
    ],
)
def test_the_size_of_the_content_image(size, long_side, expected):
    if expected == (512, 255):
        assert int(512 * 49 / 98) == 256
    assert content_size(*size, long_side) == expected


def test_the_arithmetic_is_the_references_on_many_sizes():
    differs = 0
    for width in range(1, 300, 7):
        for height in range(1, 300, 5):
            for long_side in (16, 64, 512, 768, 1024):
                longest = max(width, height)
                short = int((long_side / longest) * min(width, height))
                expected = (long_side, short) if width >= height else (short, long_side)
                assert content_size(width, height, long_side) == expected
                differs += short != long_side * min(width, height) // longest
    assert differs > 0  # exact arithmetic would give other sizes


@pytest.mark.parametrize("size", [(512, 300), (300, 512), (77, 61), (640, 480), (49, 49), (16, 17), (2000, 700)])
@pytest.mark.parametrize("long_side", [64, 256, 512])
def test_the_content_image_is_resized_with_lanczos_and_cropped_in_the_centre(size, long_side):
    image = noise(*size)
    prepared = prepare_content(image, long_side)
    width, height = content_size(*size, long_side)
    assert prepared.size == (width // 16 * 16, height // 16 * 16)
    assert prepared.mode == "RGB"
    resized = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
    top, left = height % 16 // 2, width % 16 // 2  # of an odd rest the larger half is cut off at the end
    expected = resized[top : top + prepared.height, left : left + prepared.width]
    assert np.array_equal(np.asarray(prepared), expected)


def test_the_crop_takes_the_same_from_both_sides():
    image = Image.new("RGB", (512, 100), "white")
    image.paste("red", (0, 0, 512, 2))
    image.paste("blue", (0, 98, 512, 100))
    assert prepare_content(image, 512).getcolors() == [(512 * 96, (255, 255, 255))]


@pytest.mark.parametrize("long_side", [16, 512])
def test_an_image_of_16_by_16_stays_unchanged(long_side):
    image = noise(16, 16)
    assert prepare_content(image, long_side).tobytes() == image.tobytes()


@pytest.mark.parametrize("mode", ["RGBA", "L", "CMYK"])
@pytest.mark.parametrize("size", [(16, 16), (32, 48)])
def test_the_content_image_comes_out_in_rgb(mode, size):
    assert prepare_content(noise(*size, mode), 48).mode == "RGB"


@pytest.mark.parametrize("size", [(2000, 20), (20, 2000), (5000, 1)])
def test_a_content_image_of_which_nothing_would_remain_is_refused_with_the_numbers(size):
    width, height = content_size(*size, 512)
    with pytest.raises(RequestError) as failure:
        prepare_content(noise(*size), 512)
    assert f"{size[0]} x {size[1]}" in failure.value.message
    assert f"{width} x {height}" in failure.value.message
    assert "512" in failure.value.message
    assert "content size" in failure.value.hint


def test_the_least_that_remains_is_16():
    assert prepare_content(noise(512, 16), 512).size == (512, 16)
    with pytest.raises(RequestError, match="512 x 15"):
        prepare_content(noise(512, 15), 512)


@pytest.mark.parametrize(
    ("content", "long_side", "expected"),
    [
        ((512, 384), 512, (1024, 768)),
        ((384, 512), 512, (768, 1024)),
        ((512, 336), 512, (1024, 672)),
        ((768, 512), 768, (1024, 672)),  # 682.7 floored
        ((1024, 640), 1024, (1024, 640)),
        ((1024, 16), 1024, (1024, 16)),
        ((2048, 16), 2048, (1024, 16)),  # never less than one token
    ],
)
def test_the_kept_size_is_the_cropped_size_at_1024(content, long_side, expected):
    assert kept_size(content, long_side) == expected
    assert all(side % 16 == 0 for side in expected)


def test_the_kept_size_may_use_another_target():
    assert kept_size((64, 48), 64, 128) == (128, 96)


def test_images_side_by_side_keep_their_pixels():
    images = [noise(3, 5), noise(4, 2, seed=1), noise(1, 1, seed=2)]
    row = beside_each_other(images)
    assert row.size == (8, 5)
    for left, image in zip((0, 3, 7), images, strict=True):
        assert row.crop((left, 0, left + image.width, image.height)).tobytes() == image.tobytes()
    assert row.getpixel((7, 4)) == (0, 0, 0)


# --- opening an untrusted file ----------------------------------------------------------------------------------------

# What each orientation requires of a reader, as numpy operations on an array (row, column).
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", TURNS)
def test_an_image_is_turned_upright(orientation, form):
    image = noise(5, 3)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if form == "WEBP" else {}
    opened = open_image(encoded(image, form, exif=exif, **options))
    assert np.array_equal(np.asarray(opened.image), TURNS[orientation](np.asarray(image)))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"?"]
)
def test_damaged_exif_does_not_prevent_opening_an_image(exif):
    assert open_image(encoded(noise(16, 16), "JPEG", exif=b"Exif\0\0" + exif)).image.size == (16, 16)


@pytest.mark.parametrize(
    ("mode", "form"),
    [("RGBA", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("1", "PNG"), ("P", "PNG"), ("P", "GIF"), ("RGBA", "WEBP"),
     ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("L", "BMP"), ("RGB", "PPM"), ("LAB", "TIFF")],
)  # fmt: skip
def test_every_mode_becomes_rgb(mode, form):
    image = noise(8, 6).convert(mode) if mode in "1P" else noise(8, 6, mode)
    data = encoded(image, form)
    with Image.open(io.BytesIO(data)) as stored:
        expected = stored.convert("RGB").tobytes()
        if stored.has_transparency_data:
            white = Image.new("RGBA", stored.size, "white")
            expected = Image.alpha_composite(white, stored.convert("RGBA")).convert("RGB").tobytes()
    opened = open_image(data)
    assert opened.image.mode == "RGB"
    assert opened.image.tobytes() == expected


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bits_become_8_and_not_white(form):
    levels = np.linspace(0, 65535, 256).astype(np.uint16)  # 0, 257, 514, ...
    image = open_image(encoded(Image.fromarray(np.tile(levels, (4, 1))), form))
    row = np.asarray(image.image)[0]
    assert np.array_equal(row, np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1))


def test_only_the_first_frame_of_an_animation_is_used():
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    for form in ("GIF", "WEBP", "PNG", "AVIF", "TIFF"):
        opened = open_image(encoded(first, form, save_all=True, append_images=[second], duration=50), "a")
        ((count, colour),) = opened.image.getcolors()
        assert count == 64
        assert colour[0] > 200
        assert colour[2] < 50
        assert opened.notes == (message("first_page" if form == "TIFF" else "first_frame", name="a"),)
        assert open_image(encoded(first, form)).notes == ()


def test_only_the_first_of_an_images_two_views_is_used():
    first = noise(16, 16)
    data = encoded(first, "MPO", save_all=True, append_images=[noise(16, 16, seed=1)])
    assert open_image(data).sha256 == open_image(encoded(first, "JPEG")).sha256
    assert open_image(data).notes == ()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\xff\x0a" + bytes(40), "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40), "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40), "JPEG 2000"),
        (b"%PDF-1.7\n", "PDF"),
        (b"8BPS\0\1" + bytes(40), "Photoshop"),
        (b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b'\n<SVG width="3"/>', "SVG"),
        (b"<!DOCTYPE html><title>Not found</title>", "HTML"),
        (b"\0\0\0\x20ftypisom" + bytes(40), "MP4"),
        (b"\0\0\0\x14ftypqt  " + bytes(40), "MP4"),
        (b"\0\0\0\x18ftypcrx " + bytes(40), "camera raw"),
        (b"FUJIFILMCCD-RAW 0201" + bytes(40), "camera raw"),
        (b"PK\x03\x04" + bytes(40), "ZIP"),
    ],
)
def test_a_file_of_another_format_is_named(data, kind):
    with pytest.raises(RequestError) as caught:
        open_image(data, "a.bin")
    assert caught.value.key == "image_other_format"
    assert caught.value.values == {"name": "a.bin", "kind": kind}


@pytest.mark.parametrize("tags", [{254: 1}, {50706: b"\1\4\0\0"}, {254: 1, 330: 8}])
def test_a_cameras_raw_photo_is_not_taken_for_its_thumbnail(tags):
    file, info = io.BytesIO(), TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        info[tag] = value
    Image.new("RGB", (160, 120)).save(file, "TIFF", tiffinfo=info)
    with pytest.raises(RequestError) as caught:
        open_image(file.getvalue(), "IMG_0001.NEF")
    assert caught.value.values["kind"] == "camera raw"


def test_a_heic_photo_is_read_where_its_package_is_and_named_where_not(monkeypatch):
    import pillow_heif

    photo = Image.merge("RGB", [Image.linear_gradient("L").resize((96, 64))] * 3)
    file = io.BytesIO()
    pillow_heif.from_pillow(photo).save(file, quality=95)
    read = open_image(file.getvalue(), "a.heic").image
    assert np.abs(np.asarray(read).astype(int) - np.asarray(photo)).max() <= 8
    for data, here in ((file.getvalue(), False), (file.getvalue()[:64], True), (file.getvalue()[:64], False)):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, here=here: object() if here else None)
        with pytest.raises(RequestError) as caught:
            open_image(data, "a.heic")
        assert caught.value.key == "image_heic"


def test_an_image_is_recognised_in_any_file(tmp_path):
    image = noise(9, 7)
    hashes = {open_image(encoded(image, form)).sha256 for form in ("PNG", "BMP", "TIFF", "PPM")}
    hashes |= {open_image(encoded(image, "WEBP", lossless=True)).sha256, open_image(image).sha256}
    image.save(tmp_path / "a.png")
    hashes |= {open_image(tmp_path / "a.png").sha256, open_image(str(tmp_path / "a.png")).sha256}
    assert len(hashes) == 1
    assert open_image(noise(9, 7, seed=1)).sha256 not in hashes


def test_the_same_bytes_in_another_shape_are_another_image():
    flat = np.zeros((2, 6, 3), np.uint8)
    assert open_image(Image.fromarray(flat)).sha256 != open_image(Image.fromarray(flat.reshape(6, 2, 3))).sha256


def test_an_image_has_the_name_of_its_file_or_the_given_one(tmp_path):
    noise(4, 4).save(tmp_path / "a cat.png")
    assert open_image(tmp_path / "a cat.png").name == "a cat.png"
    assert open_image(tmp_path / "a cat.png", "content").name == "content"
    assert open_image(noise(4, 4)).name == "image"


PNG, JPEG = encoded(noise(64, 64), "PNG"), encoded(noise(64, 64), "JPEG")
UNREADABLE = {
    "cut PNG": (PNG[: len(PNG) // 2], "damaged"),
    "PNG cut in its header": (PNG[:20], "damaged|not an image"),
    "cut JPEG": (JPEG[: len(JPEG) // 2], "damaged"),
    "JPEG cut in its header": (JPEG[:10], "damaged|not an image"),
    "PNG with a wrong checksum": (PNG[:60] + b"\xff\xff" + PNG[62:], "damaged"),
    "PNG without pixels": (png(64, 64), "damaged"),
    "PNG of no size": (png(0, 0), "damaged|no pixels|not an image"),
    "text": (b"a red mug on the beach", "not an image"),
    "web page": (b"<!DOCTYPE html><html></html>", "not an image"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "not an image"),
    "PDF": (b"%PDF-1.7\n", "not an image"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),  # would run Ghostscript
    "empty": (b"", "empty"),
    "one byte": (b"\x89", "not an image"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize("as_bytes", [False, True], ids=["path", "bytes"])
def test_an_unreadable_file_is_refused_by_name(kind, as_bytes, tmp_path):
    data, words = UNREADABLE[kind]
    path = tmp_path / "cat.png"
    path.write_bytes(data)
    with pytest.raises(RequestError, match=words) as failure:
        open_image(data if as_bytes else path, "cat.png" if as_bytes else "")
    assert "cat.png" in failure.value.message
    assert failure.value.hint


@pytest.mark.parametrize("side", [14_000, 60_000, 2**31 - 1])
def test_a_decompression_bomb_is_refused_for_its_size(side):
    with pytest.raises(RequestError, match="pixels") as failure:
        open_image(png(side, side), "bomb.png")
    assert "bomb.png" in failure.value.message
    assert "damaged" not in failure.value.message  # it may be a sound image, only too large
    assert "smaller" in failure.value.hint


@pytest.mark.parametrize(
    "name", ["missing.png", "", "a/b/c.png", "x" * 300 + ".png", "x" * 5000, "nul\0.png", "~nobody-of-this-name/a.png"]
)
def test_a_path_to_nothing_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError) as failure:
        open_image(name)
    assert failure.value.hint


def test_a_folder_is_not_an_image(tmp_path):
    with pytest.raises(RequestError, match="is a folder") as failure:
        open_image(tmp_path)
    assert str(tmp_path) in failure.value.message


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes by name here")
def test_a_pipe_is_refused_without_waiting(tmp_path):
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    failures: list[BaseException] = []

    def attempt() -> None:
        try:
            open_image(pipe)
        except RequestError as failure:
            failures.append(failure)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(1)
    waited = thread.is_alive()
    if waited:  # let it go
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        thread.join(5)
    assert not waited
    assert len(failures) == 1


def test_a_file_larger_than_any_image_is_not_read(tmp_path):
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(2**40)  # a hole: no disk space
    with pytest.raises(RequestError, match="1099.5 GB"):
        open_image(path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_flipped_bytes_never_break_more_than_the_image(form):
    """Whatever is in a file: the result is an image or a `RequestError`."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    options = {"exif": exif} if form in ("PNG", "JPEG", "WEBP", "TIFF") else {}
    sound = encoded(noise(12, 10), form, **options)
    chance = random.Random(form)
    outcomes = set()
    for _ in range(150):
        data = bytearray(sound)
        for _ in range(chance.randint(1, 6)):
            # headers are where the harm is
            place = chance.randrange(min(len(data), 200) if chance.random() < 0.7 else len(data))
            data[place] = chance.randrange(256)
        if len(data) and chance.random() < 0.2:
            del data[chance.randrange(len(data)) :]
        try:
            image = open_image(bytes(data), "x")
        except RequestError:
            outcomes.add("refused")
        else:
            assert image.image.mode == "RGB"
            outcomes.add("opened")
    assert outcomes >= ({"refused"} if form == "PNG" else {"refused", "opened"})  # a PNG's checksums reveal every flip


def test_opening_an_image_does_not_change_its_file(tmp_path):
    path = tmp_path / "a.png"
    noise(4, 4).save(path)
    before = path.read_bytes()
    open_image(path)
    assert path.read_bytes() == before
    assert list(Path(tmp_path).iterdir()) == [path]


# --- large images: reduced while they are decoded ---------------------------------------------------------------------


@pytest.fixture
def small_bound(monkeypatch) -> None:
    """As if no slot used more than 64 pixels, and a band held a few rows."""
    monkeypatch.setattr(module, "MAX_REFERENCE_SIDE", 64)
    monkeypatch.setattr(module, "BAND_PIXELS", 1000)


def smooth(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Slopes and edges, so that all kinds of PNG filters are used, with pixels that differ in each channel."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = np.stack([rows * (3 + n) + columns * (5 - n) ** 2 + rows * columns // 9 for n in range(channels)], axis=2)
    values[height // 3 : height // 2] = np.random.default_rng(0).integers(0, 256, (width, channels))
    return Image.frombytes(mode, (width, height), (values % 256).astype(np.uint8).tobytes())


@pytest.mark.parametrize("size", [(MAX_REFERENCE_SIDE, 9), (9, MAX_REFERENCE_SIDE)])
def test_at_the_bound_every_pixel_and_the_hash_stay(size):
    image = noise(*size)
    opened = open_image(encoded(image, "PNG"))
    assert opened.image.tobytes() == image.tobytes()
    assert opened.sha256 == hashlib.sha256(f"{size[0]}x{size[1]}:".encode() + image.tobytes()).hexdigest()


@pytest.mark.parametrize("size", [(MAX_REFERENCE_SIDE + 1, 300), (300, MAX_REFERENCE_SIDE * 2 + 7)])
def test_above_the_bound_the_long_side_is_the_bound(size):
    for source in (noise(*size), encoded(noise(*size), "PNG"), encoded(noise(*size), "JPEG")):
        opened = open_image(source).image
        assert max(opened.size) == MAX_REFERENCE_SIDE
        assert abs(opened.width / opened.height / (size[0] / size[1]) - 1) < 0.01


@pytest.mark.parametrize("size", [(300, 210), (210, 301), (70, 64), (65, 250)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P"])
def test_a_png_decoded_in_bands_is_the_same_as_decoded_whole(mode, size, small_bound, monkeypatch):
    image = smooth(*size).convert("P") if mode == "P" else smooth(*size, mode)
    data = encoded(image, "PNG", **({"transparency": 3} if mode == "P" else {}))
    opened = open_image(data)
    monkeypatch.setattr(module, "_is_simple_png", lambda image, data: False)
    assert opened == open_image(data) == open_image(image)
    assert max(opened.image.size) == 64


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "PPM"])
def test_a_large_image_of_any_format_looks_as_before(form, small_bound):
    if f".{form.lower()}" not in Image.registered_extensions():
        pytest.skip(f"this Pillow has no {form}")
    image = Image.new("RGB", (400, 200), "red")
    image.paste("blue", (0, 0, 200, 200))
    opened = open_image(encoded(image, form)).image
    assert (opened.size, opened.mode) == ((64, 32), "RGB")
    for place, colour in (((10, 16), (0, 0, 255)), ((54, 16), (255, 0, 0))):
        assert all(abs(got - wanted) < 12 for got, wanted in zip(opened.getpixel(place), colour, strict=True))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", TURNS)
def test_a_large_image_is_turned_upright_too(orientation, form, small_bound):
    image = Image.new("RGB", (200, 100), "black")
    image.paste("white", (0, 0, 60, 30))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    opened = np.asarray(open_image(encoded(image, form, exif=exif)).image)
    expected = TURNS[orientation](np.asarray(open_image(encoded(image, form)).image))
    assert opened.shape == expected.shape
    assert np.abs(opened.astype(int) - expected).mean() < 8


def test_16_bits_of_a_large_image_become_8_and_not_white(small_bound):
    image = open_image(encoded(Image.fromarray(np.full((200, 100), 32768, np.uint16)), "PNG"))
    assert image.image.getcolors() == [(64 * 32, (127, 127, 127))]


def test_a_large_png_that_is_damaged_is_refused(small_bound):
    sound, chance = encoded(smooth(300, 210), "PNG"), random.Random(0)
    for cut in (60, len(sound) // 2, len(sound) - 40):
        with pytest.raises(RequestError, match="damaged"):
            open_image(sound[:cut])
    for _ in range(200):
        data = bytearray(sound)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        with contextlib.suppress(RequestError):
            assert max(open_image(bytes(data)).image.size) <= 64


def test_a_large_image_of_which_nothing_would_remain_is_refused(small_bound):
    with pytest.raises(RequestError, match="2000 x 300 pixels is too narrow"):
        open_image(encoded(noise(2000, 300), "PNG"), "line.png")


@pytest.mark.parametrize(("form", "options"), [("WEBP", {}), ("JPEG", {"progressive": True})])
def test_formats_that_take_more_memory_have_a_lower_limit(form, options, monkeypatch):
    monkeypatch.setattr(module, "MAX_DECODING_BYTES", 6 * 64 * 64)
    assert open_image(encoded(noise(64, 64), "PNG"))
    with pytest.raises(RequestError, match="more than [0-9]+ pixels"):
        open_image(encoded(noise(64, 64), form, **options))


def test_a_progressive_jpeg_of_one_scan_counts_as_one(monkeypatch):
    """All its coefficients are held, however few scans follow."""
    data = encoded(noise(64, 64), "JPEG", progressive=True)
    first = data.index(b"\xff\xda")
    second = data.index(b"\xff\xc4", first)
    monkeypatch.setattr(module, "MAX_DECODING_BYTES", 6 * 64 * 64)
    for cut in (
        data[:second] + b"\xff\xd9",
        encoded(noise(64, 64), "JPEG").replace(b"\xff\xda\0\x0c\3", b"\xff\xda\0\x0c\1"),
    ):
        with pytest.raises(RequestError, match="more than [0-9]+ pixels"):
            open_image(cut)


def test_a_tile_larger_than_its_tiff_counts():
    short, long = 3, 4
    tags = [(256, short, 16), (257, short, 16), (258, short, 8), (259, short, 8), (262, short, 1), (277, short, 1),
            (322, long, 60_000), (323, long, 60_000), (324, long, 8), (325, long, 20)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    data = b"II*\0" + struct.pack("<I", 40) + bytes(32) + struct.pack("<H", len(tags)) + entries + bytes(4)
    with pytest.raises(RequestError, match="pixels"):
        open_image(data)


def test_a_jpeg_with_absurdly_many_scans_is_refused(monkeypatch):
    monkeypatch.setattr(module, "MAX_SCANS", 5)
    with pytest.raises(RequestError, match="more than 5 scans"):
        open_image(encoded(noise(64, 64), "JPEG", progressive=True))
    assert open_image(encoded(noise(64, 64), "JPEG") + b"\xff\xda" * 9)  # a film behind it, as phones write it


def test_large_images_do_not_hold_up_small_ones(small_bound):
    large, small = encoded(noise(200, 100), "PNG"), encoded(noise(20, 10), "PNG")
    with ThreadPoolExecutor(9) as pool:
        with module._LARGE_DECODER:  # as if one were being decoded
            waiting = [pool.submit(open_image, large) for _ in range(8)]
            assert pool.submit(open_image, small).result(10).image.size == (20, 10)
            assert not any(each.done() for each in waiting)
        assert {each.result(10).image.size for each in waiting} == {(64, 32)}


def test_files_of_many_bytes_are_read_a_few_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HEAVY_FILE_BYTES", 10)
    noise(20, 10).save(tmp_path / "a.png")
    with ThreadPoolExecutor(9) as pool:
        images = list(pool.map(open_image, [tmp_path / "a.png"] * 20))
    assert set(images) == {open_image(noise(20, 10))}


PEAK = """
import resource, sys
from pathlib import Path
from uso_core.errors import RequestError
from uso_core.images import open_image
from uso_core.storage.png import read_request
path = Path(sys.argv[1])
open_image(path.with_name("small.png"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(open_image(path).image.size)
try:
    read_request(path)
except RequestError as error:
    print(error.key)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere memory is counted in other units")
def test_half_a_megabyte_does_not_cost_gigabytes(tmp_path):
    side = 13_340  # 178 megapixels
    rows, packer = bytes((1 + 3 * side) * 58), zlib.compressobj(9, wbits=-15)
    once = packer.compress(rows) + packer.flush(zlib.Z_FULL_FLUSH)  # which can be repeated
    checksum = 1
    for _ in range(side // 58):
        checksum = zlib.adler32(rows, checksum)
    pixels = b"\x78\xda" + once * (side // 58) + packer.flush() + struct.pack(">I", checksum)
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [png_chunk(b"IHDR", header), png_chunk(b"IDAT", pixels), png_chunk(b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    assert len(data) < 600_000
    (tmp_path / "bomb.png").write_bytes(data)
    noise(9, 9).save(tmp_path / "small.png")
    command = [sys.executable, "-c", PEAK, str(tmp_path / "bomb.png")]
    size, key, peak = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert (size, key) == (f"({MAX_REFERENCE_SIDE}, {MAX_REFERENCE_SIDE})", "no_settings")
    assert float(peak) < 400  # MiB; 1700 when it was decoded whole


def test_a_request_that_waits_keeps_files_and_not_decoded_images(tmp_path):
    path = tmp_path / "large.png"
    noise(1000, 800).save(path)
    given, small = open_image(path), open_image(noise(16, 16))
    request = GenerationRequest(content=given, styles=(small,))
    waiting = set_aside(request)
    assert waiting == request  # by the hashes of their pixels
    assert waiting.content.image is None
    assert waiting.styles[0].image is not None
    back = brought_back(waiting)
    assert back.content.image.tobytes() == given.image.tobytes()
    noise(1000, 801).save(path)
    with pytest.raises(RequestError) as changed:
        brought_back(waiting)
    assert changed.value.key == "image_changed"
    path.unlink()
    with pytest.raises(RequestError) as gone:
        brought_back(waiting)
    assert gone.value.key == "image_not_there"


def test_a_large_image_is_set_aside_as_it_is_opened(tmp_path):
    large, small = tmp_path / "large.png", tmp_path / "small.png"
    noise(1000, 600).save(large)
    noise(30, 20).save(small)
    kept, aside = open_image(large), open_image(large, aside=True)
    assert (aside.image, aside.size, aside.sha256, aside.path) == (None, (1000, 600), kept.sha256, large)
    assert open_image(small, aside=True).image is not None
    request = GenerationRequest(content=aside)
    again = module.brought_back(request).content
    assert again.image.tobytes() == kept.image.tobytes()


def test_pixels_that_cannot_be_read_are_refused(tmp_path):
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(whole, "PNG")
    (tmp_path / "half.png").write_bytes(whole.getvalue()[:800])
    for image in (Image.new("La", (2, 2)), Image.open(tmp_path / "half.png")):
        with pytest.raises(RequestError) as caught:
            open_image(image)
        assert caught.value.key == "image_damaged"
