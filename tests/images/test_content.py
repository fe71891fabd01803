"""The content image, by the reference's rule."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.images.files import noise
from uso_core.errors import RequestError
from uso_core.images import beside_each_other, content_size, kept_size, prepare_content


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
