"""Opening an untrusted file."""

from __future__ import annotations

import io
import os
import random
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from tests.images.files import ORIENTATION, TURNS, encoded, noise, png
from uso_core.errors import RequestError
from uso_core.images import open_image
from uso_core.messages import message


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
        assert caught.value.key == ("image_damaged" if here else "image_heic")


@pytest.mark.skipif("AVIF" not in Image.SAVE, reason="this Pillow writes no AVIF")
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_a_cut_avif_is_damaged_and_no_film(share):
    whole = encoded(noise(64, 48), "AVIF")
    with pytest.raises(RequestError) as caught:
        open_image(whole[: int(share * len(whole))], "a.avif")
    assert caught.value.key == "image_damaged"


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


def test_pixels_that_cannot_be_read_are_refused(tmp_path):
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(whole, "PNG")
    (tmp_path / "half.png").write_bytes(whole.getvalue()[:800])
    for image in (Image.new("La", (2, 2)), Image.open(tmp_path / "half.png")):
        with pytest.raises(RequestError) as caught:
            open_image(image)
        assert caught.value.key == "image_damaged"
