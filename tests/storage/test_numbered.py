"""Names for results: what is there keeps its name, also while several programs write into one folder."""

from __future__ import annotations

import dataclasses
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from uso_core.request import GenerationRequest, Result
from uso_core.storage.files import save_image
from uso_core.storage.numbered import Place, claimed, place
from uso_core.storage.png import read_request

ASKED = GenerationRequest("a fox", seed=1, width=64, height=64, model="uso-tiny")


def save(folder: Path, request: GenerationRequest = ASKED) -> Path:
    result = Result(request, request.seed or 0, "uso-tiny", "cpu", "float32", 0.5)
    with claimed(lambda: place(folder, "0", 0, request, set())) as path:
        return save_image(Image.new("RGB", (64, 64)), result, path, {"uso": result.to_dict()})


def test_programs_that_write_at_once_take_different_names(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda seed: save(tmp_path, dataclasses.replace(ASKED, seed=seed)), range(40)))
    assert sorted(path.name for path in paths) == sorted(f"0_{number}.png" for number in range(40))
    assert {json.loads(path.with_suffix(".json").read_text())["uso"]["seed"] for path in paths} == set(range(40))


def test_a_name_that_was_not_used_is_free_again(tmp_path: Path) -> None:
    try:
        with claimed(lambda: place(tmp_path, "0", 0, ASKED, set())) as path:
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


def test_a_deleted_image_is_not_made_again_where_it_lies_under_another_name(tmp_path: Path) -> None:
    path = save(tmp_path)
    other = tmp_path / "0_1.png"
    for ending in (".png", ".json"):
        shutil.copy(path.with_suffix(ending), other.with_suffix(ending))
    path.unlink()
    assert place(tmp_path, "0", 0, ASKED, set()) == (other, other, False)


def test_what_another_program_writes_after_the_look_is_kept(tmp_path: Path) -> None:
    others = [dataclasses.replace(ASKED, seed=2)]

    def look() -> Place:
        found = place(tmp_path, "0", 0, ASKED, set())
        if others:
            save(tmp_path, others.pop())
        return found

    with claimed(look) as path:
        assert path == tmp_path / "0_1.png"
    assert read_request(tmp_path / "0_0.png").seed == 2


def test_a_link_that_leads_nowhere_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "0_0.json").symlink_to(tmp_path / "gone")
    assert save(tmp_path) == tmp_path / "0_1.png"
