"""The one recipe and its worker: what it yields, how it stops, what it leaves behind, and what an executor promises."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from tests.runtime.test_engine import SETTINGS, SMALL, image, images_of, listen
from uso_core.catalog.models import get_model
from uso_core.errors import OutOfMemory, RequestError, UsoError
from uso_core.events import (
    LAST,
    Cancelled,
    Done,
    Encoding,
    Event,
    Failed,
    ImageReady,
    Loading,
    Queued,
    Skipped,
    Step,
    StylesReady,
)
from uso_core.model.pipeline import USOPipeline
from uso_core.request import GenerationRequest
from uso_core.runtime.engine import Engine
from uso_core.runtime.executors import Wish, Work, WorkerState
from uso_core.runtime.executors.local import LocalExecutor
from uso_core.runtime.generate import Events, generate
from uso_core.runtime.worker import Worker, guarded

TINY = get_model("uso-tiny")
REQUEST = dataclasses.replace(SMALL, model="uso-tiny")


@pytest.fixture(scope="module")
def worker() -> Worker:
    made = Worker(SETTINGS)
    list(made.run(Work(REQUEST)))
    return made


@pytest.fixture
def pipeline(worker: Worker) -> USOPipeline:
    assert worker.loaded is not None
    return worker.loaded.pipeline


def pixels(events: list[Event]) -> bytes:
    return b"".join(event.image.tobytes() for event in events if isinstance(event, ImageReady))


def test_the_recipe_yields_in_order(pipeline):
    events = list(generate(pipeline, TINY, dataclasses.replace(REQUEST, images=2)))
    assert [type(event) for event in events] == [Encoding, *([Step] * 4 + [ImageReady]) * 2]
    assert [event.result.seed for event in events if isinstance(event, ImageReady)] == [7, 8]


@pytest.mark.parametrize("steps_seen", [0, 1, 3])
def test_closing_stops_at_once_and_leaves_the_pipeline_clean(pipeline, steps_seen):
    before = pixels(list(generate(pipeline, TINY, REQUEST)))
    calls = 0
    step = pipeline.transformer.step

    def counted(*arguments, **named):
        nonlocal calls
        calls += 1
        return step(*arguments, **named)

    pipeline.transformer.step = counted
    try:
        events = generate(pipeline, TINY, dataclasses.replace(REQUEST, steps=50, seed=9))
        for _ in range(1 + steps_seen):  # the first event is of the encoding
            next(events)
        events.close()
        assert calls == steps_seen
        with pytest.raises(StopIteration):
            next(events)
    finally:
        del pipeline.transformer.step
    assert pixels(list(generate(pipeline, TINY, REQUEST))) == before


def test_a_skip_abandons_the_current_image(pipeline):
    events = generate(pipeline, TINY, dataclasses.replace(REQUEST, images=3))
    seen, wish = [], None
    while True:
        try:
            event = events.send(wish)
        except StopIteration:
            break
        seen.append(event)
        wish = Wish.SKIP if isinstance(event, Step) and (event.image, event.step) == (2, 2) else None
    assert [event.index for event in seen if isinstance(event, Skipped)] == [1]
    assert [event.index for event in seen if isinstance(event, ImageReady)] == [0, 2]
    assert sum(isinstance(event, Step) and event.image == 2 for event in seen) == 2


def test_the_recipe_and_the_call_are_the_same_steps(pipeline):
    request = dataclasses.replace(
        REQUEST, content=image(1), styles=(image(2), image(3)), content_strength=0.5, style_strengths=(1.0, 0.3)
    )
    (ready,) = (event for event in generate(pipeline, TINY, request) if isinstance(event, ImageReady))
    assert request.content is not None
    called = pipeline(
        request.prompt, request.content.image, [style.image for style in request.styles], request.width,
        request.height, request.steps, request.guidance, seed=request.seed, content_size=request.content_size,
        content_strength=0.5, style_strengths=(1.0, 0.3),
    ).images[0]  # fmt: skip
    assert ready.image.tobytes() == called.tobytes()


def test_the_registered_scheduler_steps(pipeline):
    """A user's own scheduler is used; one that cannot step flow matching is refused by name."""

    class Halved(FlowMatchEulerDiscreteScheduler):
        def step(self, model_output, *arguments, **named):
            return super().step(model_output / 2, *arguments, **named)

    def made() -> bytes:
        return pipeline("A red mug.", width=64, height=64, num_inference_steps=2, seed=1).images[0].tobytes()

    own, plain = pipeline.scheduler, made()
    try:
        pipeline._prepared = None
        pipeline.scheduler = Halved.from_config(own.config)
        assert made() != plain
        pipeline._prepared = None
        pipeline.scheduler = DDIMScheduler()
        with pytest.raises(RequestError) as refused:
            made()
        assert refused.value.values["name"] == "DDIMScheduler"
    finally:
        pipeline.scheduler, pipeline._prepared = own, None
    assert made() == plain


def test_sent_latents_replace_a_steps(pipeline):
    condition = pipeline.encode("A red mug.")
    prepared = pipeline.prepare(condition, GenerationRequest(width=64, height=64, steps=3).sampling)
    steps = pipeline.denoise(prepared, pipeline.generator(1))
    first = next(steps)
    zeros = torch.zeros_like(first.latents)
    steps.send(zeros)
    *_, last = steps
    assert not torch.equal(last.latents, pipeline.denoise_all(prepared, pipeline.generator(1), None))


