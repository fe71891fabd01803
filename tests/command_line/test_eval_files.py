"""Eval files, as the reference's authors use them: lists of requests beside their images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import inference
from tests.command_line.runs import CONTENT, STYLE, TINY, Command, assert_refused
from uso_core.errors import UsoError

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


@pytest.mark.parametrize("name", ["missing.json", "folder", "x" * 300])
def test_an_eval_file_that_cannot_be_read_is_refused(name, command, tmp_path):
    (tmp_path / "folder").mkdir()
    error, _ = assert_refused(command("--eval_json_path", tmp_path / name, *TINY))
    assert name in error


def test_an_eval_files_prompts_are_taken_as_they_are(command, tmp_path):
    (tmp_path / "eval.json").write_text(json.dumps([{"prompt": "a {red|blue} mug"}]))
    run = command("--eval_json_path", tmp_path / "eval.json", *TINY)
    assert [run.record(name)["prompt"] for name in run.names] == ["a {red|blue} mug"]


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


@pytest.mark.parametrize(
    ("entry", "said"),
    [({"content": "a.png"}, "'image_paths'"), ({"styles": ["a.png"]}, "'image_paths'"), ({"stepz": 3}, "'steps'"),
     ({"concat_refs": True}, "--concat_refs")],
)  # fmt: skip
def test_a_name_that_an_entry_cannot_have_leads_to_the_right_one(entry, said, command, tmp_path):
    (tmp_path / "eval.json").write_text(json.dumps([{"prompt": "a cat", **entry}]))
    error, hint = assert_refused(command("--eval_json_path", tmp_path / "eval.json", *TINY))
    assert said in error + hint


@pytest.mark.parametrize("flag", [("--prompt", "a boat"), ("--image_paths", "", "ink.png")])
def test_what_an_eval_file_would_leave_unused_is_refused(
    command: Command, workplace: Path, flag: tuple[str, ...]
) -> None:
    (workplace / "e.json").write_text('[{"prompt": "a mug"}]')
    run = command("--eval_json_path", "e.json", *flag)
    assert run.code == 2
    assert flag[0] in run.err
