"""The Create tab: the form, what happens between Generate and the picture, and what to do with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from uso_core.engine import Cancelled, Encoding, Engine, Event, Failed, ImageReady, Job, Loading, Queued, Skipped, Step
from uso_core.errors import UsoError
from uso_core.history import History
from uso_core.request import SCHEDULES, Result
from uso_core.styles import StyleStore
from uso_core.ui import examples, text
from uso_core.ui.form import QUIET, Form, Status, build_form
from uso_core.ui.passing import PrivateImages
from uso_core.ui.results import Results, build_results

PATIENCE = 0.5  # seconds between looks at whether the browser is still there
INTERVAL = 0.1  # seconds between two updates at least: what the browser cannot take in time would pile up

Update = tuple[Any, Status, Any, Any]  # image, status, seed used, images made


class Sessions:
    """The jobs each open page has under way, so that its Stop, or closing it, ends them and no others."""

    def __init__(self) -> None:
        self._jobs: dict[str, list[Job]] = {}
        self._lock = threading.Lock()

    def add(self, session: str, job: Job) -> None:
        with self._lock:
            self._jobs.setdefault(session, []).append(job)

    def remove(self, session: str, job: Job) -> None:
        with self._lock:
            jobs = self._jobs.get(session, [])
            if job in jobs:
                jobs.remove(job)
            if not jobs:
                self._jobs.pop(session, None)

    def jobs(self, session: str) -> list[Job]:
        """The session's jobs in the order of submission."""
        with self._lock:
            return list(self._jobs.get(session, ()))


def build(
    page: gr.Blocks, engine: Engine, history: History, styles: StyleStore, sessions: Sessions
) -> tuple[Form, Results]:
    """Lays out the tab and wires it to the engine."""
    private = PrivateImages()
    with gr.Row(equal_height=False):
        with gr.Column(scale=6, min_width=340):
            form = build_form(engine.model, styles)
        with gr.Column(scale=5, min_width=340):
            results = build_results(form, history, styles)
            examples.build(form, engine.model)
    generate = _handler(form, engine, history, styles, private, sessions)
    form.start.click(
        generate, [*form.order, form.private], [results.image, form.status, results.seed_used, results.made],
        api_name="generate", concurrency_limit=None, trigger_mode="multiple", show_progress="hidden",
    )  # fmt: skip
    _wire_buttons(page, sessions, private, form)
    page.load(lambda: form.refreshed(styles), None, form.saved, **QUIET)
    return form, results


def _handler(
    form: Form, engine: Engine, history: History, styles: StyleStore, private: PrivateImages, sessions: Sessions
) -> Callable[..., Iterator[Update]]:
    """The generator behind Generate and /generate; Gradio takes the API's parameter names from its signature."""

    model = form.model

    def generate(
        prompt: str = "", content: str | None = None, style_1: str | None = None, style_2: str | None = None,
        style_3: str | None = None, style_4: str | None = None, width: float = model.size, height: float = model.size,
        seed: float = -1, images: float = 1, steps: float = model.steps, guidance: float = model.guidance,
        content_size: float = model.content_size, schedule: str = SCHEDULES[0], keep_size: bool = False,
        content_strength: float = 1, style_1_strength: float = 1, style_2_strength: float = 1,
        style_3_strength: float = 1, style_4_strength: float = 1, saved_1: str = "", saved_1_strength: float = 1,
        saved_2: str = "", saved_2_strength: float = 1, keep_nothing: bool = False,
        request: gr.Request = None,  # Gradio fills it in
    ) -> Iterator[Update]:  # fmt: skip
        """Generates images from a prompt, a content image or none, and up to four style images.

        Sizes in pixels, floored to multiples of 16; seed -1 draws one, image j uses seed + j; strengths from 0 to 2,
        1 as trained. Returns the last PNG with its request inside, the last status, and the seed used.
        """
        values = (
            prompt, content, style_1, style_2, style_3, style_4, width, height, seed, images, steps, guidance,
            content_size, schedule, keep_size, content_strength, style_1_strength, style_2_strength, style_3_strength,
            style_4_strength, saved_1, saved_1_strength, saved_2, saved_2_strength,
        )  # fmt: skip
        session = request.session_hash or ""
        try:
            job = engine.submit(form.request(dict(zip(form.fields, values, strict=True)), styles), previews=True)
            keep = partial(private.add, session) if keep_nothing else history.add
            yield from follow(job, sessions, session, keep)
        except UsoError as error:
            yield gr.skip(), {"text": str(error), "percent": 0}, gr.skip(), gr.skip()
            raise gr.Error(str(error), duration=None, title=text.PLEASE_CHANGE, print_exception=False) from None

    return generate


