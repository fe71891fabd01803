"""Files that nobody keeps: gone at the end, swept after a kill, limited meanwhile; those of living processes stay."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from uso_core.errors import OutputError
from uso_core.settings import ROOT
from uso_core.storage.scratch import BOUND_SECONDS, Scratch, bound

HOLD = (
    "import sys, time; from pathlib import Path; from uso_core.storage.scratch import Scratch\n"
    "scratch = Scratch.claim(Path(sys.argv[1])); (scratch.path / 'a').write_bytes(b'x' * 9)\n"
    "print(scratch.path, flush=True); time.sleep(60)"
)


def hold(base: Path) -> tuple[subprocess.Popen[str], Path]:
    """Another process with its own folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, base], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_nothing_is_left_at_the_end(tmp_path):
    scratch = Scratch.claim(tmp_path / "cache")
    assert list(scratch.path.iterdir()) == []
    (scratch.path / "deep").mkdir()
    (scratch.path / "deep" / "file").write_bytes(b"x")
    scratch.remove()
    assert list((tmp_path / "cache").iterdir()) == []


def test_leftovers_of_a_killed_process_are_swept_and_a_living_ones_stay(tmp_path):
    (living, theirs), (killed, left) = hold(tmp_path), hold(tmp_path)
    other = tmp_path / "uso-notes"
    other.mkdir()
    try:
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        own = Scratch.claim(tmp_path)
        assert not left.exists()
        assert (theirs / "a").exists()
        assert other.exists()  # it has no lock of ours
        own.remove()
    finally:
        living.kill()
        living.wait()


def test_the_oldest_go_when_there_is_too_much(tmp_path):
    old = time.time() - 2 * BOUND_SECONDS
    for number in range(4):
        path = tmp_path / str(number)
        path.write_bytes(b"x" * 100)
        os.utime(path, (old + number, old + number))
    (tmp_path / "fresh").write_bytes(b"x" * 300)
    bound(tmp_path, 550)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3", "fresh"]
    bound(tmp_path, 10)
    assert [path.name for path in tmp_path.iterdir()] == ["fresh"]  # it may still be shown


def test_folders_may_vanish_meanwhile(tmp_path):
    for number in range(500):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "file").write_bytes(b"x")
    other = threading.Thread(target=lambda: [shutil.rmtree(path) for path in list(tmp_path.iterdir())])
    other.start()
    while other.is_alive():
        bound(tmp_path, 10**6)
    other.join()
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError) as refused:
        Scratch.claim(tmp_path / "file" / "below")
    assert str(tmp_path) in refused.value.message
