"""Workers in other processes, without Ray: which one takes a request, and what one does for a caller that vanishes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import pytest

from tests.runtime.test_engine import SETTINGS, SLOW_STEPS, SMALL, image
from uso_core.catalog.models import get_model
from uso_core.errors import SettingsError
from uso_core.events import LAST, Cancelled, Done, Event, ImageReady, Step
from uso_core.request import LoRA
from uso_core.runtime.executors import Wish, Work, WorkerState
from uso_core.runtime.executors.carrier import Carrier
from uso_core.runtime.executors.pool import Member, Pool, chosen
from uso_core.runtime.executors.ray import planned
from uso_core.settings import Settings

STYLED = dataclasses.replace(SMALL, model="uso-tiny", styles=(image(1),))
OTHER = dataclasses.replace(SMALL, model="flux-dev", prompt="another prompt")
LOADED = WorkerState(get_model("uso-tiny"), "cpu", "float32", None)  # of which only the presence counts here
LEASE_SECONDS = 1.0


def member(*made: object, since: float = 0.0) -> Member:
    """A worker that carried out these requests."""
    one = Member(None, up=True, since=since)
    for request in made:
        one.remember(request)
        one.state = LOADED
    return one


def test_a_request_goes_to_its_model_then_to_its_encodings_then_to_the_one_idle_for_longest():
    empty, other, same = member(), member(OTHER), member(dataclasses.replace(STYLED, styles=(), prompt="new"))
    styled = member(STYLED, dataclasses.replace(STYLED, styles=(image(2),)))
    again = dataclasses.replace(STYLED, prompt="another day")
    assert chosen([empty, other, same, styled], again) is styled
    assert chosen([empty, other, same], again) is same
    assert chosen([empty, other], again) is empty
    assert chosen([other], again) is other
    assert chosen([member(since=2.0), longest := member(since=1.0)], again) is longest
    assert chosen([], again) is None


def test_a_worker_with_the_requests_loras_comes_before_one_with_its_images():
    lora = LoRA("ink.safetensors", "0" * 64, 0.8)
    with_lora = member(dataclasses.replace(STYLED, styles=(), prompt="new", loras=(lora,)))
    with_images = member(STYLED)
    assert chosen([with_images, with_lora], dataclasses.replace(STYLED, loras=(lora,))) is with_lora
    assert chosen([with_lora, with_images], STYLED) is with_images


def test_a_content_image_of_another_size_is_another_encoding():
    content = dataclasses.replace(STYLED, content=image(3))
    one, two = member(content), member(dataclasses.replace(content, content_size=32))
    assert chosen([one, two], content) is one
    assert chosen([one, two], dataclasses.replace(content, content_size=32)) is two


@pytest.fixture
def pool() -> Pool:
    ended: list[Member] = []
    made = Pool(lambda: Member(None, up=True), ended.append)
    made.capacity = 2
    return made


def test_a_helper_is_called_back_for_a_new_request_and_another_model_is_not_dropped_to_help(pool):
    main = pool.claim(Work(STYLED), "a")
    main.remember(STYLED)
    main.state = LOADED
    assert pool.borrow(Work(STYLED)) is None  # it is started, to help later
    helper = pool.borrow(Work(STYLED))
    assert helper.helping
    assert pool.claim(Work(OTHER), "b") is None
    assert (main.recalled, helper.recalled) == (False, True)
    pool.release(helper)
    assert pool.borrow(Work(STYLED)) is None  # the new request comes first
    assert pool.claim(Work(OTHER), "b") is helper
    helper.remember(OTHER)
    helper.state = LOADED
    pool.release(helper)
    assert pool.borrow(Work(STYLED)) is None
    assert pool.claim(Work(STYLED), "a") is helper  # a request of its own may


def test_another_model_gets_a_new_worker_while_there_is_room(pool):
    first = pool.claim(Work(STYLED), "a")
    first.remember(STYLED)
    first.state = LOADED
    pool.release(first)
    second = pool.claim(Work(OTHER), "b")
    assert second is not first
    assert pool.claim(Work(STYLED), "a") is first


def test_idle_workers_are_given_back_and_dead_ones_replaced(pool):
    one, two = pool.claim(Work(STYLED), "a"), pool.claim(Work(STYLED), "a")
    pool.release(one)
    one.since -= 100
    pool.give_back(60)
    assert pool.members == (two,)
    pool.bury(two)
    assert pool.members == ()
    assert pool.claim(Work(STYLED), "a") is not None


@pytest.mark.parametrize(
    ("held", "workers", "device", "count", "each"),
    [
        ({"GPU": 8.0, "CPU": 96.0}, "auto", "auto", 8, {"num_gpus": 1, "num_cpus": 1}),
        ({"GPU": 8.0, "CPU": 96.0}, "3", "auto", 3, {"num_gpus": 1, "num_cpus": 1}),
        ({"GPU": 2.0, "CPU": 8.0}, "5", "cuda", 2, {"num_gpus": 1, "num_cpus": 1}),
        ({"GPU": 8.0, "CPU": 4.0}, "auto", "auto", 8, {"num_gpus": 1, "num_cpus": 0}),
        ({"GPU": 2.0, "CPU": 8.0}, "auto", "cpu", 2, {"num_gpus": 0, "num_cpus": 4}),
        ({"CPU": 2.0}, "auto", "auto", 1, {"num_gpus": 0, "num_cpus": 2}),
        ({"CPU": 2.0}, "2", "auto", 2, {"num_gpus": 0, "num_cpus": 1}),
        ({"CPU": 2.0}, "64", "auto", 2, {"num_gpus": 0, "num_cpus": 1}),
    ],
)
def test_no_more_workers_are_planned_than_the_cluster_can_hold(held, workers, device, count, each):
    assert planned(held, workers, device) == (count, each)


@pytest.mark.parametrize("workers", ["0", "-1", "many", "1.5", "²", ""])
def test_a_wrong_number_of_workers_is_named(workers):
    with pytest.raises(SettingsError) as caught:
        Settings(workers=workers)
    assert (caught.value.key, caught.value.values) == ("workers_value", {"workers": workers})


@pytest.mark.parametrize(
    ("key", "given"),
    [("only_of_ray", {"workers": "2"}), ("only_of_ray", {"idle_minutes": 5.0}),
     ("device_of_ray", {"executor": "ray", "device": "cuda:1"})],
)  # fmt: skip
def test_what_would_have_no_effect_is_named(key, given):
    with pytest.raises(SettingsError) as caught:
        Settings(**given)
    assert caught.value.key == key
    Settings(**{**given, "executor": "ray", "device": "cuda"})


@pytest.mark.parametrize("address", ["ray://10.0.0.1:10001", "10.0.0.1", "auto", "http://10.0.0.1:6379"])
def test_an_address_that_is_not_a_heads_is_named(address):
    with pytest.raises(SettingsError) as caught:
        Settings(ray_address=address)
    assert caught.value.key == "ray_address"


def test_without_ray_its_requirements_are_named(monkeypatch):
    from uso_core.runtime.engine import Engine

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError) as caught:
        Engine(dataclasses.replace(SETTINGS, executor="ray"))
    assert caught.value.key == "ray_missing"


@pytest.fixture(scope="module")
def carrier() -> Carrier:
    return Carrier(SETTINGS)


def followed(carrier: Carrier, key: str) -> Iterator[Event]:
    """The events of a work up to its last one."""
    until = time.monotonic() + 240
    while time.monotonic() < until:
        for event in carrier.follow(key, 0.2).events:
            yield event
            if isinstance(event, LAST):
                return
    raise AssertionError("it did not end")


def begun(carrier: Carrier, key: str, request=SMALL, first: int = 0, end: int = 1) -> str:
    carrier.begin(key, Work(dataclasses.replace(request, model="uso-tiny")), first, end, LEASE_SECONDS)
    return key


def test_a_worker_makes_the_images_that_it_is_asked_for(carrier):
    events = list(followed(carrier, begun(carrier, "a", dataclasses.replace(SMALL, images=4), 1, 3)))
    ready = [event for event in events if isinstance(event, ImageReady)]
    assert [(event.index, event.result.seed) for event in ready] == [(1, 8), (2, 9)]
    assert isinstance(events[-1], Done)
    assert carrier.follow("a", 0.0).state.model.name == "uso-tiny"


def test_a_caller_that_vanishes_frees_its_worker(carrier):
    list(followed(carrier, begun(carrier, "warm")))
    key = begun(carrier, "b", dataclasses.replace(SLOW_STEPS, steps=500))
    next(event for event in followed(carrier, key) if isinstance(event, Step))
    vanished = time.monotonic()
    while carrier.running:
        assert time.monotonic() - vanished < 60, "nobody stopped it"
        time.sleep(0.01)
    assert LEASE_SECONDS * 0.8 < time.monotonic() - vanished < LEASE_SECONDS + 15.0  # all 500 steps take minutes
    assert isinstance(list(followed(carrier, key))[-1], Cancelled)  # should it come back after all
    assert carrier.follow(key, 0.0).events == (Cancelled(),)


def test_stop_comes_by_message(carrier):
    key = begun(carrier, "c", dataclasses.replace(SLOW_STEPS, steps=500))
    events = followed(carrier, key)
    next(event for event in events if isinstance(event, Step))
    carrier.ask(key, Wish.STOP)
    assert isinstance(list(events)[-1], Cancelled)
    carrier.ask("unknown", Wish.STOP)


def test_whatever_happens_to_one_work_the_next_has_its_turn(carrier, monkeypatch):
    def fail(*arguments: object) -> Iterator[Event]:
        raise ImportError("half of a package")

    with monkeypatch.context() as once:
        once.setattr(carrier._executor, "run", fail)
        once.setattr(carrier._executor, "free", fail)
        carrier.free()
        (last,) = followed(carrier, begun(carrier, "d"))
    assert last.error.key == "internal"
    assert isinstance(list(followed(carrier, begun(carrier, "e")))[-1], Done)
