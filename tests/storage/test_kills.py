"""Programs killed while they save, delete and store: what they reported stays, what was half done goes."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from uso_core.errors import OutputError, RequestError
from uso_core.images import open_image
from uso_core.settings import ROOT
from uso_core.storage.history import History
from uso_core.storage.png import read_request
from uso_core.storage.styles import StyleStore

# Reports each thing before and after doing it, one per line.
WRITER = """
import random, sys
from pathlib import Path
import numpy as np
from PIL import Image
from uso_core.images import open_image
from uso_core.request import GenerationRequest, Result
from uso_core.storage.history import History
from uso_core.storage.styles import StyleStore

folder, who, most = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
history, store, chance = History(folder, 1000, 10**9), StyleStore(folder / "styles"), random.Random(who)
shared = open_image(Image.new("RGB", (40, 30), "red"), "red.png")
say = lambda *words: print(*words, flush=True)
made = []
say("ready")
for number in range(most):
    own = open_image(Image.new("RGB", (40, 30), tuple(chance.randbytes(3))), "own.png")
    request = GenerationRequest(f"{who} {number}", shared, (own,), seed=3407)
    path = history.add(Image.new("RGB", (64, 48)), Result(request, 3407, "uso-tiny", "cpu", "float32", 1.0))
    made.append(path)
    say("saved", path.name, f"{who} {number}")
    if number % 3 == 2:
        gone = made.pop(chance.randrange(len(made)))
        say("deleting", gone.name)
        history.delete(gone)
    if number % 2:
        tokens = [np.full((6, 8), chance.random(), np.float32)]
        say("stored", store.add(f"{who} {number}", tokens, (1.0,), "uso-tiny", "f", shared.image).sha256)
