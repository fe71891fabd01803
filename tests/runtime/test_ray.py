"""Two workers of a real Ray cluster on loopback: the images of one worker, in order, whatever dies or is stopped."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.runtime.test_engine import SETTINGS, SMALL, image, images_of, listen, wait_for
from uso_core.errors import WorkerError
from uso_core.events import Cancelled, Done, Event, Failed, ImageReady, Skipped, Step
from uso_core.request import GenerationRequest
from uso_core.runtime.engine import Engine, Job
from uso_core.settings import ROOT

pytestmark = pytest.mark.slow
RAY = dataclasses.replace(SETTINGS, executor="ray", workers="2")
MANY = dataclasses.replace(SMALL, images=6, steps=12, width=128, height=128, styles=(image(1),), content=image(2))
LONG = dataclasses.replace(SMALL, steps=500, width=256, height=256)
SOON = 15.0  # seconds: at once, on a machine that does much else


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    home = tmp_path_factory.mktemp("home")  # of someone who has used Ray, which left its token there
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("0" * 64)
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("HOME", str(home))
        yield from started()


def started() -> Iterator[Engine]:
    made = Engine(RAY)
    made.get_ready()
    list(listen(made.submit(dataclasses.replace(MANY, images=2))))
    until = time.monotonic() + 240
    while len(loaded(made)) < 2 and time.monotonic() < until:  # both
        list(listen(made.submit(dataclasses.replace(MANY, images=4, steps=2))))
    yield made
    made.close()


def loaded(engine: Engine) -> list[object]:
    return [state for state in engine.status().workers if state is not None]


@pytest.fixture(scope="module")
def alone() -> list[bytes]:
    """The pixels of the same images made in one process."""
    return [each.tobytes() for each in images_of(list(listen(Engine(SETTINGS).submit(MANY))))]


def process_at_work(engine: Engine, index: int) -> int:
    """The process id of a worker, by its place in the pool."""
    import ray

    member = engine._executor.pool.members[index]  # type: ignore[attr-defined]
    return ray.get(member.actor.__ray_call__.remote(lambda carrier: os.getpid()))


def pixels(events: list[Event]) -> list[bytes]:
    return [each.tobytes() for each in images_of(events)]


def idle(engine: Engine, seconds: float = 60.0) -> bool:
    until = time.monotonic() + seconds
    while any(member.busy for member in engine._executor.pool.members):  # type: ignore[attr-defined]
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def test_the_images_of_one_request_are_spread_and_arrive_in_order_with_the_same_pixels(engine, alone):
    job = engine.submit(MANY)
    events, most = [], 0
    for event in listen(job):
        events.append(event)
        most = max(most, sum(member.busy for member in engine._executor.pool.members))
    assert most == 2
    assert [event.index for event in events if isinstance(event, ImageReady)] == list(range(6))
    assert pixels(events) == alone
    assert engine.status().places == (os.uname().nodename,) * 2
    assert [state.model.name for state in engine.status().workers] == ["uso-tiny"] * 2


def test_stop_and_skip_go_by_message(engine):
    job = engine.submit(LONG)
    wait_for(job, Step)
    began = time.monotonic()
    job.cancel()
    assert isinstance(list(listen(job))[-1], Cancelled)
    assert time.monotonic() - began < SOON  # a step of a part of a second, and 0.5 s; all steps take a minute
    assert idle(engine)

    job = engine.submit(dataclasses.replace(LONG, images=2, steps=40))
    events: list[Event] = []
    for event in listen(job):
        events.append(event)
        if isinstance(event, Step) and event.image == 1 and not any(isinstance(each, Step) for each in events[:-1]):
            job.skip()
    assert [event.index for event in events if isinstance(event, Skipped)] == [0]
    assert [event.index for event in events if isinstance(event, ImageReady)] == [1]


def test_a_new_request_gets_a_worker_that_only_helps(engine):
    long = engine.submit(dataclasses.replace(MANY, images=12, steps=40))
    wait_for(long, Step)
    until = time.monotonic() + 30
    while not any(member.helping for member in engine._executor.pool.members) and time.monotonic() < until:
        time.sleep(0.01)
    short = engine.submit(SMALL, visitor="another")
    assert isinstance(list(listen(short))[-1], Done)
    assert not long._ended.is_set()
    long.cancel()
    assert isinstance(list(listen(long))[-1], Cancelled)


def test_a_caller_that_leaves_frees_its_workers(engine):
    from uso_core.runtime.executors import Work

    events = engine._executor.run(Work(dataclasses.replace(LONG, model="uso-tiny")), lambda: None)
    next(event for event in events if isinstance(event, Step))
    events.close()
    assert idle(engine, SOON)
    began = time.monotonic()
    assert isinstance(list(listen(engine.submit(SMALL)))[-1], Done)
    assert time.monotonic() - began < SOON


def test_a_killed_worker_loses_nothing(engine, alone):
    events: list[Event] = []
    killed = 0
    for event in listen(engine.submit(MANY)):
        events.append(event)
        if isinstance(event, Step) and not killed:
            busy = [place for place, each in enumerate(engine._executor.pool.members) if each.busy]
            killed = process_at_work(engine, busy[0])
            os.kill(killed, signal.SIGKILL)
    assert killed
    assert [event.index for event in events if isinstance(event, ImageReady)] == list(range(6))
    assert pixels(events) == alone


def kill_each_worker(engine: Engine, job: Job) -> Event:
    """Kills whoever works at the request's one image, twice; returns the last event."""
    for event in job.events(0.5):
        if isinstance(event, Step) and event.step == 2:
            busy = [number for number, each in enumerate(engine._executor.pool.members) if each.busy]  # type: ignore[attr-defined]
            os.kill(process_at_work(engine, busy[0]), signal.SIGKILL)
    assert event is not None
    return event


def test_a_request_that_loses_its_worker_twice_ends_with_a_sentence(engine):
    last = kill_each_worker(engine, engine.submit(dataclasses.replace(LONG, images=1)))
    assert isinstance(last, Failed)
    assert isinstance(last.error, WorkerError)
    assert (last.error.key, last.error.values["times"]) == ("worker_lost", 2)


def test_no_process_survives_a_program_that_is_killed():
    code = (
        "import sys, time\n"
        "from uso_core.runtime.executors.loopback import Loopback\n"
        "cluster = Loopback()\n"
        "print(cluster._keeper.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    program = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    keeper = int(program.stdout.readline())
    assert group_of(keeper)
    program.kill()
    program.wait()
    until = time.monotonic() + 60
    while (left := group_of(keeper)) and time.monotonic() < until:
        time.sleep(0.1)
    assert left == []


def group_of(leader: int) -> list[str]:
    """The living processes of a process group."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat=,comm="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    return [row[2] for row in rows if int(row[0]) == leader and not row[1].startswith("Z")]


def test_a_cluster_that_nobody_answers_for_is_named():
    engine = Engine(dataclasses.replace(RAY, ray_address="127.0.0.1:9"))
    last = list(listen(engine.submit(GenerationRequest(prompt="a", width=64, height=64))))[-1]
    assert isinstance(last, Failed)
    assert (last.error.key, last.error.values["address"]) == ("cluster_unreachable", "127.0.0.1:9")
    engine.close()
