"""The engine on the embedded model: what a caller hears, in which order, and what cancelling leaves behind."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.runtime.test_loras import ATTENTION, write_lora
from uso_core import images
from uso_core.catalog.locate import find_weights
from uso_core.catalog.loras import named_lora
from uso_core.catalog.models import get_model
from uso_core.errors import InternalError, OutOfMemory, RequestError, SettingsError, UsoError, WeightsError
from uso_core.events import Cancelled, Done, Encoding, Event, Failed, ImageReady, Loading, Queued, Skipped, Step, Unread
from uso_core.images import open_image
from uso_core.model.pipeline import USOPipeline
from uso_core.request import GenerationRequest, InputImage, StoredStyle
from uso_core.runtime.engine import Engine, Job
from uso_core.runtime.load import load
from uso_core.settings import ROOT, Settings

SETTINGS = Settings(name="uso-tiny", device="cpu", dtype="float32")
SMALL = GenerationRequest(prompt="a red house by the sea", width=64, height=64, steps=4, seed=7, content_size=64)
LONG = dataclasses.replace(SMALL, steps=500)
SLOW_STEPS = dataclasses.replace(SMALL, width=512, height=512, steps=100)  # a step takes long beside a thread's wake-up
PATIENCE_SECONDS = 240.0
AT_ONCE = 0.0  # patience that finds only what has been reported already


class RememberingEngine(Engine):
    """An engine that can be cleared of what a test left behind, so that failures do not spread."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._submitted: list[Job] = []

    def submit(self, request: GenerationRequest, previews: bool = False) -> Job:
        self._submitted.append(job := super().submit(request, previews))
        return job

    def clear(self) -> None:
        while self._submitted:
            self._submitted.pop().cancel()


@pytest.fixture(scope="module")
def module_engine() -> RememberingEngine:
    return RememberingEngine(SETTINGS)


@pytest.fixture
def engine(module_engine: RememberingEngine) -> Iterator[Engine]:
    yield module_engine
    module_engine.clear()
    run(module_engine, SMALL)  # idle and loaded again, whatever happened


