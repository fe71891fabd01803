"""What the page says while runs wait for each other."""

from __future__ import annotations

from uso_core.events import Queued, Step, Unread
from uso_core.request import GenerationRequest
from uso_core.runtime.engine import Engine, Job
from uso_core.runtime.executors import Work
from uso_core.settings import Settings
from uso_core.ui import text
from uso_core.ui.run import describe

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


def test_the_end_of_a_run_quotes_the_beginning_of_what_was_not_read():
    assert text.done(3.0, 7) == "Done in 3 s, seed 7."
    said = text.done(3.0, 7, Unread(end="owls  <b>" + "o" * 200))
    assert said.startswith("Done in 3 s, seed 7. The prompt is too long for the model; not read: “owls <b>ooo")
    assert said.endswith("ooo…”.")
    assert len(said) < 170
    assert text.done(3.0, 7, Unread(("zebra", "猫"))) == "Done in 3 s, seed 7. The model does not know: zebra 猫."
