"""The command line: the reference's images, its flags, and two lines for every error that the user can fix."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file

import inference
from tests.conftest import GOLDEN
from uso_core.catalog.models import EMBEDDED
from uso_core.errors import UsoError
from uso_core.messages import message
from uso_core.runtime.engine import Engine
from uso_core.settings import ROOT, Settings
from uso_core.storage.png import read_request

CASES = {case["name"]: case for case in json.loads((GOLDEN / "manifest.json").read_text())["cases"]}
GOLDEN_FLAGS = ("--device", "cpu", "--dtype", "float32")
TINY = ("--name", "uso-tiny", "--device", "cpu", "--width", "64", "--height", "48", "--num_steps", "2")
CONTENT, STYLE = GOLDEN / "content_a.png", GOLDEN / "style_a.png"


@dataclass(frozen=True)
class Run:
    """The result of one command line: its exit code, its output, and the files in the folder that it was given."""

    code: int
    out: str
    err: str
    folder: Path

    def pixels(self, name: str = "0_0") -> np.ndarray:
        with Image.open(self.folder / f"{name}.png") as image:
            assert image.mode == "RGB"
            return np.asarray(image, dtype=int)

    def record(self, name: str = "0_0") -> dict[str, Any]:
        return json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))

    @property
    def names(self) -> list[str]:
        """The stems of the files printed."""
        assert self.code == 0, self.err
        return [Path(line).stem for line in self.out.splitlines()]

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())


Command = Callable[..., Run]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: empty except for an .env without lines, so that no .env beside the program is read."""
    folder = tmp_path / "workplace"
    folder.mkdir()
    (folder / ".env").touch()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def engines() -> dict[Settings, Engine]:
    return {}


@pytest.fixture
def command(
    workplace: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    engines: dict[Settings, Engine],
    monkeypatch: pytest.MonkeyPatch,
) -> Command:
    """Runs a command line in this process, by default into a folder of its own.

    The embedded model is loaded once for all with the same settings: that engines agree is tested elsewhere.
    """

    def engine(settings: Settings) -> Engine:
        return engines.setdefault(settings, Engine(settings)) if settings.name == EMBEDDED else Engine(settings)

    monkeypatch.setattr(inference, "Engine", engine)
    folders = (tmp_path / f"saved-{number}" for number in range(100))

    def run(*flags: object, folder: Path | None = None) -> Run:
        folder = folder or next(folders)
        capsys.readouterr()
        code = inference.main(["--save_path", str(folder), *map(str, flags)])
        printed = capsys.readouterr()
        return Run(code, printed.out, printed.err, folder)

    return run


def flags_of(case: dict[str, Any]) -> list[str]:
    """A golden case as a command line of the reference."""
    flags = ["--prompt", case["prompt"]]
    if case["content"] or case["styles"]:
        content = str(GOLDEN / f"{case['content']}.png") if case["content"] else ""
        flags += ["--image_paths", content, *(str(GOLDEN / f"{name}.png") for name in case["styles"])]
    for name in ("width", "height", "num_steps", "guidance", "seed", "content_ref"):
        flags += [f"--{name}", str(case[name])]
    return flags


def expected_pixels(case: dict[str, Any]) -> np.ndarray:
    with Image.open(GOLDEN / case["output"]) as image:
        return np.asarray(image.convert("RGB"), dtype=int)


def assert_refused(run: Run) -> tuple[str, str]:
    """Checks for exit code 2, two lines and nothing written; returns the two sentences."""
    assert run.code == 2, run.err
    lines = run.err.splitlines()
    assert len(lines) == 2, run.err
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("hint: ")
    assert min(map(len, lines)) > 12
    assert "Traceback" not in run.err
    assert run.out == ""
    if run.folder.is_dir():
        assert run.files() == []
    return lines[0], lines[1]