"""


@contextmanager
def writers(folder: Path, names: list[str], most: int = 10**6) -> Iterator[list[subprocess.Popen[str]]]:
    """Programs that write into the folder, all of them already writing."""
    command = [sys.executable, "-c", WRITER, str(folder)]
    programs = [
        subprocess.Popen([*command, name, str(most)], cwd=ROOT, text=True, stdout=subprocess.PIPE) for name in names
    ]
    try:
        for program in programs:
            assert program.stdout.readline() == "ready\n"
        yield programs
    finally:
        for program in programs:
            program.kill()
            program.wait()
            program.stdout.close()


class Told:
    """What the writers have reported."""

    def __init__(self) -> None:
        self.saved: dict[str, str] = {}
        self.deleted: set[str] = set()
        self.stored: set[str] = set()

    def read(self, output: str) -> None:
        for line in output.splitlines(keepends=True):
            kind, *words = line.split(maxsplit=2)
            if not line.endswith("\n"):  # killed while reporting it
                break
            if kind == "saved":
                assert words[0] not in self.saved, "one name for two images"
                self.saved[words[0]] = words[1].strip()
            elif kind == "deleting":
                self.deleted.add(words[0])
            elif kind == "stored":
                self.stored.add(words[0])


def check(folder: Path, told: Told) -> None:
    """A new start finds everything that was reported, complete, and nothing else."""
    history, store = History(folder, 1000, 10**9), StyleStore(folder / "styles")
    names = {entry.path.name for entry in history.entries()}
    assert set(told.saved) - told.deleted <= names
    inputs = set()
    for name in names:
        request, kept = history.restore(folder / name)
        assert request.prompt == told.saved.get(name, request.prompt)
        assert set(kept) == {image.sha256 for image in request.input_images}
        assert all(open_image(place).sha256 == sha256 for sha256, place in kept.items())
        inputs |= set(kept)
        with Image.open(folder / name) as image:
            image.load()
    stems = {Path(name).stem for name in names}
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    expected = {f"{stem}.{suffix}" for stem in stems for suffix in ("png", "json")}
    expected |= {f"thumbnails/{stem}.webp" for stem in stems} | {f"inputs/{sha256}.png" for sha256 in inputs}
    styles = {entry.sha256 for entry in store.entries()}
    expected |= {f"styles/{sha256}.safetensors" for sha256 in styles}
    assert files - {".lock", ".sequence", "styles/.lock"} == expected
    assert told.stored <= styles
    assert all(store.get(sha256).tokens for sha256 in styles)


def test_twenty_kills_lose_nothing_and_leave_nothing(tmp_path):
    told, chance = Told(), random.Random(0)
    for number in range(10):
        with writers(tmp_path, [f"{number}a", f"{number}b"]) as programs:
            for program in programs:
                with pytest.raises(subprocess.TimeoutExpired):
                    program.wait(chance.uniform(0.0, 0.3))
                program.kill()
                told.read(program.stdout.read())
        check(tmp_path, told)
    assert len(told.saved) > 20
    assert told.stored
    assert told.deleted


def test_two_programs_on_one_folder_lose_nothing(tmp_path):
    told = Told()
    with writers(tmp_path, ["one", "other"], most=30) as programs:
        for program in programs:
            assert program.wait(240) == 0
            told.read(program.stdout.read())
    check(tmp_path, told)
    assert len(told.saved) == 60
    assert len(list(tmp_path.glob("*.png"))) == 40
    assert {read_request(tmp_path / name).prompt for name in set(told.saved) - told.deleted} == {
        prompt for name, prompt in told.saved.items() if name not in told.deleted
    }


@pytest.mark.parametrize("damage", [b"", b"half", b"\xff" * 5000, (2**40).to_bytes(8, "little") + b"{}"])
def test_a_style_file_that_a_power_cut_damaged_can_be_stored_again(damage, tmp_path):
    store, tokens = StyleStore(tmp_path), [np.ones((6, 8), np.float32)]
    entry = store.add("Ink", tokens, (1.0,), "uso-tiny", "f", Image.new("RGB", (8, 8)))
    other = store.add("Silk", [np.zeros((6, 8), np.float32)], (1.0,), "uso-tiny", "f", Image.new("RGB", (8, 8)))
    whole = tmp_path / "exported"
    whole.write_bytes(store.path(entry.sha256).read_bytes())
    store.path(entry.sha256).write_bytes(damage)
    (tmp_path / f".{'0' * 16}.part").write_bytes(b"half")
    again = StyleStore(tmp_path)
    assert again.entries() == [other]
    assert not list(tmp_path.glob("*.part"))
    assert again.take_in(whole).sha256 == entry.sha256
    assert {each.name for each in again.entries()} == {"Ink", "Silk"}


def test_flipped_bytes_in_one_style_never_hide_the_others(tmp_path):
    store, chance = StyleStore(tmp_path), random.Random(0)
    one, other = (
        store.add(str(shade), [np.full((6, 8), shade, np.float32)], (1.0,), "uso-tiny", "f", Image.new("RGB", (8, 8)))
        for shade in range(2)
    )
    path = store.path(one.sha256)
    sound = path.read_bytes()
    for _ in range(300):
        data = bytearray(sound)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(min(len(data), 700))] = chance.randrange(256)
        path.write_bytes(data)
        assert other in store.entries()


def test_of_two_who_take_one_name_only_one_gets_it(tmp_path):
    store, image = StyleStore(tmp_path), Image.new("RGB", (8, 8))

    def add(shade: int) -> str:
        try:
            return store.add("Ink", [np.full((6, 8), shade, np.float32)], (1.0,), "uso-tiny", "f", image).name
        except RequestError as error:
            return error.key

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(add, range(8)))
    assert sorted(outcomes) == ["Ink", *["style_name_taken"] * 7]
    assert [entry.name for entry in store.entries()] == ["Ink"]


def test_a_style_that_cannot_be_deleted_is_reported(tmp_path, monkeypatch):
    store = StyleStore(tmp_path)
    entry = store.add("Ink", [np.ones((6, 8), np.float32)], (1.0,), "uso-tiny", "f", Image.new("RGB", (8, 8)))

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OutputError, match="cannot be deleted"):
        store.delete(entry.sha256)
    assert store.entries() == [entry]
