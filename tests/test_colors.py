"""An image becomes RGB as viewers show it: on white, in sRGB, at eight bits."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from uso_core import images
from uso_core.errors import RequestError
from uso_core.images import brought_back, open_image, set_aside
from uso_core.request import GenerationRequest


def opened(image: Image.Image, form: str = "PNG", **options: Any) -> Image.Image:
    """The image after it was in a file."""
    file = io.BytesIO()
    image.save(file, form, **options)
    found = open_image(file.getvalue(), "a").image
    assert found is not None
    return found


def noise(mode: str, side: int = 24) -> Image.Image:
    shape = (side, side, len(Image.new(mode, (1, 1)).getbands()))
    return Image.frombytes(mode, (side, side), np.random.default_rng(0).integers(0, 256, shape, np.uint8).tobytes())


def swapped_profile(space: bytes = b"RGB ") -> bytes:
    """sRGB's profile in which red and green have changed places, under another name."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = data.index(b"rXYZ"), data.index(b"gXYZ")
    data[red : red + 4], data[green : green + 4] = b"gXYZ", b"rXYZ"
    data[16:20] = space
    return bytes(data).replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))


def grey_tiff(numbers: np.ndarray, bits: int, photometric: int) -> bytes:
    """An uncompressed TIFF of one channel; numbers (H, W), 12 bits packed two in three bytes."""
    height, width = numbers.shape
    if bits == 12:
        digits = "".join(f"{number:012b}" for number in numbers.flat)
        data = int(digits, 2).to_bytes(len(digits) // 8, "big")
    else:
        data = numbers.tobytes()
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: height,
               279: len(data), 339: 3 if numbers.dtype.kind == "f" else 1}  # fmt: skip
    entries[273] = 8 + 2 + 12 * len(entries) + 4
    fields = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items()]
    head = b"II" + struct.pack("<HIH", 42, 8, len(fields))
    return head + b"".join(fields) + bytes(4) + data


@pytest.mark.parametrize("side", [24, 4200])
@pytest.mark.parametrize(("kind", "bits", "white_is_zero"), [
    ("u1", 8, False), ("u1", 8, True), ("u2", 12, False), ("u2", 16, False), ("u2", 16, True),
    ("f4", 32, False), ("f4", 32, True),
])  # fmt: skip
def test_a_grey_tiff_has_its_levels_whatever_its_bits_and_whichever_end_is_white(kind, bits, white_is_zero, side):
    levels = np.linspace(0, 1, side).reshape(1, -1).repeat(16, 0)
    full = 1 if kind == "f4" else 2**bits - 1
    numbers = levels * full if kind == "f4" else (levels * full).round()
    data = grey_tiff((full - numbers if white_is_zero else numbers).astype(kind), bits, int(not white_is_zero))
    found = open_image(data, "scan.tif").image
    assert found is not None
    expected = np.linspace(0, 255, found.width)
    assert np.abs(np.asarray(found)[8, :, 0] - expected).max() <= 1.5


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_composited_onto_white(mode):
    image = noise(mode)
    *colours, alpha = np.moveaxis(np.asarray(image).astype(float), -1, 0)
    expected = np.stack([255 + (each - 255) * alpha / 255 for each in (colours * 3)[:3]], -1)
    assert np.abs(np.asarray(opened(image)) - expected).max() <= 1


@pytest.mark.parametrize(("background", "level"), [("white", 255), ("black", 0), ("grey", 128)])
@pytest.mark.parametrize("side", [24, 4200])
def test_the_background_is_a_choice(background, level, side, tmp_path):
    image = Image.new("LA", (side, 24), (60, 0))
    image.save(tmp_path / "a.png")
    found = open_image(tmp_path / "a.png", background=background)
    assert found.image.getextrema() == ((level, level),) * 3
    request = GenerationRequest(content=found)
    assert brought_back(set_aside(request)).content.image.getextrema() == found.image.getextrema()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_an_opaque_image_keeps_its_pixels(mode):
    plain = noise("L").convert(mode.removesuffix("A"))
    image = plain.convert(mode if mode != "PA" else "RGBA")
    assert opened(image).tobytes() == plain.convert("RGB").tobytes()