# --- the reference's images -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_the_image_equals_the_references(name, command, golden_environment):
    case = CASES[name]
    run = command(*flags_of(case), *GOLDEN_FLAGS)
    assert run.code == 0, run.err
    assert run.files() == ["0_0.json", "0_0.png"]
    expected = expected_pixels(case)
    assert run.pixels().shape == expected.shape
    assert np.abs(run.pixels() - expected).max() <= 2
    assert run.out.splitlines() == [str(run.folder / "0_0.png")]

    record = run.record()
    for key in ("prompt", "num_steps", "guidance", "seed", "content_ref"):
        assert record[key] == case[key], key
    assert (record["width"], record["height"]) == (case["width"] // 16 * 16, case["height"] // 16 * 16)
    assert record["model_type"] == "flux-dev"
    request = read_request(run.folder / "0_0.png")
    assert (request.prompt, request.seed, request.steps, request.guidance, request.content_size) == tuple(
        case[key] for key in ("prompt", "seed", "num_steps", "guidance", "content_ref")
    )
    assert [style.name for style in request.styles] == [f"{style}.png" for style in case["styles"]]
    assert (request.content.name if request.content else None) == (case["content"] and f"{case['content']}.png")


def test_a_png_says_how_to_make_it_again(command, golden_environment):
    case = CASES["multi_style_subject"]
    first = command(*flags_of(case), *GOLDEN_FLAGS)
    request = read_request(first.folder / "0_0.png")
    images = {path.name: str(path) for path in GOLDEN.glob("*.png")}
    again = command(
        "--prompt", request.prompt, "--image_paths", images[request.content.name],
        *(images[style.name] for style in request.styles), "--width", request.width, "--height", request.height,
        "--num_steps", request.steps, "--guidance", request.guidance, "--seed", request.seed,
        "--content_ref", request.content_size, "--model_type", request.model, *GOLDEN_FLAGS,
    )  # fmt: skip
    assert np.array_equal(first.pixels(), again.pixels())


def test_the_variables_may_be_in_dotenv(command, workplace, golden_environment, monkeypatch):
    names = ("FLUX_DEV", "AE", "LORA", "PROJECTION_MODEL", "T5", "CLIP", "SIGLIP_PATH")
    (workplace / ".env").write_text("".join(f"{name}={os.environ[name]}\n" for name in names))
    for name in names:
        monkeypatch.delenv(name)
    run = command(*flags_of(CASES["multi_style_subject"]), *GOLDEN_FLAGS)
    assert run.record()["model_type"] == "flux-dev"
    assert np.abs(run.pixels() - expected_pixels(CASES["multi_style_subject"])).max() <= 2


def test_a_model_without_guidance(command, golden_environment, monkeypatch, tmp_path):
    flux = load_file(GOLDEN / "flux.safetensors")
    path = tmp_path / "flux1-schnell.safetensors"
    save_file({name: tensor for name, tensor in flux.items() if not name.startswith("guidance_in.")}, path)
    monkeypatch.setenv("FLUX_SCHNELL", str(path))
    case = CASES["multi_style_subject"] | {"num_steps": 2}
    runs = [
        command(*flags_of(case | {"guidance": guidance}), *GOLDEN_FLAGS, "--model_type", "flux-schnell")
        for guidance in (1, 4)
    ]
    assert [run.code for run in runs] == [0, 0], runs[0].err
    assert np.array_equal(runs[0].pixels(), runs[1].pixels())  # it has no place to go
    assert all("guidance has no effect" in run.err and run.record()["guidance"] == 0 for run in runs)


def test_a_file_without_guidance_as_flux_dev_is_used_as_what_it_is(command, golden_environment, monkeypatch, tmp_path):
    flux = load_file(GOLDEN / "flux.safetensors")
    path = tmp_path / "flux1-dev.safetensors"
    save_file({name: tensor for name, tensor in flux.items() if not name.startswith("guidance_in.")}, path)
    monkeypatch.setenv("FLUX_DEV", str(path))
    case = CASES["multi_style_subject"] | {"num_steps": 2}
    for name in ((), ("--name", "flux-dev")):
        run = command(*flags_of(case), *GOLDEN_FLAGS, *name)
        assert run.code == 0, run.err
        assert f"FLUX_DEV points to {path.name}, which is this model by its tensors" in run.err
        assert "guidance has no effect" in run.err
        assert run.record()["model_type"] == "flux-schnell"


# --- flags ------------------------------------------------------------------------------------------------------------


def test_the_embedded_model_runs_without_any_file(command):
    run = command("--prompt", "a cat", *TINY)
    assert run.code == 0
    assert run.pixels().shape == (48, 64, 3)
    assert run.record()["model_type"] == "uso-tiny"
    assert "toy world" in run.err


def test_the_unread_end_of_a_prompt_is_quoted_once(command):
    run = command("--prompt", "a red car " * 10 + "at and two  owls", *TINY, "--num_images_per_prompt", 2)
    assert run.code == 0, run.err
    assert run.err.splitlines()[1:] == [str(message("unread", words="and two owls"))]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [("海滩上的一个红色杯子。", "海滩上的一个红色杯子"), ("A red cup 🦓, on the beach.", "🦓"),
     ("A zebra and a Кошка on the beach", "zebra Кошка"), ("A red mug on the beach — “new”.", "new")],
)  # fmt: skip
def test_words_that_the_model_does_not_know_are_quoted(prompt, words, command):
    run = command("--prompt", prompt, *TINY)
    assert run.err.splitlines()[1:] == [str(message("unknown_words", words=words))]
    assert words in run.err  # whatever the sentence says


def test_the_same_request_gives_the_same_pixels_and_another_seed_others(command):
    flags = ("--prompt", "a cat", "--image_paths", CONTENT, STYLE, *TINY)
    runs = [command(*flags, "--seed", seed) for seed in (5, 5, 6)]
    assert np.array_equal(runs[0].pixels(), runs[1].pixels())
    assert not np.array_equal(runs[0].pixels(), runs[2].pixels())


def test_without_a_seed_it_is_3407_and_minus_1_draws_one(command):
    assert command("--prompt", "a cat", *TINY).record()["seed"] == 3407
    drawn = {command("--prompt", "a cat", *TINY, "--seed", "-1").record()["seed"] for _ in range(3)}
    assert len(drawn) > 1
    assert 3407 not in drawn


def test_several_images_use_consecutive_seeds(command):
    flags = ("--prompt", "a cat", "--image_paths", CONTENT, STYLE, *TINY)
    both = command(*flags, "--seed", 7, "--num_images_per_prompt", 2)
    assert both.files() == ["0_0.json", "0_0.png", "0_1.json", "0_1.png"]
    assert [both.record(name)["seed"] for name in ("0_0", "0_1")] == [7, 8]
    assert [read_request(both.folder / f"{name}.png").seed for name in ("0_0", "0_1")] == [7, 8]
    for name, seed in (("0_0", 7), ("0_1", 8)):
        assert np.array_equal(both.pixels(name), command(*flags, "--seed", seed).pixels())


def test_strengths_and_fast_reach_the_request(command):
    run = command("--prompt", "P", "--image_paths", str(CONTENT), str(STYLE), "--content_strength", "0.5",
                  "--style_strengths", "1.5", "--fast", *TINY)  # fmt: skip
    assert run.code == 0, run.err
    made = read_request(run.folder / "0_0.png")
    assert (made.content_strength, made.style_strengths, made.fast) == (0.5, (1.5,), True)