@pytest.fixture
def eager_switching() -> Iterator[None]:
    """Threads switch as often as possible, to expose races."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def listen(job: Job) -> Iterator[Event]:
    """The events of a job; fails if nothing is reported for too long."""
    for event in job.events(PATIENCE_SECONDS):
        assert event is not None, f"nothing heard for {PATIENCE_SECONDS:.0f} s"
        yield event


def wait_for(job: Job, kind: type[Event]) -> Event:
    """Reads until an event of this kind."""
    heard = []
    for event in listen(job):
        if isinstance(event, kind):
            return event
        heard.append(type(event).__name__)
    raise AssertionError(f"no {kind.__name__} among {heard}")


def told_already(job: Job) -> list[Event]:
    """Events that the job has reported and nobody has read yet."""
    events: list[Event] = []
    for event in job.events(AT_ONCE):
        if event is None:
            break
        events.append(event)
    return events


def run(engine: Engine, request: GenerationRequest) -> list[Event]:
    return list(listen(engine.submit(request)))


def images_of(events: list[Event]) -> list[Image.Image]:
    assert isinstance(events[-1], Done), events[-1]
    return [event.image for event in events if isinstance(event, ImageReady)]


def image(seed: int, width: int = 96, height: int = 80) -> InputImage:
    """A blocky coloured image, different for each seed."""
    levels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return open_image(Image.fromarray(levels).resize((width, height), Image.Resampling.NEAREST), f"{seed}.png")


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def changed(one: Image.Image, two: Image.Image) -> float:
    """The share of levels in which two images differ."""
    return float((pixels(one) != pixels(two)).mean())


def test_a_first_run_reports_loading_and_a_second_does_not() -> None:
    engine = Engine(SETTINGS)
    first, second = run(engine, SMALL), run(engine, SMALL)

    loading = [event for event in first if isinstance(event, Loading)]
    fractions = [event.fraction for event in loading]
    assert fractions[0] == 0
    assert fractions[-1] == 1
    assert all(before <= after for before, after in pairwise(fractions))
    assert all(str(event.message) for event in loading)
    for role in ("transformer", "vae", "clip", "t5", "siglip", "projector"):
        assert any(event.message.values.get("role") == role for event in loading), role
    assert first[: len(loading)] == loading

    for events in (first[len(loading) :], second):
        assert [type(event) for event in events] == [Encoding, *[Step] * 4, ImageReady, Done]


def test_previews_are_an_eighth_of_the_size_and_change_no_pixel(engine: Engine) -> None:
    watched = list(listen(engine.submit(SMALL, previews=True)))
    previews = [event.preview for event in watched if isinstance(event, Step)]
    assert [preview and preview.size for preview in previews] == [(8, 8)] * 4
    assert len({preview.tobytes() for preview in previews if preview}) == 4
    assert images_of(watched) == images_of(run(engine, SMALL))


def test_skipping_leaves_one_image_out_and_continues(engine: Engine) -> None:
    request = dataclasses.replace(SMALL, images=3)
    job = engine.submit(request)
    events: list[Event] = []
    for event in job.events():
        assert event is not None
        events.append(event)
        if isinstance(event, Step) and (event.image, event.step) == (2, 1):
            job.skip()
    assert [event.index for event in events if isinstance(event, Skipped)] == [1]
    assert [event.result.seed - 7 for event in events if isinstance(event, ImageReady)] == [0, 2]
    assert isinstance(events[-1], Done)


def test_steps_count_up_and_say_how_long_is_left(engine: Engine) -> None:
    events = run(engine, dataclasses.replace(SMALL, images=2))
    steps = [event for event in events if isinstance(event, Step)]
    assert [(step.image, step.step) for step in steps] == [(image, step) for image in (1, 2) for step in (1, 2, 3, 4)]
    assert all((step.images, step.steps) == (2, 4) for step in steps)
    assert all(step.seconds_per_step > 0 for step in steps)
    assert all(step.preview is None for step in steps)
    assert steps[0].seconds_left == pytest.approx(7 * steps[0].seconds_per_step)
    assert steps[-1].seconds_left == 0


def test_several_images_equal_single_runs_with_consecutive_seeds(engine: Engine) -> None:
    request = dataclasses.replace(SMALL, content=image(1), styles=(image(2),))
    events = run(engine, dataclasses.replace(request, images=3))
    ready = [event for event in events if isinstance(event, ImageReady)]
    assert [event.index for event in ready] == [0, 1, 2]
    assert [event.result.seed for event in ready] == [7, 8, 9]
    assert sum(isinstance(event, Encoding) for event in events) == 1
    for event in ready:
        (single,) = images_of(run(engine, dataclasses.replace(request, seed=event.result.seed)))
        assert single.tobytes() == event.image.tobytes()
    assert ready[0].image.tobytes() != ready[1].image.tobytes()


def test_same_request_same_pixels_on_any_engine(engine: Engine) -> None:
    (one,) = images_of(run(engine, SMALL))
    (two,) = images_of(run(engine, SMALL))
    (other_engine,) = images_of(run(Engine(SETTINGS), SMALL))
    assert one.tobytes() == two.tobytes() == other_engine.tobytes()


def test_the_unread_end_of_a_prompt_is_reported_and_changes_nothing(engine: Engine) -> None:
    end = "beside  Zoë's two grey owls"  # some of which it does not know either
    request = dataclasses.replace(SMALL, prompt=f"{'a red car ' * 10}at {end} ")
    cut = wait_for(engine.submit(request), ImageReady)
    assert cut.unread == Unread(end=end)
    whole = wait_for(
        engine.submit(dataclasses.replace(request, prompt=request.prompt.removesuffix(f" {end} "))), ImageReady
    )
    assert whole.unread == Unread()
    assert whole.image.tobytes() == cut.image.tobytes()


def test_a_seed_is_drawn_on_submission_and_reported(engine: Engine) -> None:
    job = engine.submit(dataclasses.replace(SMALL, seed=None))
    ready = wait_for(job, ImageReady)
    assert job.request.seed is not None
    assert ready.result.seed == job.request.seed
    (again,) = images_of(run(engine, dataclasses.replace(SMALL, seed=ready.result.seed)))
    assert again.tobytes() == ready.image.tobytes()


def test_cancel_ends_within_one_step(engine: Engine) -> None:
    (before,) = images_of(run(engine, SMALL))
    job = engine.submit(SLOW_STEPS)
    wait_for(job, Step)
    job.cancel()
    rest = list(listen(job))
    assert isinstance(rest[-1], Cancelled)
    assert len(rest) <= 2  # the step that was under way, and the last event
    (after,) = images_of(run(engine, SMALL))
    assert after.tobytes() == before.tobytes()


def test_cancel_between_images_keeps_what_is_finished(engine: Engine) -> None:
    job = engine.submit(dataclasses.replace(SMALL, images=64))
    wait_for(job, ImageReady)
    job.cancel()
    rest = list(listen(job))
    assert isinstance(rest[-1], Cancelled)
    assert sum(isinstance(event, ImageReady) for event in rest) < 63


def test_cancel_after_the_end_does_nothing(engine: Engine) -> None:
    job = engine.submit(SMALL)
    assert isinstance(list(listen(job))[-1], Done)
    job.cancel()
    assert told_already(job) == []
    assert images_of(run(engine, SMALL))


def test_cancel_during_loading_then_a_run_that_succeeds() -> None:
    engine = Engine(SETTINGS)
    job = engine.submit(LONG)
    wait_for(job, Loading)
    job.cancel()
    rest = list(listen(job))
    assert isinstance(rest[-1], Cancelled)
    assert not any(isinstance(event, Encoding | Step | ImageReady) for event in rest)
    events = run(engine, SMALL)
    assert isinstance(events[0], Loading)
    assert images_of(events)


@pytest.mark.parametrize(("model", "guidance"), [("uso-tiny", 0.5), ("uso-tiny", 7.5), (None, 20.0)])
def test_a_guidance_that_the_model_was_not_trained_for_is_refused(
    engine: Engine, model: str | None, guidance: float
) -> None:
    with pytest.raises(RequestError, match="from 1 to 7"):
        engine.check(dataclasses.replace(SMALL, model=model, guidance=guidance))
    engine.check(dataclasses.replace(SMALL, model="flux-dev", guidance=guidance))


def test_a_stopped_loading_resumes_where_it_was() -> None:
    paths = find_weights(get_model("uso-tiny"), SETTINGS).require()
    parts: dict[str, object] = {}
    loading = load(paths, SETTINGS, get_model("uso-tiny"), parts)
    for event in loading:
        if event.message.values.get("role") == "transformer" and event.message.values["percent"] > 0:
            break
    loading.close()
    assert "vae" in parts
    assert "transformer" not in parts
    vae, roles = parts["vae"], []
    loading = load(paths, SETTINGS, get_model("uso-tiny"), parts)
    while True:
        try:
            roles.append(next(loading).message.values.get("role"))
        except StopIteration as end:
            pipeline, plan = end.value
            break
    assert pipeline.vae is vae
    assert plan.tier == "Embedded model"
    assert "transformer" in roles
    assert "vae" not in roles


def test_requests_run_in_order_and_never_two_at_once(engine: Engine) -> None:
    first = engine.submit(LONG)
    wait_for(first, Step)
    second, third = engine.submit(dataclasses.replace(LONG, seed=8)), engine.submit(dataclasses.replace(SMALL, seed=9))
    assert told_already(second)[-1] == Queued(1)
    assert told_already(third)[-1] == Queued(2)

    first.cancel()
    wait_for(second, Encoding)
    assert isinstance(told_already(first)[-1], Cancelled)  # the first had ended before the second began
    assert wait_for(third, Queued) == Queued(1)  # looked up while it waits
    second.cancel()
    wait_for(third, Encoding)
    assert isinstance(told_already(second)[-1], Cancelled)
    assert isinstance(list(listen(third))[-1], Done)


def test_a_request_on_an_idle_engine_hears_of_no_queue(eager_switching: None, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone.safetensors")
    engine = Engine(dataclasses.replace(SETTINGS, name="flux-dev", weights=str(tmp_path), ae=gone))
    for _ in range(300):  # requests that fail quickly, each submitted the moment the one before has ended
        assert [type(event) for event in run(engine, SMALL)] == [Failed]


def test_cancelling_a_waiting_request_ends_it_at_once(engine: Engine) -> None:
    first = engine.submit(LONG)
    wait_for(first, Step)
    second, third = engine.submit(SMALL), engine.submit(SMALL)
    told_already(second), told_already(third)
    second.cancel()
    assert told_already(second) == [Cancelled()]
    assert told_already(third) == [Queued(1)]  # moved up
    told_already(first)
    assert isinstance(wait_for(first, Step), Step)  # the running one continued
    first.cancel()
    assert isinstance(list(listen(third))[-1], Done)


def test_listening_with_patience_wakes_up_while_nothing_happens(engine: Engine) -> None:
    first = engine.submit(LONG)
    wait_for(first, Step)
    waiting = engine.submit(SMALL)
    events, began = waiting.events(0.05), time.monotonic()
    assert next(events) == Queued(1)
    assert next(events) is None
    assert time.monotonic() - began >= 0.05


def test_unloading_returns_gpu_memory_and_the_pinned_memory_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch keeps both for later; pinned memory would count as taken when the next model is planned."""
    own, given_back = Engine(SETTINGS), []
    assert isinstance(run(own, SMALL)[-1], Done)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: given_back.append(("device", own.status().loaded)))
    monkeypatch.setattr("uso_core.memory.pinned.empty_cache", lambda: given_back.append(("host", own.status().loaded)))
    own.unload()
    until = time.monotonic() + PATIENCE_SECONDS
    while len(given_back) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert given_back == [("device", None), ("host", None)]