def test_what_full_transparency_hides_is_not_seen():
    image = noise("RGBA")
    image.putalpha(0)
    assert opened(image).getextrema() == ((255, 255),) * 3


@pytest.mark.parametrize(("mode", "clear"), [("P", 3), ("RGB", (1, 2, 3)), ("L", 7)])
@pytest.mark.parametrize("large", [False, True])
def test_a_transparent_colour_becomes_white(mode, clear, large, monkeypatch):
    image = Image.new(mode, (80, 80), clear)
    image.paste(9 if mode != "RGB" else (9, 9, 9), (40, 0, 80, 80))
    if mode == "P":
        image.putpalette([value for index in range(256) for value in (index,) * 3])
    if large:
        monkeypatch.setattr(images.opening, "MAX_REFERENCE_SIDE", 40)
    found = opened(image, transparency=clear)
    assert found.getpixel((2, 4)) == (255, 255, 255)
    assert found.getpixel((found.width - 3, 4)) == (9, 9, 9)


def test_a_profile_is_converted_to_srgb():
    red = Image.new("RGB", (16, 16), (250, 10, 20))
    found = np.asarray(opened(red, icc_profile=swapped_profile())).astype(int)
    assert np.abs(found - (10, 250, 20)).max() <= 2


def test_a_profile_counts_below_transparency_too():
    red = Image.new("RGBA", (16, 16), (250, 10, 20, 0))
    red.paste((250, 10, 20, 255), (8, 0, 16, 16))
    found = np.asarray(opened(red, icc_profile=swapped_profile())).astype(int)
    assert (found[:, :8] == 255).all()
    assert np.abs(found[:, 8:] - (10, 250, 20)).max() <= 2