@pytest.mark.parametrize(
    ("content", "content_ref", "size"),
    [((300, 200), 96, (128, 80)), ((200, 300), 96, (80, 128)), ((64, 64), 64, (128, 128)), ((640, 360), 64, (128, 64))],
)
def test_instruct_edit_keeps_the_shape_of_the_content_image(content, content_ref, size, command, tmp_path):
    Image.new("RGB", content, "red").save(tmp_path / "content.png")
    run = command("--prompt", "x", "--image_paths", tmp_path / "content.png", *TINY, "--content_ref", content_ref,
                  "--instruct_edit")  # fmt: skip
    assert run.pixels().shape == (size[1], size[0], 3)  # the embedded model's long side is 128, FLUX.1's is 1024
    assert (run.record()["width"], run.record()["height"]) == size


@pytest.mark.parametrize(("flag", "wide"), [("--concat_refs", True), ("--concat_refs=false", False)])
def test_concat_refs_puts_the_inputs_next_to_the_result(flag, wide, command):
    flags = ("--prompt", "a cat", "--image_paths", CONTENT, STYLE, *TINY)
    alone, beside = command(*flags).pixels(), command(*flags, flag).pixels()
    assert np.array_equal(beside[:48, :64], alone)
    widths = [Image.open(path).width for path in (CONTENT, STYLE)]
    assert beside.shape[1] == (64 + sum(widths) if wide else 64)
    if wide:
        with Image.open(CONTENT) as content:
            inside = beside[: content.height, 64 : 64 + content.width]
            assert np.array_equal(inside, np.asarray(content.convert("RGB")))


def test_an_empty_first_path_means_no_content(command):
    run = command("--prompt", "a cat", "--image_paths", "", STYLE, *TINY)
    request = read_request(run.folder / "0_0.png")
    assert request.content is None
    assert [style.name for style in request.styles] == ["style_a.png"]


def test_offload_and_fp8_change_nothing_in_a_model_this_small(command, golden_environment):
    case = CASES["multi_style_subject"]
    run = command(*flags_of(case), *GOLDEN_FLAGS, "--offload", "--model_type", "flux-dev-fp8")
    assert run.code == 0, run.err
    assert np.abs(run.pixels() - expected_pixels(case)).max() <= 2
    assert run.record()["model_type"] == "flux-dev-fp8"


def test_the_exif_orientation_of_a_content_image_counts(command, tmp_path):
    image = Image.open(CONTENT).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.rotate(90, expand=True).save(tmp_path / "lying.png", exif=exif)
    image.save(tmp_path / "upright.png")
    flags = ("--prompt", "a cat", *TINY)
    lying, upright = (command(*flags, "--image_paths", tmp_path / f"{name}.png") for name in ("lying", "upright"))
    assert np.array_equal(lying.pixels(), upright.pixels())


# --- eval files -------------------------------------------------------------------------------------------------------


def test_an_eval_file_names_images_relative_to_itself(command, tmp_path):
    folder = tmp_path / "dreambench"
    (folder / "images").mkdir(parents=True)
    shutil.copy(CONTENT, folder / "images" / "girl.png")
    entries = [
        {"prompt": "a cat", "image_paths": ["images/girl.png", str(STYLE)]},
        {"prompt": "", "image_paths": ["images/girl.png"], "save_dir": "set/second"},
        {"prompt": "a dog", "image_paths": ["", str(STYLE)], "index": 5},
        {"prompt": "text only"},
    ]
    (folder / "eval.json").write_text(json.dumps(entries))
    run = command("--eval_json_path", folder / "eval.json", *TINY, "--num_images_per_prompt", 2)
    assert run.code == 0, run.err
    stems = ("0", "set/second", "2", "3")
    assert run.files() == sorted(f"{stem}_{j}.{end}" for stem in stems for j in (0, 1) for end in ("json", "png"))
    assert [run.record(f"{stem}_0")["prompt"] for stem in stems] == ["a cat", "", "a dog", "text only"]
    assert run.record("0_0")["image_paths"] == ["images/girl.png", str(STYLE)]
    alone = command("--prompt", "a cat", "--image_paths", CONTENT, STYLE, *TINY)
    assert np.array_equal(run.pixels("0_0"), alone.pixels())


GOOD = {"prompt": "a cat"}
EVAL_FILES = {
    "not JSON": "prompt: a cat",
    "empty": "",
    "a comma too many": '[{"prompt": "a cat"},]',
    "unknown field": json.dumps([{"prompt": "a cat", "image_path": []}]),
    "seed of another type": json.dumps([{"prompt": "a cat", "seed": "5"}]),
    "strengths without styles": json.dumps([{"prompt": "a cat", "style_strengths": [0.5]}]),
    "unknown model": json.dumps([{"prompt": "a cat", "model": "flux-2"}]),
    "empty list": "[]",
    "list of texts": '["a cat"]',
    "no prompt": json.dumps([GOOD, {"image_paths": []}]),
    "prompt of another type": json.dumps([{"prompt": 5}]),
    "paths that are a text": json.dumps([{"prompt": "a cat", "image_paths": "a.png"}]),
    "paths with a number": json.dumps([{"prompt": "a cat", "image_paths": ["", 5]}]),
    "missing image": json.dumps([GOOD, {"prompt": "a cat", "image_paths": ["missing.png"]}]),
    "save_dir that goes up": json.dumps([{"prompt": "a cat", "save_dir": "../escaped"}]),
    "save_dir that goes up later": json.dumps([{"prompt": "a cat", "save_dir": "a/../../escaped"}]),
    "absolute save_dir": json.dumps([{"prompt": "a cat", "save_dir": "/tmp/escaped"}]),
    "save_dir with a zero": json.dumps([{"prompt": "a cat", "save_dir": "a\0b"}]),
    "empty save_dir": json.dumps([{"prompt": "a cat", "save_dir": ""}]),
    "half a character": '[{"prompt": "\\ud800"}]',
    "half a character in save_dir": '[{"prompt": "a cat", "save_dir": "\\ud800"}]',
    "name too long": json.dumps([{"prompt": "a cat", "save_dir": "x" * 300}]),
    "deeply nested": "[" * 100_000,
    "huge number": '[{"prompt": ' + "9" * 10_000 + "}]",
    "nine styles": json.dumps([{"prompt": "a cat", "image_paths": ["", *[str(STYLE)] * 9]}]),
}


