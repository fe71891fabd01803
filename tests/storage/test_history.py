"""The history: what is kept, found, restored and forgotten."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import gradio as gr
import pytest
from PIL import Image

from uso_core.catalog.models import get_model
from uso_core.errors import OutputError, RequestError
from uso_core.images import open_image
from uso_core.request import GenerationRequest, Result
from uso_core.runtime.engine import Engine
from uso_core.settings import Settings
from uso_core.storage.files import save_image
from uso_core.storage.history import History
from uso_core.storage.styles import StyleStore
from uso_core.ui import text
from uso_core.ui.form import Form, build_form
from uso_core.ui.results import restored
from uso_core.ui.services import Services

RED, BLUE = (open_image(Image.new("RGB", (20, 30), colour), f"{colour}.png") for colour in ("red", "blue"))


SERVICES = Services.of(Engine(Settings(name="uso-tiny")), Settings(name="uso-tiny"))  # idle: nothing is submitted


def result(seed: int = 1, **values) -> Result:
    return Result(GenerationRequest(**values), seed, "uso-tiny", "cpu", "float32", 0.5)


@pytest.fixture
def history(tmp_path) -> History:
    return History(tmp_path / "output", 100, 10**9)


def add(history: History, **values):
    return history.add(Image.new("RGB", (300, 200), "green"), result(**values))


def put_back(history: History, path: Path) -> tuple[Form, list, str]:
    store = StyleStore(history.folder / "styles")
    with gr.Blocks() as page:
        form = build_form(page, get_model("uso-tiny"), store)
    return form, *restored(form, dataclasses.replace(SERVICES, history=history, styles=store), path)


def words_of(history: History, path: Path) -> str:
    return put_back(history, path)[2]


def test_what_is_added_is_restored_with_its_images(history):
    path = add(history, seed=7, prompt="a mug", content=RED, styles=(BLUE,), guidance=3.0)
    request, kept = history.restore(path)
    assert (request.prompt, request.seed, request.guidance) == ("a mug", 7, 3.0)
    assert [open_image(kept[image.sha256]) for image in (request.content, *request.styles)] == [
        dataclasses.replace(RED, name=f"{RED.sha256}.png"),
        dataclasses.replace(BLUE, name=f"{BLUE.sha256}.png"),
    ]


def test_a_image_that_is_gone_is_named(history, tmp_path):
    path, elsewhere = add(history, content=RED), History(tmp_path / "elsewhere", 1, 1)
    assert elsewhere.restore(path)[1] == {}
    assert words_of(history, path) == text.restored([], [])
    assert words_of(elsewhere, path) == text.restored([RED.name], [])


def test_styles_for_which_the_page_has_no_place_are_named(history, tmp_path):
    styles = [open_image(Image.new("RGB", (20, 30), (shade, 0, 0)), f"{shade}.png") for shade in range(6)]
    path = add(history, content=RED, styles=styles)
    form, updates, words = put_back(history, path)
    slots = {name: updates.get(field) for name, field in form.fields.items()}
    assert [Path(slots[f"style_{number}"]).stem for number in range(1, 5)] == [style.sha256 for style in styles[:4]]
    assert words == text.restored([], ["4.png", "5.png"])
    assert words_of(History(tmp_path / "elsewhere", 1, 1), path) == text.restored(
        ["red.png", "0.png", "1.png", "2.png", "3.png"], ["4.png", "5.png"]
    )


def test_another_file_is_refused(history, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "foreign.png")
    with pytest.raises(RequestError, match=r"foreign\.png"):
        history.restore(tmp_path / "foreign.png")


def test_entries_are_newest_first_and_searched_by_words(history):
    paths = [add(history, seed=seed, prompt=prompt) for seed, prompt in enumerate(["red mug", "blue car", "red car"])]
    assert {entry.path for entry in history.entries()} == set(paths)
    names = [entry.path.name for entry in history.entries()]
    assert names == sorted(names, reverse=True)
    assert {entry.prompt for entry in history.entries("Red")} == {"red mug", "red car"}
    assert [entry.prompt for entry in history.entries("car red")] == ["red car"]
    assert history.entries("boat") == []


def test_thumbnails_are_small_and_their_loss_does_no_harm(history):
    add(history)
    (entry,) = history.entries()
    assert max(Image.open(entry.thumbnail).size) == 256
    entry.thumbnail.unlink()
    assert entry.thumbnail == entry.path


def test_deleting_removes_everything_of_the_image_and_nothing_else(history):
    one, other = add(history, content=RED, styles=(BLUE,)), add(history, seed=2, content=RED)
    history.delete(one)
    left = sorted(path.relative_to(history.folder).as_posix() for path in history.folder.rglob("*") if path.is_file())
    assert left == sorted([other.name, f"{other.stem}.json", f"thumbnails/{other.stem}.webp",
                           f"inputs/{RED.sha256}.png"])  # fmt: skip


@pytest.mark.parametrize("name", ["../keep.png", "inputs/keep.png", "keep.txt"])
def test_nothing_outside_is_deleted(history, name):
    place = history.folder / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(b"x")
    history.delete(place)
    assert place.exists()


def test_count_and_bytes_are_bounded_and_the_newest_stays(tmp_path):
    few = History(tmp_path / "few", 2, 10**9)
    for seed in range(4):
        newest = add(few, seed=seed)
    assert len(few.entries()) == 2
    small = History(tmp_path / "small", 100, 1)
    for seed in range(3):
        newest = add(small, seed=seed)
    assert [entry.path for entry in small.entries()] == [newest]


def test_damaged_records_do_no_harm(history):
    path = add(history)
    for record in ("", "[]", "{", '{"prompt": 3, "styles": 5, "content": []}'):
        path.with_suffix(".json").write_text(record)
        assert [entry.prompt for entry in history.entries()] == [""]
        history.delete(history.folder / "nothing.png")


def test_a_hostile_image_name_leads_nowhere(history, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"x")
    hostile = dataclasses.replace(RED, sha256="../../secret", image=None)
    path = history.add(Image.new("RGB", (8, 8)), result(content=hostile))
    assert history.restore(path)[1] == {}
    assert words_of(history, path) == text.restored([RED.name], [])


def test_an_image_that_cannot_be_written_leaves_no_record(tmp_path):
    path = tmp_path / "taken.png"
    path.mkdir()  # a folder of that name: the rename into place fails
    with pytest.raises(OutputError, match=r"taken\.png"):
        save_image(Image.new("RGB", (8, 8)), result(), path)
    assert [each.name for each in tmp_path.iterdir()] == ["taken.png"]


def test_the_same_second_twice_is_two_files(history):
    assert add(history, seed=5) != add(history, seed=5)