def follow(job: Job, sessions: Sessions, session: str, keep: Callable[[Image.Image, Result], Path]) -> Iterator[Update]:
    """The page's updates while a job runs; a page that is closed ends its job.

    While another job of the page is at work, one that waits says nothing: there is one line for both.
    """
    sessions.add(session, job)
    made: list[str] = []
    nothing, told = gr.skip(), 0.0
    try:
        for event in job.events(PATIENCE):
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, ImageReady):
                path = str(keep(event.image, event.result))
                made.append(path)
                done = text.done(event.result.seconds, event.result.seed)
                yield path, {"text": done, "percent": 100}, event.result.seed, list(made)
            elif event is None and job.cancelled:
                yield nothing, {"text": text.STOPPING, "percent": 0}, nothing, nothing
            elif isinstance(event, Queued) and sessions.jobs(session)[:1] != [job]:
                continue
            elif (status := describe(event, len(sessions.jobs(session)) - 1)) is not None and (
                isinstance(event, Cancelled | Skipped) or time.monotonic() - told > INTERVAL
            ):
                told = time.monotonic()
                preview = event.preview if isinstance(event, Step) else None
                yield preview if preview is not None else nothing, status, nothing, nothing
    finally:
        job.cancel()
        sessions.remove(session, job)


def describe(event: Event | None, more: int = 0) -> Status | None:
    """What an event means to a person, and the bar's percentage; None where nothing is new.

    `more` jobs of the same page wait behind the one that tells.
    """
    if isinstance(event, Queued):
        return {"text": text.waiting(event.ahead), "percent": 0}
    if isinstance(event, Loading):
        return {"text": text.loading(event.message), "percent": round(100 * event.fraction)}
    if isinstance(event, Encoding):
        return {"text": text.READING, "percent": 0}
    if isinstance(event, Step):
        words = text.stepping(
            event.image, event.images, event.step, event.steps, event.seconds_per_step, event.seconds_left, more
        )
        return {"text": words, "percent": round(100 * event.step / event.steps)}
    if isinstance(event, Skipped):
        return {"text": text.SKIPPED, "percent": 0}
    if isinstance(event, Cancelled):
        return {"text": text.STOPPED, "percent": 0}
    return None


def _wire_buttons(page: gr.Blocks, sessions: Sessions, private: PrivateImages, form: Form) -> None:
    """Stop and Skip say something themselves only where nothing runs.

    A run tells of its own end: words from here could overtake its last ones and stay for good.
    """

    def jobs_of(request: gr.Request) -> list[Job]:
        return sessions.jobs(request.session_hash or "")

    def end(request: gr.Request) -> Any:
        jobs = jobs_of(request)
        for job in jobs:
            job.cancel()
        return gr.skip() if jobs else {"text": text.NOTHING_TO_STOP, "percent": 0}

    def next_image(request: gr.Request) -> Any:
        jobs = jobs_of(request)
        for job in jobs[:1]:
            job.skip()
        return gr.skip() if jobs else {"text": text.NOTHING_TO_STOP, "percent": 0}

    def leave(request: gr.Request) -> None:
        for job in jobs_of(request):
            job.cancel()
        private.forget(request.session_hash or "")

    form.stop.click(end, None, form.status, **QUIET)
    form.skip.click(next_image, None, form.status, **QUIET)
    page.unload(leave)
