"""The queue: visitors take turns, everything has a limit, and positions cost nothing unless somebody asks."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from PIL import Image

from uso_core.errors import RequestError, SettingsError
from uso_core.events import Cancelled, Done, Event, Failed, Queued, Step
from uso_core.images import open_image
from uso_core.request import GenerationRequest
from uso_core.runtime.engine import Engine
from uso_core.runtime.executors import Wish, Work, WorkerState
from uso_core.settings import Settings

ALONE = Settings(name="uso-tiny", device="cpu")
OPEN = dataclasses.replace(ALONE, host="0.0.0.0")
REQUEST = GenerationRequest(prompt="a", width=64, height=64, steps=2, seed=1)


class Gate:
    """An executor that computes nothing: it holds each request until released, and remembers their order."""

    slots = 1

    def __init__(self) -> None:
        self.order: list[str] = []
        self.opened = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)

    def run(self, work: Work, wish: Callable[[], Wish | None]) -> Iterator[Event | None]:
        self.order.append(work.request.prompt)
        self.begun.release()
        while not self.opened.acquire(timeout=0.01):
            yield None
            if wish() is Wish.STOP:
                yield Cancelled()
                return
        yield Step(1, 1, 1, 1, 0.1)
        yield Done()

    def state(self) -> tuple[WorkerState | None, ...]:
        return (None,)

    def places(self) -> tuple[str, ...]:
        return ()

    def trouble(self) -> None:
        return None

    def get_ready(self) -> None: ...

    def free(self) -> None: ...

    def close(self) -> None: ...


def asked(prompt: str) -> GenerationRequest:
    return dataclasses.replace(REQUEST, prompt=prompt)


def test_visitors_take_turns():
    gate = Gate()
    engine = Engine(ALONE, gate)
    jobs = [engine.submit(asked(f"a{number}"), visitor="a") for number in range(4)]
    gate.begun.acquire()  # the first one is running
    jobs += [engine.submit(asked(f"{visitor}{number}"), visitor=visitor) for visitor in "bc" for number in range(2)]
    for _ in jobs:
        gate.opened.release()
    for job in jobs:
        assert job.wait(30)
    assert gate.order[0] == "a0"
    assert gate.order.index("b0") < gate.order.index("a2")
    assert gate.order.index("c0") < gate.order.index("a2")
    for visitor in "abc":
        own = [prompt for prompt in gate.order if prompt.startswith(visitor)]
        assert own == sorted(own)  # a visitor's own keep their order


def test_positions_follow_the_turns_and_are_looked_up_on_request():
    gate = Gate()
    engine = Engine(ALONE, gate)
    first = engine.submit(asked("a0"), visitor="a")
    gate.begun.acquire()
    second, third = (engine.submit(asked(f"a{number}"), visitor="a") for number in (1, 2))
    other = engine.submit(asked("b0"), visitor="b")
    assert [next(job.events(0.0)) for job in (second, third, other)] == [Queued(1), Queued(2), Queued(2)]
    assert next(third.events(0.0)) == Queued(3)  # the other visitor's came between
    second.cancel()
    assert engine.status().waiting == 2
    first.cancel()
    gate.opened.release(4)
    assert other.wait(30)


@pytest.mark.parametrize(
    ("settings", "most"),
    [(OPEN, 8), (dataclasses.replace(OPEN, max_waiting_each=3), 3), (dataclasses.replace(ALONE, max_waiting=20), 20)],
)
def test_the_queue_refuses_beyond_a_length(settings, most):
    gate = Gate()
    engine = Engine(settings, gate)
    jobs = [engine.submit(asked("first"), visitor="a")]
    gate.begun.acquire()
    jobs += [engine.submit(asked(str(number)), visitor="a") for number in range(most)]
    with pytest.raises(RequestError) as refused:
        engine.submit(asked("one more"), visitor="a")
    assert refused.value.key in ("queue_full", "queue_full_for_one")
    assert refused.value.values["count"] == most
    jobs[-1].cancel()  # there is room again
    engine.submit(asked("one more"), visitor="a")
    engine.close()


def test_with_a_thousand_waiting_the_last_one_hears_of_it_at_once():
    """Submitting and asking cost about the same however many requests wait."""
    gate = Gate()
    engine = Engine(dataclasses.replace(ALONE, max_waiting=5000), gate)
    began = time.monotonic()
    jobs = [engine.submit(asked(str(number)), visitor=str(number % 50)) for number in range(2000)]
    assert time.monotonic() - began < 20
    assert isinstance(next(jobs[-1].events(0.0)), Queued)
    engine.close()
    assert all(isinstance(list(job.events())[-1], Cancelled) for job in jobs)


def test_an_open_server_limits_the_work_of_a_request():
    engine, large = Engine(OPEN, Gate()), dataclasses.replace(REQUEST, width=2048, height=2048, steps=100, images=64)
    with pytest.raises(RequestError) as refused:
        engine.check(large)
    assert refused.value.key == "too_much_work"
    assert refused.value.values["work"] > refused.value.values["most"]
    Engine(ALONE, Gate()).check(large)
    wide = open_image(Image.new("RGB", (64, 32)), "wide.png")
    few = dataclasses.replace(REQUEST, width=512, height=512, steps=2, images=1, content=wide, content_size=512)
    Engine(dataclasses.replace(OPEN, max_work=2 * (512 * 512 + 512 * 256) / 1e6), Gate()).check(few)
    with pytest.raises(RequestError) as refused:  # each step works on the content too
        Engine(dataclasses.replace(OPEN, max_work=0.78), Gate()).check(few)
    assert refused.value.values == {"work": 0.79, "most": 0.78}
    Engine(dataclasses.replace(OPEN, max_work=1e6), Gate()).check(large)


def test_a_request_that_takes_too_long_is_stopped():
    gate = Gate()
    engine = Engine(dataclasses.replace(ALONE, max_minutes=0.001), gate)
    last = list(engine.submit(asked("long")).events())[-1]
    assert isinstance(last, Failed)
    assert last.error.key == "took_too_long"


def test_the_log_names_no_prompt(caplog):
    gate = Gate()
    gate.opened.release(1)
    engine = Engine(dataclasses.replace(ALONE, log=True), gate)
    with caplog.at_level(logging.INFO, logger="uso_core.runtime.engine"):
        list(engine.submit(asked("my secret")).events())
        engine.close()
    (record,) = caplog.records
    assert record.getMessage().startswith("uso-tiny 64x64 2 steps 1 images")
    assert record.getMessage().endswith("done")
    assert "secret" not in caplog.text


def test_limits_below_one_are_refused():
    with pytest.raises(SettingsError) as refused:
        dataclasses.replace(ALONE, max_waiting=0)
    assert refused.value.values["variable"] == "USO_MAX_WAITING"
