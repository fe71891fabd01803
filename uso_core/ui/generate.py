"""The form, and what happens between Generate and the picture."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from uso_core.catalog import Model
from uso_core.engine import Cancelled, Encoding, Engine, Event, Failed, ImageReady, Job, Loading, Queued, Step
from uso_core.errors import UsoError
from uso_core.images import open_picture
from uso_core.outputs import new_path, save_image
from uso_core.request import GenerationRequest
from uso_core.settings import Settings
from uso_core.ui import text

PATIENCE = 0.5  # seconds between looks at whether the browser is still there
STATUS = """
<div role="status" aria-live="polite" class="sentence">{{value.text}}</div>
<div class="track"><div class="bar" style="width: {{value.percent}}%"></div></div>
"""

Status = dict[str, Any]


class Sessions:
    """The jobs each open page has under way, so that its Stop, or closing it, ends them and no others."""

    def __init__(self) -> None:
        self._jobs: dict[str, set[Job]] = {}
        self._lock = threading.Lock()

    def add(self, session: str, job: Job) -> None:
        with self._lock:
            self._jobs.setdefault(session, set()).add(job)

    def remove(self, session: str, job: Job) -> None:
        with self._lock:
            jobs = self._jobs.get(session, set())
            jobs.discard(job)
            if not jobs:
                self._jobs.pop(session, None)

    def stop(self, session: str) -> int:
        """Cancels the session's jobs; returns how many there were."""
        with self._lock:
            jobs = list(self._jobs.get(session, ()))
        for job in jobs:
            job.cancel()
        return len(jobs)


def build(page: gr.Blocks, engine: Engine, settings: Settings) -> None:
    """Lays out the form on the page and wires it to the engine."""
    model, sessions = engine.model, Sessions()
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=340):
            with gr.Row():
                content = _slot("Content image", "the subject")
                style_1 = _slot("Style image 1", "how it looks")
                style_2 = _slot("Style image 2", "optional")
            prompt = gr.Textbox(label="Prompt", placeholder=text.PROMPT_HINT, lines=3, max_lines=8)
            with gr.Row():
                start = gr.Button("Generate", variant="primary", elem_id="generate", scale=3)
                stop = gr.Button("Stop", variant="secondary", elem_id="stop", scale=1)
            with gr.Row():
                width, height = _side("Width", model), _side("Height", model)
                seed = gr.Number(label="Seed", value=-1, precision=0, info="-1 draws a new one", minimum=-1)
            with gr.Accordion("More", open=False):
                with gr.Row():
                    steps = gr.Slider(1, 100, value=model.steps, step=1, label="Steps")
                    guidance = gr.Slider(0, 20, value=model.guidance, step=0.1, label="Guidance")
                with gr.Row():
                    content_size = gr.Slider(
                        32, model.sides[1], value=model.content_size, step=16, label="Content size",
                        info="long side of the content image, in pixels",
                    )  # fmt: skip
                    keep_size = gr.Checkbox(
                        label="Keep size", info="the content image's shape instead of width, height"
                    )
            with gr.Accordion("How to ask", open=False):
                gr.Markdown(text.HOW_TO)
        with gr.Column(scale=5, min_width=340):
            result = gr.Image(
                label="Result", type="filepath", format="png", interactive=False, height=520, elem_id="result",
                buttons=["download", "fullscreen"],
            )  # fmt: skip
            status = gr.HTML({"text": text.IDLE, "percent": 0}, html_template=STATUS, elem_id="status")
            seed_used = gr.Number(label="Seed used", interactive=False, precision=0)

    def run(
        prompt: str, content: str | None, style_1: str | None, style_2: str | None, width: float, height: float,
        steps: float, guidance: float, content_size: float, keep_size: bool, seed: float, request: gr.Request,
    ) -> Iterator[tuple[Any, Status, Any]]:  # fmt: skip
        """Generates one image. Sizes in pixels, floored to multiples of 16; seed -1 draws one.

        Returns the PNG with its settings inside, the last status, and the seed used.
        """
        try:
            values: dict[str, Any] = {
                "prompt": prompt or "",
                "content": open_picture(content) if content else None,
                "styles": tuple(open_picture(path) for path in (style_1, style_2) if path),
                "width": width,
                "height": height,
                "steps": steps,
                "guidance": guidance,
                "content_size": content_size,
                "keep_size": bool(keep_size),
                "seed": None if seed in (None, -1) else seed,
            }
            job = engine.submit(GenerationRequest(**values))
            yield from follow(job, sessions, _session(request), Path(settings.output))
        except UsoError as error:
            raise gr.Error(str(error), duration=None, title="Please change something") from None

    fields = [prompt, content, style_1, style_2, width, height, steps, guidance, content_size, keep_size, seed]
    gr.on(
        [start.click], run, fields, [result, status, seed_used], api_name="generate", concurrency_limit=None,
        trigger_mode="multiple", show_progress="hidden",
    )  # fmt: skip

    def end(request: gr.Request) -> Status:
        stopped = sessions.stop(_session(request))
        return {"text": text.STOPPING if stopped else text.NOTHING_TO_STOP, "percent": 0}

    def leave(request: gr.Request) -> None:
        sessions.stop(_session(request))

    stop.click(end, None, status, api_visibility="private", queue=False, show_progress="hidden")
    page.unload(leave)


def follow(job: Job, sessions: Sessions, session: str, output: Path) -> Iterator[tuple[Any, Status, Any]]:
    """The page's updates (image, status, seed) while a job runs; a page that is closed ends its job."""
    sessions.add(session, job)
    try:
        for event in job.events(PATIENCE):
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, ImageReady):
                path = save_image(event.image, event.result, new_path(output, event.result.seed))
                done = f"Done in {text.duration(event.result.seconds)}: {path.name}"
                yield str(path), {"text": done, "percent": 100}, event.result.seed
            elif (status := describe(event)) is not None:
                yield gr.skip(), status, gr.skip()
    finally:
        job.cancel()
        sessions.remove(session, job)


def describe(event: Event | None) -> Status | None:
    """What an event means to a person, and the bar's percentage; None where nothing is new."""
    if isinstance(event, Queued):
        return {"text": f"Waiting: {event.ahead} ahead of you.", "percent": 0}
    if isinstance(event, Loading):
        return {"text": f"Loading the model: {event.message}.", "percent": round(100 * event.fraction)}
    if isinstance(event, Encoding):
        return {"text": "Reading the prompt and the pictures.", "percent": 0}
    if isinstance(event, Step):
        each, left = text.duration(event.seconds_per_step), text.duration(event.seconds_left)
        words = f"Step {event.step} of {event.steps}, {each} a step, {left} left."
        return {"text": words, "percent": round(100 * event.step / event.steps)}
    if isinstance(event, Cancelled):
        return {"text": text.STOPPED, "percent": 0}
    return None


def _slot(label: str, placeholder: str) -> gr.Image:
    return gr.Image(
        label=label, type="filepath", image_mode=None, sources=["upload", "clipboard", "webcam"], height=200,
        placeholder=placeholder, buttons=["fullscreen"], min_width=140,
    )  # fmt: skip


def _side(label: str, model: Model) -> gr.Number:
    low, high = model.sides
    return gr.Number(label=label, value=model.size, precision=0, minimum=low, maximum=high, step=16, info="pixels")


def _session(request: gr.Request) -> str:
    return request.session_hash or ""
