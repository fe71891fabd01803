"""Large images: reduced while they are decoded, in bounded memory."""

from __future__ import annotations

import contextlib
import hashlib
import random
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from tests.images.files import ORIENTATION, TURNS, encoded, noise, png_chunk
from uso_core.errors import RequestError
from uso_core.images import MAX_REFERENCE_SIDE, open_image, opening
from uso_core.settings import ROOT


@pytest.fixture
def small_bound(monkeypatch) -> None:
    """As if no slot used more than 64 pixels, and a band held a few rows."""
    monkeypatch.setattr(opening, "MAX_REFERENCE_SIDE", 64)
    monkeypatch.setattr(opening, "BAND_PIXELS", 1000)


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
    monkeypatch.setattr(opening, "is_simple_png", lambda image, data: False)
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
    monkeypatch.setattr(opening, "MAX_DECODING_BYTES", 6 * 64 * 64)
    assert open_image(encoded(noise(64, 64), "PNG"))
    with pytest.raises(RequestError, match="more than [0-9]+ pixels"):
        open_image(encoded(noise(64, 64), form, **options))


def test_a_progressive_jpeg_of_one_scan_counts_as_one(monkeypatch):
    """All its coefficients are held, however few scans follow."""
    data = encoded(noise(64, 64), "JPEG", progressive=True)
    first = data.index(b"\xff\xda")
    second = data.index(b"\xff\xc4", first)
    monkeypatch.setattr(opening, "MAX_DECODING_BYTES", 6 * 64 * 64)
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
    monkeypatch.setattr(opening, "MAX_SCANS", 5)
    with pytest.raises(RequestError, match="more than 5 scans"):
        open_image(encoded(noise(64, 64), "JPEG", progressive=True))
    assert open_image(encoded(noise(64, 64), "JPEG") + b"\xff\xda" * 9)  # a film behind it, as phones write it


def test_large_images_do_not_hold_up_small_ones(small_bound):
    large, small = encoded(noise(200, 100), "PNG"), encoded(noise(20, 10), "PNG")
    with ThreadPoolExecutor(9) as pool:
        with opening._LARGE_DECODER:  # as if one were being decoded
            waiting = [pool.submit(open_image, large) for _ in range(8)]
            assert pool.submit(open_image, small).result(10).image.size == (20, 10)
            assert not any(each.done() for each in waiting)
        assert {each.result(10).image.size for each in waiting} == {(64, 32)}


def test_files_of_many_bytes_are_read_a_few_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "HEAVY_FILE_BYTES", 10)
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