def test_a_failing_request_leaves_the_loaded_model_in_place(tmp_path: Path) -> None:
    engine = Engine(dataclasses.replace(SETTINGS, weights=str(tmp_path), ae=str(tmp_path / "gone.safetensors")))
    (before,) = images_of(run(engine, SMALL))
    (failed,) = run(engine, dataclasses.replace(SMALL, model="flux-dev"))
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, UsoError)
    events = run(engine, SMALL)
    assert not any(isinstance(event, Loading) for event in events)
    (after,) = images_of(events)
    assert after.tobytes() == before.tobytes()


def test_a_content_image_of_which_nothing_would_remain_is_refused_on_submission(engine: Engine) -> None:
    with pytest.raises(RequestError, match="2000 x 1 ") as caught:
        engine.submit(dataclasses.replace(SMALL, content=image(1, 2000, 1)))
    assert caught.value.hint
    assert images_of(run(engine, SMALL))


def test_an_unknown_model_is_refused_on_submission(engine: Engine) -> None:
    with pytest.raises(SettingsError, match="flux-mini"):
        engine.submit(dataclasses.replace(SMALL, model="flux-mini"))
    with pytest.raises(SettingsError, match="flux-mini"):
        Engine(Settings(name="flux-mini"))


def test_an_image_given_only_by_name_is_refused_on_submission(engine: Engine) -> None:
    named = InputImage("holiday.jpg", "0" * 64)
    with pytest.raises(RequestError, match=r"holiday\.jpg"):
        engine.submit(dataclasses.replace(SMALL, content=named))
    with pytest.raises(RequestError, match=r"holiday\.jpg"):
        engine.submit(dataclasses.replace(SMALL, styles=(image(1), named)))


