"""Names for results: what is there keeps its name, also while several programs write into one folder."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from uso_core.request import GenerationRequest, Result
from uso_core.storage.files import save_image
from uso_core.storage.numbered import claimed

ASKED = GenerationRequest("a fox", seed=1, width=64, height=64, model="uso-tiny")


def save(folder: Path, request: GenerationRequest = ASKED) -> Path:
    result = Result(request, request.seed or 0, "uso-tiny", "cpu", "float32", 0.5)
    with claimed(folder, "0", 0, request, set()) as path:
        return save_image(Image.new("RGB", (64, 64)), result, path, {"uso": result.to_dict()})


def test_programs_that_write_at_once_take_different_names(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda seed: save(tmp_path, dataclasses.replace(ASKED, seed=seed)), range(40)))
    assert sorted(path.name for path in paths) == sorted(f"0_{number}.png" for number in range(40))
    assert {json.loads(path.with_suffix(".json").read_text())["uso"]["seed"] for path in paths} == set(range(40))


def test_a_name_that_was_not_used_is_free_again(tmp_path: Path) -> None:
    try:
        with claimed(tmp_path, "0", 0, ASKED, set()) as path:
            assert path.with_suffix(".json").exists()
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert list(tmp_path.iterdir()) == []
    assert save(tmp_path) == tmp_path / "0_0.png"


def test_a_deleted_image_gets_its_name_back(tmp_path: Path) -> None:
    path = save(tmp_path)
    path.unlink()
    other = save(tmp_path, dataclasses.replace(ASKED, seed=2))
    assert (save(tmp_path), other.name) == (path, "0_1.png")
