"""What the page says while runs wait for each other; and how long they go on without it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from uso_core.errors import OutputError
from uso_core.events import Queued, Step, Unread
from uso_core.request import GenerationRequest, Result
from uso_core.runtime.engine import Engine, Job
from uso_core.runtime.executors import Work
from uso_core.settings import Settings
from uso_core.ui import text
from uso_core.ui.run import Run, Runs, Sessions, describe, follow

ENGINE = Engine(Settings(name="uso-tiny", device="cpu"))  # idle: nothing is submitted
FIRST, SECOND = (Job(Work(GenerationRequest(), previews=True), ENGINE) for _ in range(2))
STEP = Step(3, 16, 1, 1, 0.5)


def words(*arguments) -> str:
    status = describe(*arguments)
    assert status is not None
    return status["text"]


def test_a_job_that_waits_behind_its_own_page_leaves_the_line_to_the_running_one():
    assert describe(Queued(1), SECOND, [FIRST, SECOND]) is None
    assert words(Queued(2), FIRST, [FIRST, SECOND]) == "Waiting: 2 ahead of you."
    assert words(Queued(1), FIRST) == "Waiting: 1 ahead of you."


def test_the_running_job_says_how_many_more_wait():
    assert words(STEP, FIRST, [FIRST]) == "Step 3 of 16, 0.50 s per step, 6 s left."
    assert words(STEP, FIRST, [FIRST, SECOND]).endswith("6 s left. 1 more of yours is waiting.")
    assert words(STEP, FIRST, [FIRST, SECOND, SECOND]).endswith("2 more of yours are waiting.")


def test_the_bar_counts_all_images():
    steps = [describe(Step(step, 4, image, 3, 0.5), FIRST)["percent"] for image in (1, 2, 3) for step in (2, 4)]
    assert steps == [17, 33, 50, 67, 83, 100]


def test_the_end_of_a_run_quotes_the_beginning_of_what_was_not_read():
    assert text.done(3.0, 7) == "Done in 3 s, seed 7."
    said = text.done(3.0, 7, Unread(end="owls  <b>" + "o" * 200))
    assert said.startswith("Done in 3 s, seed 7. The prompt is too long for the model; not read: “owls <b>ooo")
    assert said.endswith("ooo…”.")
    assert len(said) < 170
    assert text.done(3.0, 7, Unread(("zebra", "猫"))) == "Done in 3 s, seed 7. The model does not know: zebra 猫."


MANY_STEPS = GenerationRequest(prompt="a boat on a lake", width=64, height=64, steps=100, seed=3, images=8)
GRACE = 0.3  # seconds


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    working = Engine(Settings(name="uso-tiny", device="cpu"))
    yield working
    working.close()


def begun(engine: Engine, sessions: Sessions, **options) -> tuple[Run, Job]:
    """A run of the session "first" and its job, once its first step is reported."""

    def keep(image: Image.Image, result: Result) -> Path:
        return Path(f"{result.seed}.png")

    run = Run(sessions, "first", MANY_STEPS.prompt, **options)
    job = engine.submit(MANY_STEPS)
    run.start(run.follow(job, keep))
    next(update for update in run.updates() if update is not None and "of 8" in update.status["text"])
    return run, job


def test_a_run_ends_some_time_after_its_page_is_left(engine):
    sessions = Sessions(GRACE)
    sessions.adopt("first", "page")
    run, job = begun(engine, sessions)
    sessions.leave("first")
    assert job.wait(60)
    assert job.cancelled
    assert len(run.paths) < 8
    assert sessions.jobs("page") == []


def test_a_page_that_is_loaded_again_in_time_sees_its_run_to_the_end(engine):
    sessions = Sessions(GRACE)
    sessions.adopt("first", "page")
    run, job = begun(engine, sessions)
    sessions.adopt("second", "page")  # often before the browser's old session is noticed to be gone
    sessions.leave("first")
    time.sleep(3 * GRACE)
    assert sessions.jobs("second") == [job]
    assert not job.cancelled
    assert [update for update in run.updates() if update is not None][-1].status["text"].startswith("Done in")
    assert [path.stem for path in run.paths] == [str(MANY_STEPS.seed + place) for place in range(8)]
    assert run.seen


def test_a_run_that_is_ended_before_its_job_begins_makes_nothing(engine):
    run = Run(Sessions(), "page", "")
    run.end()
    job = engine.submit(MANY_STEPS)
    run.start(run.follow(job, lambda *_: Path()))
    assert job.wait(60)
    assert job.cancelled
    assert run.paths == []


@pytest.mark.parametrize("lasting", [True, False])
def test_a_job_that_comes_after_the_end_of_its_session_ends_with_it(engine, lasting):
    """A click that is dealt with after the page is gone, or the next cell of a private grid."""
    sessions = Sessions(1000.0)
    sessions.adopt("first", "page")
    sessions.leave("first")
    job = engine.submit(MANY_STEPS)
    sessions.add("first", job, lasting)
    assert job.cancelled is not lasting
    job.cancel()
    assert job.wait(60)


@pytest.mark.parametrize("adopted", [True, False])
def test_what_keeps_nothing_ends_with_its_session(engine, adopted):
    sessions = Sessions(1000.0)
    if adopted:
        sessions.adopt("first", "page")
    run, job = begun(engine, sessions, lasting=False)
    if adopted:
        sessions.adopt("second", "page")
    sessions.leave("first")
    assert job.cancelled
    assert job.wait(60)


def test_a_choice_outlives_the_session_that_made_it_but_not_the_page():
    sessions = Sessions(GRACE)
    sessions.adopt("first", "page")
    sessions.look("first", "a.png")
    sessions.adopt("second", "page")
    sessions.leave("first")  # noticed late
    assert (sessions.looking("second"), sessions.looking("other")) == ("a.png", None)
    sessions.leave("second")
    assert sessions.looking("page") is None


def test_a_page_that_is_loaded_again_shows_what_is_still_there(tmp_path):
    runs, paths = Runs(), [tmp_path / f"{number}.png" for number in range(3)]
    for path in paths:
        path.touch()
        runs.made("page", str(path))
    paths[2].unlink()  # deleted in the history, or private and its session ended
    assert runs.made("page") == [str(path) for path in paths[:2]]
    assert runs.made("other") == []


def test_an_image_that_cannot_be_kept_says_by_which_seed_it_comes_again(engine: Engine, tmp_path: Path) -> None:
    def full(image: Image.Image, result: Result) -> Path:
        raise OutputError("disk_full", hint="make_room", folder=tmp_path)

    job = engine.submit(dataclasses.replace(MANY_STEPS, steps=1, images=1))
    with pytest.raises(OutputError) as caught:
        list(follow(job, Sessions(), "page", full))
    assert (caught.value.key, caught.value.values["seed"]) == ("image_unsaved", 3)
    assert caught.value.hint_key == "make_room"