def test_a_missing_weight_file_is_named_and_another_model_still_runs(tmp_path: Path) -> None:
    gone = tmp_path / "no-such-ae.safetensors"
    engine = Engine(dataclasses.replace(SETTINGS, name="flux-dev", weights=str(tmp_path), ae=str(gone)))
    last = run(engine, SMALL)[-1]
    assert isinstance(last, Failed)
    assert isinstance(last.error, WeightsError)
    assert str(gone) in last.error.message
    assert "AE" in last.error.message
    assert "downloader" in last.error.hint
    ready = wait_for(engine.submit(dataclasses.replace(SMALL, model="uso-tiny")), ImageReady)
    assert ready.result.model == "uso-tiny"


def test_an_unknown_device_fails_with_a_sentence(tmp_path: Path) -> None:
    last = run(Engine(dataclasses.replace(SETTINGS, device="toaster")), SMALL)[-1]
    assert isinstance(last, Failed)
    assert isinstance(last.error, UsoError)
    assert "'toaster'" in last.error.message


@pytest.mark.parametrize(("shape", "size"), [((200, 100), (128, 64)), ((100, 200), (64, 128)), ((90, 90), (128, 128))])
def test_keep_size_gives_the_content_images_shape(
    engine: Engine, shape: tuple[int, int], size: tuple[int, int]
) -> None:
    request = dataclasses.replace(SMALL, content=image(3, *shape), keep_size=True, width=256, height=96)
    ready = wait_for(engine.submit(request), ImageReady)
    assert ready.image.size == size
    assert (ready.result.request.width, ready.result.request.height) == size


def test_the_order_of_styles_does_not_matter_but_the_styles_do(engine: Engine) -> None:
    one, two = image(4), image(5)
    (forward,) = images_of(run(engine, dataclasses.replace(SMALL, styles=(one, two))))
    (backward,) = images_of(run(engine, dataclasses.replace(SMALL, styles=(two, one))))
    (single,) = images_of(run(engine, dataclasses.replace(SMALL, styles=(one,))))
    assert np.abs(pixels(forward) - pixels(backward)).max() <= 2  # sums in another order
    assert changed(forward, backward) < 0.01
    assert changed(forward, single) > 0.05


