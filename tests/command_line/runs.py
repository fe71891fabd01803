"""What a command line left: its exit code, its output and its files; and the reference's cases as flags."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.conftest import GOLDEN

CASES = {case["name"]: case for case in json.loads((GOLDEN / "manifest.json").read_text())["cases"]}


GOLDEN_FLAGS = ("--device", "cpu", "--dtype", "float32")


TINY = ("--name", "uso-tiny", "--device", "cpu", "--width", "96", "--height", "64", "--num_steps", "2")


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