@pytest.mark.parametrize("kind", EVAL_FILES)
def test_a_bad_eval_file_is_refused(kind, command, tmp_path):
    (tmp_path / "eval.json").write_text(EVAL_FILES[kind])
    assert_refused(command("--eval_json_path", tmp_path / "eval.json", *TINY))
    assert not (tmp_path / "escaped_0.png").exists()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_an_eval_file_in_another_encoding(encoding, command, tmp_path):
    (tmp_path / "eval.json").write_text(json.dumps([GOOD]), encoding=encoding)
    assert command("--eval_json_path", tmp_path / "eval.json", *TINY).names == ["0_0"]


def test_json_lines_with_fields_of_their_own(command, tmp_path):
    entries = [
        GOOD | {"seed": 5, "width": 64, "save_dir": "a"},
        GOOD | {"num_steps": 3, "images": 2, "image_paths": ["", str(STYLE)], "style_strengths": [0.5]},
    ]
    (tmp_path / "eval.jsonl").write_text("\n".join(map(json.dumps, entries)))
    run = command("--eval_json_path", tmp_path / "eval.jsonl", *TINY, "--height", "96")
    assert run.names == ["a_0", "1_0", "1_1"]
    first, second = run.record("a_0"), run.record("1_1")
    assert (first["seed"], first["width"], first["height"]) == (5, 64, 96)
    assert (second["seed"], second["num_steps"], second["uso"]["style_strengths"]) == (3408, 3, [0.5])


def test_nothing_is_overwritten(command, tmp_path):
    """Entries of one name, an image of another request, one of the same, a picture that nobody knows."""
    here = tmp_path / "here"
    (tmp_path / "eval.json").write_text(json.dumps([{"prompt": each, "save_dir": "x"} for each in ("a cat", "a mug")]))
    run = command("--eval_json_path", tmp_path / "eval.json", *TINY, folder=here)
    assert run.names == ["x_0", "x_1"]
    assert [run.record(name)["prompt"] for name in run.names] == ["a cat", "a mug"]
    assert "x_1.png" in run.err
    assert command("--prompt", "a cat", *TINY, folder=here).names == ["0_0"]
    assert command("--prompt", "a mug", *TINY, folder=here).names == ["0_1"]
    before = run.pixels("0_1")
    assert command("--prompt", "a mug", *TINY, folder=here).names == ["0_1"]
    assert np.array_equal(run.pixels("0_1"), before)
    run.folder.joinpath("0_2.png").write_bytes(b"a picture of somebody else's")
    assert command("--prompt", "a boat", *TINY, folder=here).names == ["0_3"]
    assert command("--prompt", "a boat", *TINY, "--overwrite", folder=here).names == ["0_0"]
    assert run.record("0_0")["prompt"] == "a boat"


def test_resume_makes_only_what_is_missing(command, tmp_path):
    here = tmp_path / "here"
    flags = ("--prompt", "a cat", *TINY, "--num_images_per_prompt", "3", "--resume")
    run = command(*flags, folder=here)
    assert run.names == ["0_0", "0_1", "0_2"]
    times = {name: run.folder.joinpath(f"{name}.png").stat().st_mtime_ns for name in run.names}
    pixels = run.pixels("0_1")
    run.folder.joinpath("0_1.png").unlink()
    run.folder.joinpath("0_1.json").unlink()
    again = command(*flags, folder=here)
    assert sorted(again.names) == run.names
    kept = {name for name in run.names if run.folder.joinpath(f"{name}.png").stat().st_mtime_ns == times[name]}
    assert kept == {"0_0", "0_2"}
    assert np.array_equal(run.pixels("0_1"), pixels)


@pytest.mark.parametrize("name", ["missing.json", "folder", "x" * 300])
def test_an_eval_file_that_cannot_be_read_is_refused(name, command, tmp_path):
    (tmp_path / "folder").mkdir()
    error, _ = assert_refused(command("--eval_json_path", tmp_path / name, *TINY))
    assert name in error


# --- grids and lists of prompts ---------------------------------------------------------------------------------------

OTHER_STYLE = GOLDEN / "style_b.png"


def test_a_grid_is_images_and_a_sheet(command):
    flags = ("--prompt", "a cat", "--image_paths", "", STYLE, *TINY, "--seed", "5")
    run = command(*flags, "--grid", "style_strength=0..1", "--grid", "guidance = 2, 4")
    assert run.names == ["0_0", "0_1", "0_2", "0_3", "0_grid_0"]
    requests = [read_request(run.folder / f"{name}.png") for name in run.names]
    assert [(each.guidance, each.style_strengths, each.seed) for each in requests] == [
        (2, (0,), 5), (2, (), 5), (4, (0,), 5), (4, (), 5), (2, (0,), 5),
    ]  # fmt: skip
    assert np.array_equal(run.pixels("0_3"), command(*flags, "--guidance", "4").pixels())
    contact = run.pixels("0_grid_0")
    for name in run.names[:4]:  # each is doubled, and whole
        assert _holds(contact, run.pixels(name).repeat(2, 0).repeat(2, 1))
    assert run.record("0_grid_0")["grid"] == {
        "across": {"name": "style_strength", "values": [0, 1]}, "down": {"name": "guidance", "values": [2, 4]},
    }  # fmt: skip


def _holds(large: np.ndarray, small: np.ndarray) -> bool:
    height, width = small.shape[:2]
    rows, columns = (large[: -height + 1 or None, : -width + 1 or None] == small[0, 0]).all(2).nonzero()
    return any(
        np.array_equal(large[row : row + height, column : column + width], small)
        for row, column in zip(rows, columns, strict=True)
    )