def test_the_result_describes_the_run(engine: Engine) -> None:
    ready = wait_for(engine.submit(SMALL), ImageReady)
    assert ready.image.mode == "RGB"
    assert ready.image.size == (64, 64)
    result = ready.result
    assert (result.model, result.device, result.dtype) == ("uso-tiny", "cpu", "float32")
    assert result.request.prompt == SMALL.prompt
    assert 0 < result.seconds < PATIENCE_SECONDS


@pytest.mark.parametrize(
    ("error", "kind"), [(MemoryError(), OutOfMemory), (ImportError("half of a package"), InternalError)]
)
def test_whatever_happens_to_one_request_the_next_has_its_turn(
    error: Exception, kind: type[UsoError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors before the worker's own guard: bringing an image back, importing PyTorch."""
    engine = Engine(SETTINGS)

    def fail(request: GenerationRequest) -> GenerationRequest:
        raise error

    with monkeypatch.context() as once:
        once.setattr(images, "brought_back", fail)
        last = run(engine, SMALL)[-1]
    assert isinstance(last, Failed)
    assert isinstance(last.error, kind)
    assert isinstance(run(engine, SMALL)[-1], Done)
    assert engine.close(10)


def test_a_skip_before_the_first_step_leaves_out_the_first_image() -> None:
    engine = Engine(SETTINGS)
    job = engine.submit(dataclasses.replace(SMALL, images=2))
    job.skip()
    events = list(listen(job))
    assert [type(event) for event in events if isinstance(event, Skipped | ImageReady)] == [Skipped, ImageReady]
    assert engine.close(10)


def test_a_stored_style_is_refused_where_both_strengths_are_too_much(engine: Engine) -> None:
    style = StoredStyle("soft", "0" * 64, tokens=(((0.0,),),), strengths=(1.5,))
    with pytest.raises(RequestError) as caught:
        engine.submit(dataclasses.replace(SMALL, styles=(style,), style_strengths=(1.5,)))
    assert (caught.value.key, caught.value.values["own"]) == ("stored_strength", 1.5)


def test_a_skip_while_an_image_is_decoded_is_not_meant_for_the_next(engine: Engine, monkeypatch) -> None:
    job = engine.submit(dataclasses.replace(SMALL, images=2))
    decode = USOPipeline.decode

    def slow(*arguments: Any) -> torch.Tensor:
        job.skip()
        return decode(*arguments)

    monkeypatch.setattr(USOPipeline, "decode", slow)
    assert [type(event) for event in listen(job) if isinstance(event, Skipped | ImageReady)] == [ImageReady] * 2


def test_the_listener_hears_every_end(tmp_path: Path) -> None:
    engine, heard = Engine(SETTINGS), []
    engine.listener = lambda request, event, seconds: heard.append(type(event))
    photo = tmp_path / "photo.png"
    Image.effect_noise((900, 900), 50).convert("RGB").save(photo)
    run(engine, SMALL)
    first = engine.submit(LONG)
    gone = engine.submit(dataclasses.replace(SMALL, content=open_image(photo)))
    waiting = engine.submit(SMALL)
    photo.unlink()
    for job in (waiting, first):
        job.cancel()
        list(listen(job))
    assert isinstance(list(listen(gone))[-1], Failed)
    assert list(gone.events()) == []  # all was told
    assert heard == [ImageReady, Done, Cancelled, Cancelled, Failed]
    assert engine.close(10)


def test_a_lora_written_over_while_a_request_waits_is_refused(engine: Engine, tmp_path: Path) -> None:
    path = write_lora(tmp_path / "ink.safetensors", ATTENTION)
    asked = dataclasses.replace(SMALL, loras=(named_lora(str(path), SETTINGS, paths=True),))
    first, job = engine.submit(LONG), engine.submit(asked)
    write_lora(path, ATTENTION, seed=1)
    os.utime(path, (0, 0))
    first.cancel()
    last = list(listen(job))[-1]
    assert isinstance(last, Failed)
    assert last.error.key == "lora_changed"


def test_a_program_that_ends_while_a_request_runs_ends_quietly() -> None:
    program = """
from uso_core.events import Step
from uso_core.request import GenerationRequest
from uso_core.runtime.engine import Engine
from uso_core.settings import Settings
engine = Engine(Settings(name="uso-tiny", device="cpu"))
for event in engine.submit(GenerationRequest(prompt="a cat", width=64, height=64, steps=90, images=8)).events():
    if isinstance(event, Step):
        break
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert (ended.returncode, ended.stderr) == (0, "")
