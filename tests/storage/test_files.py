"""Files on disk: names owned by one writer, locks, and the sentence for each way in which writing fails."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest

from uso_core.errors import OutputError
from uso_core.storage import files as module
from uso_core.storage.files import (
    LOCK,
    age_order,
    check_temporary_folder,
    check_writable,
    locked,
    reserve_path,
    sweep_parts,
    write_pair,
    write_whole,
)


@pytest.mark.skipif(os.name == "nt", reason="Windows bounds no file's size")
@pytest.mark.parametrize("large", ["image", "record"])
@pytest.mark.parametrize("there", [True, False])
def test_a_pair_is_written_whole_or_stays_as_it_was(large, there, tmp_path):
    import resource

    path, before = tmp_path / "cat.png", {}
    if there:
        write_pair(path, b"old image", {"grid": "old"})
        before = {each: each.read_bytes() for each in tmp_path.iterdir()}
    bound = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, bound[1]))  # as on a disk that is nearly full
    try:
        with pytest.raises(OutputError):
            write_pair(
                path, bytes(30_000 if large == "image" else 10), {"new": "x" * (30_000 if large == "record" else 1)}
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, bound)
    assert {each: each.read_bytes() for each in tmp_path.iterdir()} == before


def test_an_image_that_cannot_take_its_name_leaves_the_old_record(tmp_path):
    path = tmp_path / "cat.png"
    path.mkdir()
    (path / "in the way").touch()
    path.with_suffix(".json").write_text('{"old": 1}')
    with pytest.raises(OutputError):
        write_pair(path, b"new image", {"new": 1})
    assert path.with_suffix(".json").read_text() == '{"old": 1}'
    assert len(list(tmp_path.iterdir())) == 2


def test_a_name_is_given_only_once_even_without_a_lock(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: reserve_path(tmp_path, 7, 1), range(80)))
    assert len(set(paths)) == 80
    assert all(path.with_suffix(".json").is_file() for path in paths)


def test_an_image_that_lost_its_json_keeps_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "datetime", type("Still", (), {"now": staticmethod(lambda: datetime(2026, 1, 2))}))
    lone = tmp_path / "20260102-000000-7-000001.png"
    lone.touch()
    assert reserve_path(tmp_path, 7, 1).name == "20260102-000000-7-000002.png"
    assert [path.name for path in tmp_path.glob("*.json")] == ["20260102-000000-7-000002.json"]


def test_images_sort_by_sequence_and_older_ones_come_first():
    names = [
        "20260102-000000-7.png", "20260102-000000-7-1.png", "20270101-000000-123456.png",
        "20200101-000000-5-000001.png", "20190101-000000-5-000002.png", "20180101-000000-5-1000000.png",
    ]  # fmt: skip
    assert [path.name for path in sorted(map(Path, reversed(names)), key=age_order)] == [
        "20260102-000000-7.png", "20260102-000000-7-1.png", "20270101-000000-123456.png", *names[3:],
    ]  # fmt: skip


def test_the_lock_is_exclusive_and_waiting_has_an_end(tmp_path):
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(tmp_path):
            inside.set()
            leave.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    assert inside.wait(10)
    with pytest.raises(OutputError, match="Another program"), locked(tmp_path, seconds=0.05):
        pass
    leave.set()
    holder.join()
    with locked(tmp_path, seconds=0.05) as alone:
        assert alone


@pytest.mark.parametrize("reason", [NotImplementedError(), OSError(errno.ENOLCK, "No locks available")])
def test_where_there_are_no_locks_only_old_leftovers_go(reason, tmp_path, monkeypatch):
    def refuse(*arguments: object, **options: object) -> None:
        raise reason

    monkeypatch.setattr(module.FileLock, "acquire", refuse)
    young, old = tmp_path / f".{'0' * 16}.part", tmp_path / f".{'1' * 16}.part"
    for path in (young, old):
        path.touch()
    os.utime(old, (0, 0))
    with locked(tmp_path) as alone:
        sweep_parts([tmp_path], alone)
    assert not alone
    assert list(tmp_path.iterdir()) == [young]


SENTENCES = {
    errno.ENOSPC: "disk is full",
    errno.EDQUOT: "disk is full",
    errno.EROFS: "cannot be written to",
    errno.EACCES: "cannot be written to",
    errno.EIO: "Input/output error",
}


@pytest.mark.parametrize("number", SENTENCES)
def test_each_way_to_fail_has_its_sentence(number, tmp_path, monkeypatch):
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module.os, "fsync", fail)
    for attempt in (lambda: write_whole(tmp_path / "a.png", lambda file: file.write(b"x")),
                    lambda: check_writable(tmp_path)):  # fmt: skip
        with pytest.raises(OutputError, match=SENTENCES[number]) as caught:
            attempt()
        assert str(tmp_path) in caught.value.message
        assert "port" not in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_created_and_nothing_is_left_in_it(tmp_path):
    check_writable(tmp_path / "new" / "output")
    assert list((tmp_path / "new" / "output").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file"):
        check_writable(tmp_path / "file")


def test_a_machine_without_a_temporary_folder_is_reported(monkeypatch):
    check_temporary_folder()

    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(OutputError, match="temporary files") as caught:
        check_temporary_folder()
    assert "TMPDIR" in caught.value.hint


def test_a_folder_that_cannot_be_locked_for_writing_is_named(tmp_path):
    (tmp_path / LOCK).mkdir()
    with pytest.raises(OutputError, match=tmp_path.name), locked(tmp_path):
        pass