def test_a_grid_of_styles_has_each_alone(command):
    images = ("--image_paths", "", STYLE, OTHER_STYLE, "--style_strengths", "0.5", "1")
    run = command("--prompt", "a cat", *images, *TINY, "--grid", "style")
    assert run.names == ["0_0", "0_1", "0_grid_0"]
    made = [read_request(run.folder / f"{name}.png") for name in run.names[:2]]
    assert [([style.name for style in each.styles], each.style_strengths) for each in made] == [
        (["style_a.png"], (0.5,)), (["style_b.png"], ()),
    ]  # fmt: skip
    alone = command("--prompt", "a cat", "--image_paths", "", OTHER_STYLE, *TINY)
    assert np.array_equal(run.pixels("0_1"), alone.pixels())


def test_grids_share_a_folder_and_are_resumed(command, tmp_path):
    """A grid with the same first cell is another; the same one keeps its names; what is there is not made again."""
    here = tmp_path / "here"
    flags = ("--prompt", "a cat", *TINY)
    run = command(*flags, "--grid", "guidance=2,3", folder=here)
    assert run.names == ["0_0", "0_1", "0_grid_0"]
    assert command(*flags, "--grid", "guidance=2,4", folder=here).names == ["0_0", "0_2", "0_grid_1"]
    contact = run.pixels("0_grid_0")
    times = {name: here.joinpath(f"{name}.png").stat().st_mtime_ns for name in ("0_0", "0_1")}
    for name in ("0_1.png", "0_1.json", "0_grid_0.png", "0_grid_0.json"):
        here.joinpath(name).unlink()
    again = command(*flags, "--grid", "guidance=2,3", "--resume", folder=here)
    assert again.names == ["0_0", "0_1", "0_grid_0"]
    assert here.joinpath("0_0.png").stat().st_mtime_ns == times["0_0"]
    assert np.array_equal(run.pixels("0_grid_0"), contact)


def test_choices_and_files_of_prompts(command, tmp_path):
    run = command("--prompt", "a {red|blue} mug", *TINY, "--seed", "-1")
    assert run.names == ["0_0", "1_0"]
    made = [read_request(run.folder / f"{name}.png") for name in run.names]
    assert [each.prompt for each in made] == ["a red mug", "a blue mug"]
    assert made[0].seed == made[1].seed != 3407
    (tmp_path / "prompts.txt").write_text("# mugs\n\na {red|blue} mug\na boat\n")
    run = command("--prompts_file", tmp_path / "prompts.txt", *TINY, "--grid", "seed=1,2")
    assert run.names == [f"{prompt}_{end}" for prompt in range(3) for end in ("0", "1", "grid_0")]
    made = [read_request(run.folder / f"{name}.png") for name in run.names]
    assert [(each.prompt, each.seed) for each in made] == [
        (prompt, seed) for prompt in ("a red mug", "a blue mug", "a boat") for seed in (1, 2, 1)
    ]


def test_an_eval_files_prompts_are_taken_as_they_are(command, tmp_path):
    (tmp_path / "eval.json").write_text(json.dumps([{"prompt": "a {red|blue} mug"}]))
    run = command("--eval_json_path", tmp_path / "eval.json", *TINY)
    assert [run.record(name)["prompt"] for name in run.names] == ["a {red|blue} mug"]


BAD_LISTS = {
    "three axes": ("--prompt", "x", "--grid", "seed=1", "--grid", "steps=1", "--grid", "guidance=1"),
    "unknown axis": ("--prompt", "x", "--grid", "width=64,128"),
    "one axis twice": ("--prompt", "x", "--grid", "seed=1", "--grid", "seed=2"),
    "no values": ("--prompt", "x", "--grid", "guidance"),
    "no axis": ("--prompt", "x", "--grid", ""),
    "nothing to vary": ("--prompt", "x", "--grid", "style_strength=0,1"),
    "no styles": ("--prompt", "x", "--grid", "style"),
    "no LoRA": ("--prompt", "x", "--grid", "lora_strength=0,1"),
    "a later cell out of range": ("--prompt", "x", "--grid", "guidance=4,101"),
    "grid of an eval file": ("--eval_json_path", "eval.json", "--grid", "seed=1,2"),
    "grid with references": ("--prompt", "x", "--grid", "seed=1,2", "--concat_refs"),
    "grid of several images": ("--prompt", "x", "--grid", "seed=1,2", "--num_images_per_prompt", "2"),
    "prompt and file": ("--prompt", "x", "--prompts_file", "prompts.txt"),
    "two files": ("--eval_json_path", "eval.json", "--prompts_file", "prompts.txt"),
    "missing file": ("--prompts_file", "missing.txt"),
    "a wrong line": ("--prompts_file", "prompts.txt"),
    "too many choices": ("--prompt", "{a|b}" * 7),
}


@pytest.mark.parametrize("kind", BAD_LISTS)
def test_a_bad_grid_or_list_is_refused_in_two_lines(kind, command, workplace):
    (workplace / "eval.json").write_text(json.dumps([GOOD]))
    (workplace / "prompts.txt").write_text("a cat\n" + "{a|b}" * 7)
    assert_refused(command(*TINY, *BAD_LISTS[kind]))


# --- what the user can put right --------------------------------------------------------------------------------------

