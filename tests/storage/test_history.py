"""The history: what is kept, found, restored and forgotten."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from uso_core.catalog.models import get_model
from uso_core.errors import OutputError, RequestError
from uso_core.images import open_image
from uso_core.request import GenerationRequest, Result
from uso_core.runtime.engine import Engine
from uso_core.settings import Settings
from uso_core.storage import files
from uso_core.storage import history as module
from uso_core.storage.files import locked, save_image
from uso_core.storage.history import SEQUENCE, History
from uso_core.storage.png import read_request
from uso_core.storage.styles import StyleStore
from uso_core.ui import text
from uso_core.ui.form import Form, build_form
from uso_core.ui.results import restored
from uso_core.ui.services import Services, Stores

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
        form = build_form(page, get_model("uso-tiny"), SERVICES)
    return form, *restored(form, SERVICES, Stores(history, store), path)


def words_of(history: History, path: Path) -> str:
    return put_back(history, path)[2]


def test_an_added_image_is_restored_with_its_inputs(history):
    path = add(history, seed=7, prompt="a mug", content=RED, styles=(BLUE,), guidance=3.0)
    request, kept = history.restore(path)
    assert (request.prompt, request.seed, request.guidance) == ("a mug", 7, 3.0)
    assert [open_image(kept[image.sha256]) for image in (request.content, *request.styles)] == [
        dataclasses.replace(RED, name=f"{RED.sha256}.png"),
        dataclasses.replace(BLUE, name=f"{BLUE.sha256}.png"),
    ]


def test_a_missing_image_is_named(history, tmp_path):
    path, elsewhere = add(history, content=RED), History(tmp_path / "elsewhere", 1, 1)
    assert elsewhere.restore(path)[1] == {}
    assert words_of(history, path) == text.restored([], [])
    assert words_of(elsewhere, path) == text.restored([RED.name], [])


def test_styles_beyond_the_pages_slots_are_named(history, tmp_path):
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
    files = [path for path in history.folder.rglob("*") if path.is_file() and path.name[0] != "."]
    left = sorted(path.relative_to(history.folder).as_posix() for path in files)
    assert left == sorted([other.name, f"{other.stem}.json", f"thumbnails/{other.stem}.webp",
                           f"inputs/{RED.sha256}.png"])  # fmt: skip


@pytest.mark.parametrize("name", ["../keep.png", "inputs/keep.png", "keep.txt"])
def test_nothing_outside_is_deleted(history, name):
    place = history.folder / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(b"x")
    history.delete(place)
    assert place.exists()


def test_count_and_bytes_are_limited_and_the_newest_stays(tmp_path):
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


def test_the_same_second_twice_gives_two_files(history):
    assert add(history, seed=5) != add(history, seed=5)


def test_images_of_one_second_and_seed_are_all_kept_with_their_records(tmp_path):
    history = History(tmp_path, 1000, 10**9)

    def go(who: int) -> list[Path]:
        return [add(history, seed=3407, prompt=f"{who} {number}") for number in range(20)]

    with ThreadPoolExecutor(4) as pool:
        paths = [path for made in pool.map(go, range(4)) for path in made]
    assert len(set(paths)) == 80
    kept = list(tmp_path.glob("*.png"))
    assert len(kept) == 80
    for path in kept:
        assert read_request(path).prompt == json.loads(path.with_suffix(".json").read_text())["prompt"]


def test_a_clock_set_back_does_not_make_the_newest_the_oldest(tmp_path, monkeypatch):
    history = History(tmp_path, 3, 10**9)
    paths = [add(history, seed=seed) for seed in range(3)]
    monkeypatch.setattr(files, "datetime", type("Back", (), {"now": staticmethod(lambda: datetime(2020, 1, 1))}))
    newest = add(history, seed=9)
    assert [entry.path for entry in history.entries()] == [newest, *reversed(paths[1:])]
    again = History(tmp_path, 3, 10**9)  # after a restart as well
    assert [entry.path for entry in again.entries()] == [newest, *reversed(paths[1:])]
    assert add(again, seed=10).exists()


def test_images_from_before_sequences_are_the_oldest(tmp_path):
    history = History(tmp_path, 3, 10**9)
    new = add(history, seed=1)
    for name in ("20990101-000000-5", "20990101-000000-5-1"):
        for suffix in (".png", ".json"):
            (tmp_path / name).with_suffix(suffix).write_bytes(new.with_suffix(suffix).read_bytes())
    names = [entry.path.stem for entry in history.entries()]
    assert names == [new.stem, "20990101-000000-5-1", "20990101-000000-5"]
    newest = add(history, seed=2)
    assert [entry.path.stem for entry in history.entries()] == [newest.stem, *names[:2]]


def test_a_name_is_not_reused_after_its_image_was_deleted(history, monkeypatch):
    monkeypatch.setattr(files, "datetime", type("Still", (), {"now": staticmethod(lambda: datetime(2026, 1, 2))}))
    first = add(history, seed=1)
    history.delete(first)
    second = add(History(history.folder, 100, 10**9), seed=1)  # another process
    assert second != first
    history.delete(second)
    (history.folder / SEQUENCE).write_bytes(b"?")
    assert add(history, seed=1).exists()


@pytest.mark.parametrize("place", ["inputs", "thumbnails", "output"])
def test_a_failed_add_leaves_nothing(place, history, monkeypatch):
    kept = add(history, content=BLUE)
    before = set(history.folder.rglob("*"))

    rename = files._rename

    def full(new: Path, path: Path) -> None:
        if path.parent.name == place and path.suffix != ".json":
            raise OutputError("disk_full", hint="make_room", folder=path.parent)
        rename(new, path)

    monkeypatch.setattr(files, "_rename", full)
    with pytest.raises(OutputError, match="disk is full"):
        add(history, content=RED)
    assert [entry.path for entry in history.entries()] == [kept]
    assert set(history.folder.rglob("*")) == before


def test_inputs_are_written_before_the_image(history, monkeypatch):
    order, rename = [], files._rename

    def noted(new: Path, path: Path) -> None:
        rename(new, path)
        order.append(path.suffix if path.parent == history.folder else path.parent.name)

    monkeypatch.setattr(files, "_rename", noted)
    add(history, content=RED, styles=(BLUE,))
    assert order == ["inputs", "inputs", "thumbnails", ".json", ".png"]


@pytest.mark.parametrize("why", ["no permission", "newer version"])
def test_what_an_unreadable_image_needs_is_kept(history, caplog, monkeypatch, why):
    """Made by another user of the machine, say, or by a later program."""
    path = add(history, prompt="a", content=RED)
    gone = add(history, prompt="b", content=BLUE)
    if why == "newer version":
        record = {"version": 9, "inputs": [RED.sha256]}
        path.with_suffix(".json").write_text(json.dumps(record))
        Image.new("RGB", (8, 8)).save(path, pnginfo=texts_of({"uso": json.dumps(record)}))
    else:
        opened, read = Path.open, Path.read_text
        mine = (path, path.with_suffix(".json"))

        def refuse(kind):
            def use(self, *arguments, **options):
                if self in mine:
                    raise PermissionError(errno.EACCES, "Permission denied")
                return kind(self, *arguments, **options)

            return use

        monkeypatch.setattr(Path, "open", refuse(opened))
        monkeypatch.setattr(Path, "read_text", refuse(read))
    history.delete(gone)
    History(history.folder, 100, 10**9)
    assert {each.stem for each in (history.folder / "inputs").iterdir()} == {RED.sha256, BLUE.sha256}
    assert {record.args[0].key for record in caplog.records} == {"inputs_kept"}
    monkeypatch.undo()
    if why == "no permission":
        History(history.folder, 100, 10**9)
        assert {each.stem for each in (history.folder / "inputs").iterdir()} == {RED.sha256}


def texts_of(texts: dict[str, str]) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for key, value in texts.items():
        info.add_text(key, value)
    return info


def test_an_input_lives_as_long_as_an_image_says_it_whatever_its_json_says(history):
    path, other = add(history, prompt="a fox", content=RED), add(history, prompt="a hen", content=BLUE)
    record = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(record | {"content": None}))
    history.delete(other)
    assert set(history.restore(path)[1]) == {RED.sha256}
    assert set(history.inputs([RED.sha256, BLUE.sha256])) == {RED.sha256}


def test_the_limit_counts_inputs_and_thumbnails(tmp_path):
    bound = 300_000
    history = History(tmp_path, 1000, bound)
    for seed in range(6):
        noise = np.random.default_rng(seed).integers(0, 255, (200, 200, 3), np.uint8)
        newest = add(history, seed=seed, content=open_image(Image.fromarray(noise), "c.png"))
    held = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert held <= bound
    assert len(history.entries()) == 2  # of about 120 kB each
    assert len(history.restore(newest)[1]) == 1


def test_a_shared_input_counts_once(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    content, history = open_image(Image.fromarray(noise), "c.png"), History(tmp_path, 1000, 200_000)
    for seed in range(6):
        add(history, seed=seed, content=content)
    assert len(history.entries()) == 6


def test_leftovers_go_at_the_next_start_and_nothing_else(tmp_path):
    history = History(tmp_path, 10, 10**9)
    kept = add(history, content=RED)
    leftovers = [
        tmp_path / ".0123456789abcdef.part", tmp_path / "inputs" / ".0123456789abcdef.part",
        tmp_path / "20200101-000000-1.json", tmp_path / "20200101-000000-1-000001.json",
        tmp_path / "thumbnails" / "20200101-000000-1.webp", tmp_path / "inputs" / f"{'0' * 64}.png",
        tmp_path / "20200101-000000-2-000002.png",  # without content, as a power cut leaves it
    ]  # fmt: skip
    foreign = [tmp_path / "notes.json", tmp_path / "holiday.png", tmp_path / ".env", tmp_path / "a.part"]
    for path in leftovers:
        path.write_bytes(b"")
    for path in foreign:
        path.write_bytes(b"x")
    again = History(tmp_path, 1, 10**9)
    assert [path for path in leftovers if path.exists()] == []
    assert [path for path in foreign if not path.exists()] == []
    assert [entry.path for entry in again.entries()] == [kept]
    assert set(again.restore(kept)[1]) == {RED.sha256}
    add(again)
    assert all(path.exists() for path in foreign)  # nor does the bound delete what is not ours


def test_what_another_process_is_writing_is_not_swept(tmp_path, monkeypatch):
    history = History(tmp_path, 10, 10**9)
    add(history)
    part = tmp_path / ".0123456789abcdef.part"
    part.touch()
    monkeypatch.setattr(module, "SWEEP_SECONDS", 0.05)
    with locked(tmp_path):
        History(tmp_path, 10, 10**9)
        assert part.exists()
    History(tmp_path, 10, 10**9)
    assert not part.exists()


DAMAGED = ["", "[]", "{", '{"prompt": 3, "styles": 5, "content": []}', '{"prompt": "x"}', "\x00", "[" * 100_000]


@pytest.mark.parametrize("record", [*DAMAGED, None], ids=range(len(DAMAGED) + 1))
def test_a_damaged_record_costs_nothing(record, history):
    path, other = add(history, prompt="a mug", content=RED), add(history, seed=2, content=BLUE)
    beside = path.with_suffix(".json")
    beside.unlink() if record is None else beside.write_text(record)
    assert [entry.prompt for entry in history.entries()] == ["", "a mug"]
    history.delete(other)
    assert set(history.restore(path)[1]) == {RED.sha256}
    History(history.folder, 10, 10**9)
    assert json.loads(beside.read_text())["content"]["sha256"] == RED.sha256  # written anew from the image


def test_odd_files_do_not_prevent_reading_the_history(history):
    path = add(history, prompt="a mug")
    record = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**record, "prompt": "half \ud800", "seed": "x"}))
    os.utime(path, (2**40, 2**40))  # a time beyond the calendar's years
    (history.folder / "20260101-000000-1.png").mkdir()
    assert [(entry.prompt, entry.seed) for entry in history.entries()] == [("half ?", 0)]


def test_an_image_that_cannot_be_deleted_is_reported(history, monkeypatch):
    path = add(history)

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OutputError, match=path.name):
        history.delete(path)
    assert [entry.path for entry in history.entries()] == [path]


def test_a_vanished_folder_is_created_again(history):
    path = add(history)
    shutil.rmtree(history.folder)
    history.delete(path)
    assert history.entries() == []
    assert not history.folder.exists()
    assert add(history).exists()


def test_a_folder_that_became_read_only_is_still_shown(history, monkeypatch):
    path = add(history)

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files.FileLock, "acquire", refuse)
    again = History(history.folder, 10, 10**9)
    assert [entry.path for entry in again.entries()] == [path]
    for attempt in (lambda: add(again), lambda: again.delete(path)):
        with pytest.raises(OutputError, match="output cannot be written to"):
            attempt()
    assert path.exists()
