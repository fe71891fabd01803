"""What runs show and do not keep: each file goes when it is due, whatever else waits."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from PIL import Image

from uso_core.ui import temporary_files
from uso_core.ui.temporary_files import PassingImages

IMAGE = Image.new("RGB", (4, 4))


@pytest.fixture
def passing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PassingImages:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    return PassingImages()


def gone(path: str) -> bool:
    deadline = time.monotonic() + 120
    while Path(path).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not Path(path).exists()


def test_one_that_leaves_soon_does_not_wait_for_one_that_leaves_late(passing):
    late, soon = passing.preview("late", IMAGE), passing.preview("soon", IMAGE)
    passing.forget("late", after_seconds=600)
    passing.forget("soon", after_seconds=0.1)
    assert gone(soon)
    assert Path(late).exists()


def test_one_that_leaves_late_does_not_hold_up_one_before(passing):
    soon, late = passing.preview("soon", IMAGE), passing.preview("late", IMAGE)
    passing.forget("soon", after_seconds=0.2)
    passing.forget("late", after_seconds=0.6)
    assert gone(soon)
    assert gone(late)


def test_an_owner_who_leaves_takes_only_their_own(passing):
    mine, theirs = passing.preview("me", IMAGE), passing.preview("them", IMAGE)
    passing.forget("me")
    assert not Path(mine).parent.exists()
    assert Path(theirs).exists()


def test_a_copy_leaves_with_its_owner_and_the_kept_file_stays(passing, tmp_path):
    kept = tmp_path / "kept.png"
    IMAGE.save(kept)
    first, second = passing.copy("me", kept), passing.copy("you", kept)
    assert first.name == second.name == kept.name
    assert first.read_bytes() == kept.read_bytes()
    passing.forget("me")
    assert [each.exists() for each in (first, second, kept)] == [False, True, True]


def test_only_recent_previews_stay(passing, monkeypatch):
    first = passing.preview("me", IMAGE)
    second = passing.preview("me", IMAGE)
    assert Path(first).exists()
    monkeypatch.setattr(temporary_files, "PREVIEW_SECONDS", -1)
    third = passing.preview("me", IMAGE)
    assert [Path(each).exists() for each in (first, second, third)] == [False, False, True]
