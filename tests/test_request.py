"""What may be requested, and how a request travels: as JSON, inside a PNG, and back from an untrusted file."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import struct
import zlib
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from uso_core.errors import OutputError, RequestError
from uso_core.request import FORMAT_VERSION, MAX_SEED, GenerationRequest, InputImage, Result
from uso_core.storage.files import save_image, write_whole
from uso_core.storage.png import parse_request, read_request

CONTENT, STYLE, OTHER = (
    InputImage(f"{name}.png", letter * 64) for name, letter in (("cat", "a"), ("oil", "b"), ("ink", "c"))
)
FULL = GenerationRequest(
    prompt='Ein "Bär"\n<uso> 東京 🎨\t\\', content=CONTENT, styles=(STYLE, OTHER), width=512, height=384, steps=7,
    guidance=3.5, seed=42, content_size=256, schedule="flux", images=3, keep_size=True, model="flux-dev",
)  # fmt: skip
HUGE = 10**400


def result(request: GenerationRequest = FULL, seed: int = 43) -> Result:
    return Result(request, seed, "flux-dev", "cpu", "float32", 1.23456)


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))


# --- ranges -----------------------------------------------------------------------------------------------------------

WHOLE = ("width", "height", "steps", "images", "content_size")
NONSENSE = (0, -1, 10**9, HUGE, math.nan, math.inf, -math.inf, True, "12", 12.5, None, [12], b"12", 12j)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", NONSENSE, ids=lambda value: repr(value)[:12])
def test_a_whole_number_out_of_range_is_refused_and_quoted(name, value):
    with pytest.raises(RequestError) as failure:
        GenerationRequest(**{name: value})
    assert failure.value.message.startswith(f"{name.replace('_', ' ')} is {value!r}")
    assert "from" in failure.value.hint


@pytest.mark.parametrize(
    "value", [-1, -0.001, 10**9, HUGE, math.nan, math.inf, True, "12", None, [4], b"4", 4j], ids=lambda v: repr(v)[:12]
)
def test_guidance_out_of_range_is_refused_and_quoted(value):
    with pytest.raises(RequestError) as failure:
        GenerationRequest(guidance=value)
    assert failure.value.message.startswith(f"guidance is {value!r}")


@pytest.mark.parametrize("value", [0, 1, 12.5, 100])
def test_guidance_may_be_any_number_from_0_to_100(value):
    guidance = GenerationRequest(guidance=value).guidance
    assert guidance == value
    assert isinstance(guidance, float)


@pytest.mark.parametrize(
    ("name", "low", "high"), [("steps", 1, 500), ("images", 1, 64), ("width", 16, 4096), ("content_size", 16, 4096)]
)
def test_the_ends_of_a_range_belong_to_it(name, low, high):
    for value in (low, high, float(high)):
        taken = getattr(GenerationRequest(**{name: value}), name)
        assert taken == value
        assert isinstance(taken, int)
    for value in (low - 1, high + 1):
        with pytest.raises(RequestError):
            GenerationRequest(**{name: value})


@pytest.mark.parametrize(
    ("asked", "given"), [(16, 16), (17, 16), (31, 16), (32, 32), (100, 96), (130, 128), (512.0, 512)]
)
def test_sides_are_floored_to_16(asked, given):
    request = GenerationRequest(width=asked, height=asked)
    assert (request.width, request.height) == (given, given)


@pytest.mark.parametrize("value", [-1, MAX_SEED + 1, HUGE, 1.5, math.nan, "7", True, [7]], ids=lambda v: repr(v)[:12])
def test_a_seed_out_of_range_is_refused(value):
    with pytest.raises(RequestError, match="^seed is"):
        GenerationRequest(seed=value)


def test_the_seed_of_every_image_is_in_range():
    assert GenerationRequest(seed=MAX_SEED).seed == MAX_SEED
    assert GenerationRequest(seed=MAX_SEED - 3, images=4).seed == MAX_SEED - 3
    with pytest.raises(RequestError):  # image 3 would use MAX_SEED + 1
        GenerationRequest(seed=MAX_SEED - 2, images=4)


def test_no_seed_stays_none_until_one_is_drawn():
    asked = GenerationRequest()
    assert asked.seed is None
    drawn = {asked.with_seed().seed for _ in range(20)}
    assert len(drawn) > 15
    assert all(isinstance(seed, int) and 0 <= seed < 10**8 for seed in drawn)
    assert dataclasses.replace(asked.with_seed(), seed=None) == asked


@pytest.mark.parametrize("seed", [0, 7, MAX_SEED])
def test_a_given_seed_is_kept(seed):
    asked = GenerationRequest(seed=seed)
    assert asked.with_seed() == asked


@pytest.mark.parametrize("prompt", [None, 5, b"cat", ["cat"], "x" * 20_001, "half a character: \ud800"], ids=repr)
def test_a_prompt_that_is_not_text_is_refused(prompt):
    with pytest.raises(RequestError, match=r"prompt"):
        GenerationRequest(prompt=prompt)


def test_a_long_prompt_may_be_as_long_as_allowed():
    assert len(GenerationRequest(prompt="x" * 20_000).prompt) == 20_000


@pytest.mark.parametrize("schedule", ["karras", "", None, [], "USO"])
def test_an_unknown_schedule_is_refused(schedule):
    with pytest.raises(RequestError, match="schedule"):
        GenerationRequest(schedule=schedule)


def test_more_styles_than_allowed_are_refused():
    assert len(GenerationRequest(styles=[STYLE] * 8).styles) == 8
    with pytest.raises(RequestError, match="9 style images"):
        GenerationRequest(styles=(STYLE,) * 9)


def test_keeping_the_size_needs_a_content_image():
    with pytest.raises(RequestError, match="content image"):
        GenerationRequest(keep_size=True, styles=(STYLE,))
    assert GenerationRequest(keep_size=True, content=CONTENT).keep_size


@pytest.mark.parametrize(
    ("content", "styles", "prompt", "mode"),
    [
        (None, (), "a cat", "text to image"),
        (CONTENT, (), "", "subject"),
        (None, (STYLE,), "a cat", "style"),
        (None, (STYLE, OTHER), "a cat", "2 styles"),
        (CONTENT, (STYLE,), "a cat", "style + subject"),
        (CONTENT, (STYLE,), "  \n", "style + subject (layout kept)"),
        (CONTENT, (STYLE, OTHER), "", "2 styles + subject (layout kept)"),
    ],
)
def test_the_mode_follows_from_what_is_filled_in(content, styles, prompt, mode):
    assert str(GenerationRequest(prompt, content, styles).mode) == mode


def test_a_request_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FULL.seed = 1


# --- as JSON ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [FULL, GenerationRequest(), GenerationRequest(seed=0, content=CONTENT)])
def test_a_request_comes_back_from_its_json(request_):
    values = json.loads(json.dumps(request_.to_dict()))
    assert values["version"] == FORMAT_VERSION
    assert GenerationRequest.from_dict(values) == request_


def test_the_pixels_are_left_out():
    given = InputImage("cat.png", "a" * 64, Image.new("RGB", (8, 8)))
    back = GenerationRequest.from_dict(GenerationRequest(content=given).to_dict())
    assert back.content == given  # name and hash
    assert back.content.image is None


def test_reading_does_not_change_its_input():
    values = FULL.to_dict()
    before = json.dumps(values)
    GenerationRequest.from_dict(values)
    assert json.dumps(values) == before


@pytest.mark.parametrize("version", [0, 2, -1, "1", None, [], 1.5, True])
def test_another_version_is_refused(version):
    with pytest.raises(RequestError, match="version"):
        GenerationRequest.from_dict({**FULL.to_dict(), "version": version})


def test_a_request_without_a_version_is_refused():
    with pytest.raises(RequestError, match="version"):
        GenerationRequest.from_dict({"prompt": "a cat"})


@pytest.mark.parametrize("key", ["negative_prompt", "__class__", "with_seed", "", "Prompt"])
def test_an_unknown_entry_is_refused(key):
    with pytest.raises(RequestError, match="unknown entry"):
        GenerationRequest.from_dict({**FULL.to_dict(), key: 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt", None), ("prompt", 5), ("prompt", {}), ("width", "512"), ("width", None), ("height", [512]),
        ("steps", True), ("steps", 2.5), ("guidance", "4"), ("guidance", None), ("guidance", {}), ("seed", "42"),
        ("seed", -1), ("images", 0), ("images", 10**9), ("content_size", "big"), ("schedule", 5), ("schedule", []),
        ("keep_size", "yes"), ("keep_size", 1), ("keep_size", None), ("model", 5), ("model", ["flux-dev"]),
        ("content", "cat.png"), ("content", {}), ("content", ""), ("content", 0),
        ("content", {"name": "cat.png"}), ("content", {"name": "cat.png", "sha256": 5}),
        ("content", {"name": "cat.png", "sha256": "a", "image": "x"}), ("styles", None), ("styles", {}),
        ("styles", "oil.png"), ("styles", ["oil.png"]), ("styles", [None]), ("styles", [STYLE.to_dict()] * 9),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused(name, value):
    with pytest.raises(RequestError) as failure:
        GenerationRequest.from_dict({**FULL.to_dict(), name: value})
    assert failure.value.hint


@pytest.mark.parametrize("values", [None, [], "text", 5, [["version", 1]]])
def test_a_value_that_is_not_an_object_is_refused(values):
    with pytest.raises(RequestError, match="JSON object"):
        GenerationRequest.from_dict(values)


def test_a_result_requests_exactly_its_own_image():
    values = result().to_dict()
    facts = {name: values.pop(name) for name in ("device", "dtype", "seconds")}
    assert facts == {"device": "cpu", "dtype": "float32", "seconds": 1.235}
    assert GenerationRequest.from_dict(values) == dataclasses.replace(FULL, seed=43, images=1)


# --- inside a PNG -----------------------------------------------------------------------------------------------------


def test_a_png_knows_how_it_was_made(image, tmp_path):
    path = save_image(image, result(), tmp_path / "new" / "0_0.png")
    assert read_request(path) == dataclasses.replace(FULL, seed=43, images=1)
    with Image.open(path) as stored:
        assert stored.convert("RGB").tobytes() == image.tobytes()
    assert json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) == result().to_dict()
    assert sorted(file.name for file in path.parent.iterdir()) == ["0_0.json", "0_0.png"]


def test_a_png_with_the_longest_prompt_is_read_back(image, tmp_path):
    request = GenerationRequest(prompt="🎨" * 20_000, seed=1)
    path = save_image(image, result(request, 1), tmp_path / "a.png")
    assert read_request(path).prompt == request.prompt


def test_the_record_beside_the_image_may_differ(image, tmp_path):
    save_image(image, result(), tmp_path / "a.png", {"prompt": "ü"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "prompt": "ü"\n}'


def png_with(path: Path, image: Image.Image, text: str, compressed: bool = False) -> Path:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("uso", text, zip=compressed)
    image.save(path, pnginfo=chunks)
    return path


HOSTILE = {
    "not JSON": "prompt: a cat",
    "empty": "",
    "Python": "__import__('os').getcwd()",
    "list": "[]",
    "number": "1",
    "null": "null",
    "NaN": json.dumps({**FULL.to_dict(), "guidance": math.nan}),
    "infinity": json.dumps({**FULL.to_dict(), "width": math.inf}),
    "nested": "[" * 200_000,
    "nested objects": '{"version":1,"prompt":' + '{"a":' * 100_000,
    "digits": '{"version":1,"seed":' + "9" * 10_000 + "}",
    "half a character": '{"version":1,"prompt":"\\ud800"}',
    "no version": '{"prompt": "a cat"}',
    "later version": '{"version": 2, "prompt": "a cat"}',
    "unknown entry": '{"version": 1, "hook": "rm"}',
    "too large": json.dumps({**FULL.to_dict(), "prompt": "x" * 2**20}),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_text_is_refused(kind, image, tmp_path):
    with pytest.raises(RequestError) as failure:
        parse_request(HOSTILE[kind])
    assert failure.value.hint
    path = png_with(tmp_path / "a.png", image, HOSTILE[kind])
    with pytest.raises(RequestError):
        read_request(path)


def test_a_text_that_grows_when_unpacked_is_refused(image, tmp_path):
    path = png_with(tmp_path / "a.png", image, json.dumps({"version": 1, "prompt": "x" * 50_000_000}), compressed=True)
    assert path.stat().st_size < 200_000
    with pytest.raises(RequestError):
        read_request(path)


def png(width: int, height: int) -> bytes:
    """A PNG that claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a PNG"),
        (b"text", "not a PNG"),
        (b"\x89PNG\r\n\x1a\n", "not a PNG"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\x04IHDR\0\0\0\0\0\0\0\0", "not a PNG"),
        (png(64, 64), "no USO settings"),  # its pixels are not read
        (png(60_000, 60_000), "not a PNG"),
    ],
    ids=["empty", "text", "start only", "short header", "no pixels", "bomb"],
)
def test_a_file_that_is_not_a_png_is_refused(content, words, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=words) as failure:
        read_request(path)
    assert "a.png" in failure.value.message