BAD_FLAGS = {
    "width 0": ("--width", "0"),
    "width -1": ("--width", "-1"),
    "width 10^9": ("--width", "1000000000"),
    "width nan": ("--width", "nan"),
    "width 64.5": ("--width", "64.5"),
    "width of 5000 digits": ("--width", "9" * 5000),
    "height 0": ("--height", "0"),
    "height inf": ("--height", "inf"),
    "height 8": ("--height", "8"),
    "steps 0": ("--num_steps", "0"),
    "steps 10^9": ("--num_steps", "1000000000"),
    "steps x": ("--num_steps", "x"),
    "guidance nan": ("--guidance", "nan"),
    "guidance inf": ("--guidance", "inf"),
    "guidance -1": ("--guidance", "-1"),
    "guidance text": ("--guidance", "strong"),
    "seed -2": ("--seed", "-2"),
    "seed 2^64": ("--seed", str(2**64)),
    "seed text": ("--seed", "lucky"),
    "content size 0": ("--content_ref", "0"),
    "content size nan": ("--content_ref", "nan"),
    "no images": ("--num_images_per_prompt", "0"),
    "too many images": ("--num_images_per_prompt", "1000000"),
    "unknown flag": ("--cfg", "3"),
    "flag without its value": ("--width",),
    "stray word": ("cat",),
    "unknown model": ("--name", "flux-pro"),
    "unknown model type": ("--model_type", "flux-pro"),
    "unknown device": ("--device", "abacus"),
    "device that is not there": ("--device", "cuda:99"),
    "device that computes nothing": ("--device", "meta"),
    "unknown dtype": ("--dtype", "float8"),
    "unknown schedule": ("--schedule", "karras"),
    "offload maybe": ("--offload=maybe",),
    "missing image": ("--image_paths", "missing.png"),
    "missing style": ("--image_paths", "", "missing.png"),
    "image that is text": ("--image_paths", "notes.txt"),
    "image that is empty": ("--image_paths", "empty.png"),
    "image that is cut": ("--image_paths", "cut.png"),
    "image that is a folder": ("--image_paths", "folder"),
    "image of a long name": ("--image_paths", "x" * 300),
    "image of an unknown home": ("--image_paths", "~nobody-of-this-name/a.png"),
    "nine style images": ("--image_paths", "", *[str(STYLE)] * 9),
    "extreme content": ("--image_paths", "extreme.png"),
    "extreme content, kept": ("--image_paths", "extreme.png", "--instruct_edit"),
    "keep size without content": ("--instruct_edit",),
    "too strong": ("--image_paths", "", str(STYLE), "--style_strengths", "2.5"),
    "one strength for no style": ("--style_strengths", "1.5"),
    "keep size of a style": ("--image_paths", "", str(STYLE), "--instruct_edit"),
    "save path is a file": ("--save_path", "notes.txt"),
    "save path below a file": ("--save_path", "notes.txt/results"),
    "save path of a long name": ("--save_path", "x" * 300),
    "prompt too long": ("--prompt", "x" * 20_001),
    "prompt with half a character": ("--prompt", "\udcff"),
}


@pytest.fixture
def images_here(workplace: Path) -> None:
    (workplace / "notes.txt").write_text("a red mug on the beach")
    (workplace / "empty.png").touch()
    (workplace / "cut.png").write_bytes(CONTENT.read_bytes()[:500])
    (workplace / "folder").mkdir()
    Image.new("RGB", (4000, 10)).save(workplace / "extreme.png")


@pytest.mark.usefixtures("images_here")
@pytest.mark.parametrize("kind", BAD_FLAGS)
def test_a_bad_flag_is_refused_in_two_lines(kind, command, workplace):
    before = sorted(workplace.rglob("*"))
    assert_refused(command("--prompt", "a cat", *TINY, *BAD_FLAGS[kind]))
    assert sorted(workplace.rglob("*")) == before


@pytest.mark.parametrize("flags", [(), ("--image_paths", CONTENT), ("--prompt",)])
def test_a_missing_prompt_is_refused(flags, command):
    error, _ = assert_refused(command(*TINY, *flags))
    assert "prompt" in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_refused(command):
    error, hint = assert_refused(command("--prompt", "a cat", *TINY, "--device", "cuda"))
    assert "cuda" in error
    assert "cpu" in hint


@pytest.mark.parametrize(
    "line", ["USO_PORT=abc", "USO_PORT=0", "USO_DTYPE=half", "USO_OFFLOAD=maybe", "USO_NAME=flux-pro"]
)
def test_a_bad_line_in_dotenv_is_refused(line, command, workplace):
    (workplace / ".env").write_text(line + "\n")
    flags = [flag for flag in TINY if flag not in ("--name", "uso-tiny")]
    error, _ = assert_refused(command("--prompt", "a cat", *flags))
    assert line.split("=")[1] in error


def test_a_dotenv_in_another_encoding_is_refused(command, workplace):
    (workplace / ".env").write_text("USO_OUTPUT=Bücher\n", encoding="cp1252")
    error, _ = assert_refused(command("--prompt", "a cat", *TINY))
    assert ".env" in error


def spoilt_encoder(folder: Path) -> Path:
    """T5 without one of its tensors."""
    copy = Path(shutil.copytree(GOLDEN / "t5", folder / "t5-spoilt"))
    tensors = load_file(copy / "model.safetensors")
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    return copy


def cut_vae(folder: Path) -> Path:
    path = folder / "ae.safetensors"
    path.write_bytes((GOLDEN / "ae.safetensors").read_bytes()[:100_000])
    return path


def web_page(folder: Path) -> Path:
    path = folder / "flux1-dev.safetensors"
    path.write_text("<!DOCTYPE html><html><body>Access denied</body></html>")
    return path


TINY_FOLDER = ROOT / "weights" / "uso-tiny"


def clip_without_config(folder: Path) -> Path:
    shutil.copytree(GOLDEN / "clip", folder, dirs_exist_ok=True)
    (folder / "config.json").unlink()
    return folder / "model.safetensors"