@pytest.mark.parametrize(
    "profile",
    [
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        b"no profile",
        swapped_profile()[:200],
        swapped_profile(b"CMYK"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_a_profile_that_says_nothing_changes_no_pixel(profile, form):
    image = noise("RGB")
    assert opened(image, form, icc_profile=profile).tobytes() == image.tobytes()


@pytest.mark.parametrize(("mode", "white"), [("F", 1.0), ("F", 255.0), ("F", 65535.0), ("I", 255), ("I", 65535)])
def test_numbers_of_32_bits_become_a_grey_scale(mode, white):
    levels = np.linspace(0, white, 32 * 32).reshape(32, 32).astype(np.float32 if mode == "F" else np.int32)
    found = np.asarray(opened(Image.fromarray(levels), "TIFF"))[..., 0]
    assert np.abs(found - np.linspace(0, 255, 32 * 32).reshape(32, 32)).max() <= 1


@pytest.mark.parametrize(
    ("levels", "kind"),
    [([-1.0, 1.0], np.float32), ([0.0, 1e9], np.float32), ([float("inf"), 0.0], np.float32),
     # between two scales: nearly black in the higher one
     ([0.0, 1.0, 2.5], np.float32), ([0.0, 31.0], np.float32), ([0.0, 1000.0], np.float32), ([0, 31], np.int32),
     ([0, 1023], np.int32), ([0, 4095], np.int32)],
)  # fmt: skip
def test_numbers_that_are_no_grey_scale_are_refused(levels, kind):
    image = Image.fromarray(np.resize(np.asarray(levels, kind), (32, 32)))
    with pytest.raises(RequestError) as refused:
        opened(image, "TIFF")
    assert refused.value.key == "image_number_range"


def test_an_image_with_nan_is_refused():
    levels = np.linspace(0, 1, 300 * 200, dtype=np.float32).reshape(200, 300)
    levels[150, 20] = np.nan
    with pytest.raises(RequestError) as refused:
        opened(Image.fromarray(levels), "TIFF")
    assert refused.value.key == "image_nan"


def png(width: int, depth: int, kind: int, samples: bytes, **chunks: bytes) -> bytes:
    """A PNG of one row by hand: PIL writes none of these."""
    parts = {"IHDR": struct.pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0), **chunks,
             "IDAT": zlib.compress(b"\0" + samples), "IEND": b""}  # fmt: skip
    written = [
        struct.pack(">I", len(data)) + name.encode() + data + struct.pack(">I", zlib.crc32(name.encode() + data))
        for name, data in parts.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


@pytest.mark.parametrize(
    ("depth", "kind", "samples", "clear", "levels"),
    [(1, 0, b"\x40", (0,), [255, 255]), (2, 0, b"\x60", (1,), [255, 170]), (4, 0, b"\x1f", (1,), [255, 255]),
     (4, 0, b"\x12", (1,), [255, 34]), (8, 0, bytes([9, 70]), (9,), [255, 70]),
     (16, 0, struct.pack(">2H", 20000, 40000), (20000,), [255, 155]),
     (16, 2, struct.pack(">6H", 1000, 2000, 3000, 40000, 50000, 60000), (1000, 2000, 3000), [255, 156])],
)  # fmt: skip
def test_a_transparent_level_counts_at_every_depth(depth, kind, samples, clear, levels):
    data = png(2, depth, kind, samples, tRNS=struct.pack(f">{len(clear)}H", *clear))
    found = open_image(data, "a.png").image
    assert [found.getpixel((place, 0))[0] for place in (0, 1)] == levels


@pytest.mark.parametrize(
    ("chunks", "level"),
    [({}, 55), ({"gAMA": struct.pack(">I", 100000)}, 128), ({"gAMA": struct.pack(">I", 55555)}, 71),
     ({"gAMA": struct.pack(">I", 45455)}, 55), ({"sRGB": b"\0", "gAMA": struct.pack(">I", 100000)}, 55),
     ({"gAMA": struct.pack(">I", 0)}, 55)],
)  # fmt: skip
def test_a_pngs_gamma_is_taken_as_chromium_takes_it(chunks, level):
    """Screenshots of Chromium 156 have 128 and 71."""
    found = open_image(png(1, 8, 2, bytes([55] * 3), **chunks), "a.png").image
    assert found.getpixel((0, 0)) == (level,) * 3


@pytest.mark.parametrize(("name", "linear"), [("sRGB IEC61966-2.1", False), ("Linear sRGB", True), ("Mine", True)])
def test_a_profile_counts_by_what_it_does_not_by_its_name(name, linear):
    """GIMP calls its linear profile "GIMP built-in Linear sRGB"."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    if linear:  # curves of the first kind, with exponent 1
        place = profile.index(b"para\0")
        profile[place + 8 : place + 16] = struct.pack(">HHi", 0, 0, 1 << 16)
    text = "sRGB built-in".encode("utf-16-be")
    written = name.encode("utf-16-be").ljust(len(text), b"\0")[: len(text)]
    shown = np.asarray(
        opened(Image.new("RGB", (4, 4), (55, 55, 55)), icc_profile=bytes(profile).replace(text, written))
    )
    assert np.abs(shown.astype(int) - (128 if linear else 55)).max() <= 1


@pytest.mark.parametrize("highest", [0.9, 1.0, 1.02, 1.9])
def test_floats_a_little_beyond_one_are_clipped(highest):
    image = Image.fromarray(np.array([[-0.01, 0.5, highest]], np.float32))
    assert [pixel[0] for pixel in np.asarray(opened(image, "TIFF"))[0]] == [0, 127, min(255, int(255 * highest))]


def test_sixteen_bits_of_a_pgm_have_the_files_scale():
    data = b"P5 3 1 65535\n" + struct.pack(">3H", 0, 128, 255)
    assert np.asarray(open_image(data, "a.pgm").image).max() <= 1