def test_a_missing_file_or_a_folder_is_refused(tmp_path):
    for path in (tmp_path / "missing.png", tmp_path):
        with pytest.raises(RequestError, match="not a PNG"):
            read_request(path)


def test_a_foreign_png_holds_no_settings(image, tmp_path):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", "a cat\nSteps: 20, Sampler: Euler")
    image.save(tmp_path / "a.png", pnginfo=chunks)
    with pytest.raises(RequestError, match="holds no USO settings"):
        read_request(tmp_path / "a.png")


def test_a_text_with_a_wrong_checksum_is_not_believed(image, tmp_path):
    path = save_image(image, result(), tmp_path / "a.png")
    data = path.read_bytes()
    assert data.count(b'"seed": 43') == 1
    path.write_bytes(data.replace(b'"seed": 43', b'"seed": 44'))
    with pytest.raises(RequestError, match="not a PNG"):
        read_request(path)


def test_a_jpeg_is_not_read_as_a_png(image, tmp_path):
    image.save(tmp_path / "a.png", "JPEG")
    with pytest.raises(RequestError, match="not a PNG"):
        read_request(tmp_path / "a.png")


def test_flipped_bytes_never_break_more_than_the_settings(image, tmp_path):
    """Whatever is in a file: the result is a request or a `RequestError`."""
    path = save_image(image, result(), tmp_path / "a.png")
    sound, chance, outcomes = path.read_bytes(), random.Random(0), set()
    for _ in range(200):
        data = bytearray(sound)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(min(len(data), 700) if chance.random() < 0.8 else len(data))] = chance.randrange(256)
        path.write_bytes(data)
        try:
            read_request(path)
        except RequestError:
            outcomes.add("refused")
        else:
            outcomes.add("read")
    assert "refused" in outcomes


# --- on disk ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), ValueError("a fault of ours"), KeyboardInterrupt()]
)
@pytest.mark.parametrize("there", [False, True], ids=["new", "replaced"])
def test_nothing_half_written_is_left(failure, there, tmp_path):
    path = tmp_path / "a.png"
    if there:
        path.write_bytes(b"whole")

    def write(file: IO[bytes]) -> None:
        file.write(b"half")
        raise failure

    with pytest.raises(OutputError if isinstance(failure, OSError) else type(failure)):
        write_whole(path, write)
    assert [file.name for file in tmp_path.iterdir()] == (["a.png"] if there else [])
    if there:
        assert path.read_bytes() == b"whole"


def test_a_file_does_not_appear_before_it_is_complete(tmp_path):
    path = tmp_path / "a.png"

    def write(file: IO[bytes]) -> None:
        file.write(b"half")
        file.flush()
        assert not path.exists()

    write_whole(path, write)
    assert path.read_bytes() == b"half"


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "file/a.png"])
def test_a_place_that_cannot_be_written_is_named(name, image, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError) as failure:
        save_image(image, result(), tmp_path / name)
    assert name.removesuffix(".png") in failure.value.message  # the JSON of that name is written first
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