BAD_WEIGHTS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "transformer is not there": ("FLUX_DEV", lambda folder: folder / "missing.safetensors"),
    "transformer's path is too long": ("FLUX_DEV", lambda folder: folder / ("x" * 300)),
    "transformer in no one's home": ("FLUX_DEV", lambda folder: Path("~nobody-of-this-name/flux.safetensors")),
    "transformer is an empty folder": ("FLUX_DEV", lambda folder: folder),
    "transformer is a web page": ("FLUX_DEV", web_page),
    "transformer is the VAE": ("FLUX_DEV", lambda folder: GOLDEN / "ae.safetensors"),
    "VAE is the LoRA": ("AE", lambda folder: GOLDEN / "dit_lora.safetensors"),
    "VAE is cut": ("AE", cut_vae),
    "LoRA is the projector": ("LORA", lambda folder: GOLDEN / "projector.safetensors"),
    "LoRA of another depth": ("LORA", lambda folder: TINY_FOLDER / "dit_lora.safetensors"),
    "projector is the LoRA": ("PROJECTION_MODEL", lambda folder: GOLDEN / "dit_lora.safetensors"),
    "projector for another vision tower": ("PROJECTION_MODEL", lambda folder: TINY_FOLDER / "projector.safetensors"),
    "T5 is not there": ("T5", lambda folder: folder / "t5"),
    "T5 is CLIP": ("T5", lambda folder: GOLDEN / "clip"),
    "T5 lacks a tensor": ("T5", spoilt_encoder),
    "CLIP is a file of unknown heads": ("CLIP", clip_without_config),
    "CLIP is an empty folder": ("CLIP", lambda folder: folder),
    "CLIP of another width": ("CLIP", lambda folder: TINY_FOLDER / "clip"),
    "SigLIP is T5": ("SIGLIP_PATH", lambda folder: GOLDEN / "t5"),
    "SigLIP of another size": ("SIGLIP_PATH", lambda folder: TINY_FOLDER / "siglip"),
}


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_bad_weights_are_refused_in_two_lines(kind, command, golden_environment, monkeypatch, tmp_path):
    variable, make = BAD_WEIGHTS[kind]
    (tmp_path / "made").mkdir()
    path = make(tmp_path / "made")
    monkeypatch.setenv(variable, str(path))
    error, _ = assert_refused(command(*flags_of(CASES["style_subject"] | {"num_steps": 1}), *GOLDEN_FLAGS))
    assert str(path) in error
    if "not there" in kind:
        assert variable in error


def test_without_weights_a_named_model_says_what_is_missing(command, workplace, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(workplace))
    error, hint = assert_refused(command("--prompt", "a cat", "--name", "flux-krea-dev", "--weights", workplace))
    assert "FLUX_KREA_DEV" in error
    assert "downloader.py --variant flux-krea-dev" in hint


@pytest.mark.parametrize(
    ("entry", "reason"),
    [({"width": "wide"}, "error_no_whole_number"), ({"seed": 2**70}, "error_out_of_range"),
     ({"height": 10}, "error_out_of_range"), ({"model": "flux-def"}, "error_no_such_model"),
     ({"loras": ["ink"]}, "error_no_such_lora"), ({"turbo": 1}, "error_no_flag"),
     ({"image_paths": ["no.png"]}, "error_image_not_there")],
)  # fmt: skip
def test_what_is_wrong_with_an_entry_names_the_entry(entry, reason, command, tmp_path):
    (tmp_path / "eval.json").write_text(json.dumps([{"prompt": "a cat"}, {"prompt": "a cat", **entry}]))
    with pytest.raises(UsoError) as caught:
        inference.run(inference.build_parser().parse_args(["--eval_json_path", str(tmp_path / "eval.json"), *TINY]))
    assert (caught.value.key, caught.value.values["index"]) == ("entry_wrong", 1)
    assert caught.value.values["reason"].key == reason
    error, hint = assert_refused(command("--eval_json_path", tmp_path / "eval.json", *TINY))
    assert "ntry 1 of" in error
    assert "you started in" not in hint  # an entry's paths begin at the eval file


def test_a_failure_in_the_middle_leaves_only_whole_results(command, workplace, tmp_path):
    Image.new("RGB", (4000, 10)).save(tmp_path / "extreme.png")
    entries = [{"prompt": "a cat"}, {"prompt": "a cat", "image_paths": ["extreme.png"]}]
    (tmp_path / "eval.json").write_text(json.dumps(entries))
    run = command("--eval_json_path", tmp_path / "eval.json", *TINY)
    assert run.code == 2
    assert [name for name in run.files() if name not in ("0_0.json", "0_0.png")] == []


# --- as a process -----------------------------------------------------------------------------------------------------


@pytest.fixture
def process(workplace: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(*flags: object, **options: Any) -> subprocess.Popen[str]:
        line = [sys.executable, str(ROOT / "inference.py"), *map(str, flags)]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": workplace}
        started.append(subprocess.Popen(line, **(streams | options)))
        return started[-1]

    yield start
    for each in started:
        if each.poll() is None:
            each.kill()
        each.communicate()


def test_a_process_ends_with_code_2_and_two_lines(process, golden_environment, tmp_path, monkeypatch):
    monkeypatch.setenv("AE", str(GOLDEN / "dit_lora.safetensors"))  # detected late, after PyTorch is loaded
    running = process("--prompt", "a cat", *GOLDEN_FLAGS, "--save_path", tmp_path / "saved")
    out, err = running.communicate(timeout=240)
    assert_refused(Run(running.returncode, out, err, tmp_path / "saved"))


def read_until(terminal: int, text: str, seconds: float) -> str:
    """A terminal's output until `text` appears, its other end is closed, or time is up."""
    seen, deadline = "", time.monotonic() + seconds
    while text not in seen and select.select([terminal], [], [], max(deadline - time.monotonic(), 0))[0]:
        try:
            seen += os.read(terminal, 4096).decode(errors="replace")
        except OSError:  # Linux says so when the other end is closed
            break
    return seen


@pytest.mark.skipif(os.name == "nt", reason="no pseudo-terminals and another Ctrl+C there")
@pytest.mark.parametrize("moment", ["reading", "step 3 of 500"])
def test_ctrl_c_ends_a_run_with_code_130(moment, process, golden_environment, tmp_path):
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()  # on a terminal the bar shows where the run is
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))  # unless the bar has no room
        many = ("--width", 128, "--height", 128, "--num_steps", 500, "--num_images_per_prompt", 60)
        saved = ("--save_path", tmp_path / "saved")
        running = process("--prompt", "a cat", *GOLDEN_FLAGS, *saved, *many, stderr=theirs)
        os.close(theirs)
        seen = read_until(ours, moment, 240)
        assert moment in seen
        os.kill(running.pid, signal.SIGINT)
        assert running.wait(timeout=120) == 130
        seen += read_until(ours, "never", 5)
    finally:
        os.close(ours)
    assert "Traceback" not in seen
    assert seen.rstrip().endswith("stopped")
    if moment != "reading":
        assert "s/step" in seen
    assert [path for path in tmp_path.rglob("*") if path.suffix in (".png", ".part")] == []


