"""Grids, choices in prompts, and files of prompts."""

from __future__ import annotations

import json

import numpy as np
import pytest

import inference
from tests.command_line.runs import STYLE, TINY, assert_refused
from tests.conftest import GOLDEN
from uso_core.storage.png import read_request

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
    (workplace / "eval.json").write_text(json.dumps([{"prompt": "a cat"}]))
    (workplace / "prompts.txt").write_text("a cat\n" + "{a|b}" * 7)
    assert_refused(command(*TINY, *BAD_LISTS[kind]))


def test_a_list_given_twice_is_one_list():
    given = ["--image_paths", "a.png", "--image_paths", "b.png", "--style_strengths", "1", "--style_strengths", "2"]
    args = inference.build_parser().parse_args(given)
    assert (args.image_paths, args.style_strengths) == (["a.png", "b.png"], [1.0, 2.0])
    assert inference.build_parser().parse_args([]).image_paths == []