def test_a_worker_resumes_a_stopped_loading_and_frees_what_it_has():
    made = Worker(SETTINGS)
    events = made.run(Work(REQUEST))
    for event in events:
        if isinstance(event, Loading) and event.message.values.get("role") == "transformer":
            break
    events.close()
    assert made.loaded is None
    roles = [event.message.values.get("role") for event in made.run(Work(REQUEST)) if isinstance(event, Loading)]
    assert "vae" not in roles
    assert made.loaded is not None
    made.free()
    assert made.loaded is None


def failing(error: BaseException) -> Events:
    yield Encoding()
    raise error


@pytest.mark.parametrize(
    ("error", "key"),
    [
        (MemoryError(), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "gpu_out_of_memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
            "out_of_memory",
        ),
        (RequestError("image_missing", name="a.png"), "image_missing"),
        (ZeroDivisionError("1/0"), "internal"),
    ],
)
def test_whatever_goes_wrong_is_the_last_event(error, key):
    first, last = list(guarded(failing(error)))
    assert isinstance(first, Encoding)
    assert isinstance(last, Failed)
    assert last.error.key == key
    assert isinstance(last.error, OutOfMemory) == ("memory" in key)


def test_what_crosses_to_a_worker_and_back_can_be_pickled(worker):
    work = Work(dataclasses.replace(REQUEST, content=image(1), styles=(image(2),)), previews=True)
    again = pickle.loads(pickle.dumps(work))
    assert again.request == work.request
    assert again.request.content.image.tobytes() == work.request.content.image.tobytes()
    events = list(guarded(worker.run(again)))
    assert [type(event) for event in pickle.loads(pickle.dumps(events))] == [type(event) for event in events]
    assert worker.loaded is not None
    assert pickle.loads(pickle.dumps(worker.loaded.state)) == worker.loaded.state


def test_styles_are_encoded_without_an_image():
    engine = Engine(SETTINGS)
    *_, ready, last = listen(engine.encode_styles(dataclasses.replace(SMALL, styles=(image(1), image(2)))))
    assert isinstance(last, Done)
    assert isinstance(ready, StylesReady)
    assert [tokens.dtype for tokens in ready.tokens] == [np.float32] * 2


class TwoSlots:
    """Two workers in this process, each with one request at a time: an executor as the engine sees it."""

    slots = 2

    def __init__(self) -> None:
        self._workers = [LocalExecutor(SETTINGS), LocalExecutor(SETTINGS)]
        self.most = 0
        self._busy: list[int] = []

    def run(self, work, wish):
        number = next(number for number in (0, 1) if number not in self._busy)
        self._busy.append(number)
        self.most = max(self.most, len(self._busy))
        try:
            yield from self._workers[number].run(work, wish)
        finally:
            self._busy.remove(number)

    def state(self) -> tuple[WorkerState | None, ...]:
        return tuple(state for worker in self._workers for state in worker.state())

    def places(self) -> tuple[str, ...]:
        return ()

    def trouble(self) -> None:
        return None

    def get_ready(self) -> None: ...

    def free(self) -> None:
        for worker in self._workers:
            worker.free()

    def close(self) -> None:
        self.free()


def test_an_engine_fills_every_slot_and_keeps_the_queue_itself():
    executor = TwoSlots()
    engine = Engine(SETTINGS, executor)
    long = dataclasses.replace(SMALL, steps=400)
    jobs = [engine.submit(dataclasses.replace(long, seed=seed)) for seed in (1, 2)]
    streams = [listen(job) for job in jobs]
    for stream in streams:
        assert any(isinstance(event, Step) for event in stream)
    third = engine.submit(SMALL)
    assert next(listen(third)) == Queued(2)
    assert (engine.status().running, engine.status().waiting) == (2, 1)
    jobs[0].cancel()
    assert images_of(list(listen(third)))
    assert executor.most == 2
    engine.close()
    assert isinstance(list(streams[1])[-1], Cancelled)
    with pytest.raises(UsoError) as closed:
        engine.submit(SMALL)
    assert closed.value.key == "engine_closed"


def test_closing_tells_everyone_who_waits():
    engine = Engine(SETTINGS)
    jobs = [engine.submit(dataclasses.replace(SMALL, steps=500)) for _ in range(3)]
    assert any(isinstance(event, Step) for event in listen(jobs[0]))
    engine.close()
    for job in jobs:
        last = [event for event in listen(job) if isinstance(event, LAST)]
        assert last == [Cancelled()]
    assert engine.status().loaded is None


def test_a_gpu_that_runs_out_of_memory_is_planned_for_less_and_the_request_goes_on(monkeypatch):
    """Once, from the image that was at work; the images are those of an undisturbed run."""
    made = Worker(SETTINGS)
    request = dataclasses.replace(REQUEST, images=3)
    undisturbed = pixels(list(made.run(Work(request))))
    limits, failed = [], []
    decode = USOPipeline.decode

    def short_once(self, *arguments):
        if not failed and limits == [] and made._made == 1:
            failed.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return decode(self, *arguments)

    monkeypatch.setattr(USOPipeline, "decode", short_once)
    planned = made.loaded.plan.peak_bytes
    events = list(made.run(Work(request)))
    assert pixels(events) == undisturbed
    assert [event.index for event in events if isinstance(event, ImageReady)] == [0, 1, 2]
    assert [event.message.key for event in events if isinstance(event, Loading)][0] == "loading_less_memory"
    assert made._settings.vram_limit == pytest.approx(0.85 * planned / 1e9)
    failed.clear()
    with pytest.raises(torch.OutOfMemoryError):  # a second time it is said
        list(made.run(Work(request)))