def test_a_list_given_twice_is_one_list():
    given = ["--image_paths", "a.png", "--image_paths", "b.png", "--style_strengths", "1", "--style_strengths", "2"]
    args = inference.build_parser().parse_args(given)
    assert (args.image_paths, args.style_strengths) == (["a.png", "b.png"], [1.0, 2.0])
    assert inference.build_parser().parse_args([]).image_paths == []


@pytest.mark.parametrize("flag", [("--prompt", "a boat"), ("--image_paths", "", "ink.png")])
def test_what_an_eval_file_would_leave_unused_is_refused(
    command: Command, workplace: Path, flag: tuple[str, ...]
) -> None:
    (workplace / "e.json").write_text('[{"prompt": "a mug"}]')
    run = command("--eval_json_path", "e.json", *flag)
    assert run.code == 2
    assert flag[0] in run.err


# --- names and pipes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["retouched", "emptied"])
@pytest.mark.parametrize("resume", [(), ("--resume",)])
def test_an_image_that_was_changed_is_neither_replaced_nor_taken_for_done(change, resume, command, tmp_path):
    line = ("--prompt", "a boat", "--save_path", tmp_path / "out", "--seed", 3, *TINY)
    command(*line)
    path = tmp_path / "out/0_0.png"
    if change == "emptied":
        path.write_bytes(b"")
    else:
        with Image.open(path) as image:
            ImageOps.invert(image.convert("RGB")).save(path)
    before = path.read_bytes()
    assert command(*line, *resume).code == 0
    assert path.read_bytes() == before
    assert (tmp_path / "out/0_1.png").stat().st_size > 0


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
def test_names_of_files_need_not_be_unicode(process, tmp_path):
    name = os.fsdecode(b"im\xff.png")
    Image.new("RGB", (32, 32), "red").save(tmp_path / name)
    run = process("--prompt", "a boat", "--image_paths", "", tmp_path / name, "--save_path", tmp_path / "out", *TINY)
    out, errors = run.communicate(timeout=240)
    assert (run.returncode, "Traceback" in errors) == (0, False)
    assert read_request(tmp_path / "out/0_0.png").styles[0].name == "im?.png"


def test_a_terminal_that_cannot_show_a_name_and_a_closed_pipe_end_nothing(process, tmp_path):
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    line = ("--prompt", "a {red|blue} boat", *TINY, "--save_path")
    run = process(*line, tmp_path / "日", env=environment)
    out, errors = run.communicate(timeout=240)
    assert (run.returncode, len(list((tmp_path / "日").glob("*.png")))) == (0, 2)
    assert "\\u65e5" in out
    run = process(*line, tmp_path / "closed")
    run.stdout.close()
    assert run.wait(240) == 0
    assert "Traceback" not in run.stderr.read()
    assert len(list((tmp_path / "closed").glob("*.png"))) == 2


@pytest.mark.parametrize("stem", ["file/x", "x" * 249, "文" * 83])
def test_a_result_that_cannot_be_written_is_refused_before_anything_is_computed(stem, command, workplace):
    out = workplace / "out"
    out.mkdir()
    (out / "file").write_text("of the user's")
    (workplace / "e.json").write_text(json.dumps([{"prompt": "a mug"}, {"prompt": "a boat", "save_dir": stem}]))
    run = command("--eval_json_path", "e.json", *TINY, folder=out)
    assert (run.code, run.out, "Traceback" in run.err) == (2, "", False)
    assert stem in run.err
    assert [path.name for path in out.iterdir()] == ["file"]


def test_resume_tells_images_with_their_references_beside_them_from_plain_ones(command, tmp_path):
    here = tmp_path / "here"
    flags = ("--prompt", "a cat", "--image_paths", CONTENT, *TINY, "--resume")
    plain = command(*flags, folder=here).pixels("0_0")
    run = command(*flags, "--concat_refs", folder=here)
    assert run.names == ["0_1"]
    assert run.pixels("0_1").shape[1] > plain.shape[1]
    assert command(*flags, "--concat_refs", folder=here).names == ["0_1"]
    assert command(*flags, folder=here).names == ["0_0"]


def test_a_grid_is_resumed_beside_a_cell_that_was_retouched(command, tmp_path):
    here = tmp_path / "here"
    flags = ("--prompt", "a cat", *TINY, "--grid", "guidance=2,3", "--resume")
    contact = command(*flags, folder=here).pixels("0_grid_0")
    with Image.open(here / "0_0.png") as image:
        ImageOps.invert(image.convert("RGB")).save(here / "0_0.png")
    (here / "0_grid_0.png").unlink()
    again = command(*flags, folder=here)
    assert again.code == 0, again.err
    assert np.array_equal(again.pixels(again.names[-1]), contact)
