"""What lies there already: nothing is overwritten, and a run goes on where it was stopped."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.command_line.runs import CONTENT, TINY


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


def test_a_failure_in_the_middle_leaves_only_whole_results(command, workplace, tmp_path):
    Image.new("RGB", (4000, 10)).save(tmp_path / "extreme.png")
    entries = [{"prompt": "a cat"}, {"prompt": "a cat", "image_paths": ["extreme.png"]}]
    (tmp_path / "eval.json").write_text(json.dumps(entries))
    run = command("--eval_json_path", tmp_path / "eval.json", *TINY)
    assert run.code == 2
    assert [name for name in run.files() if name not in ("0_0.json", "0_0.png")] == []


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
