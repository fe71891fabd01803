"""The Create tab: the form, what happens between Generate and the image, and what to do with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gradio as gr

from uso_core.errors import UsoError
from uso_core.runtime.engine import Engine, Job
from uso_core.storage.history import History
from uso_core.storage.styles import StyleStore
from uso_core.ui import examples
from uso_core.ui.form import QUIET, Form, Status, build_form, request_of
from uso_core.ui.inputs import refusal
from uso_core.ui.language import say, tell
from uso_core.ui.results import Results, build_results
from uso_core.ui.run import Sessions, follow
from uso_core.ui.temporary_files import PrivateImages

Shown = tuple[Any, Status, Any, Any]  # image, status, seed used, images made


def build(
    page: gr.Blocks, engine: Engine, history: History, styles: StyleStore, private: PrivateImages, sessions: Sessions
) -> tuple[Form, Results]:
    """Lays out the tab and wires it to the engine."""
    shelf = examples.lay_out(engine.model)
    with gr.Row(equal_height=False, elem_id="create"):
        with gr.Column(scale=6, min_width=340, elem_id="form"):
            form = build_form(page, engine.model, styles)
        with gr.Column(scale=5, min_width=340, elem_id="results"):
            results = build_results(form, history, styles)
    examples.wire(page, shelf, form)
    form.start.click(
        _handler(form, engine, history, styles, private, sessions), [form.private, *form.order],
        [results.image, form.status, results.seed_used, results.made], api_visibility="private",
        concurrency_limit=None, trigger_mode="multiple", show_progress="hidden",
    )  # fmt: skip
    _wire_buttons(page, sessions, private, form)
    page.load(lambda: form.refreshed(styles), None, form.saved, **QUIET)
    page.load(engine.get_ready, None, None, **QUIET)  # while the visitor looks around
    return form, results


def _handler(
    form: Form, engine: Engine, history: History, styles: StyleStore, private: PrivateImages, sessions: Sessions
) -> Callable[..., Iterator[Shown]]:
    """The generator behind Generate; its values come in the order of the form."""

    def run(request: gr.Request, keep_nothing: bool, *values: Any) -> Iterator[Shown]:
        nothing, made, session = gr.skip(), [], request.session_hash or ""
        keep = partial(private.add, session) if keep_nothing else history.add
        try:
            job = engine.submit(request_of(dict(zip(form.fields, values, strict=True)), styles), previews=True)
            for update in follow(job, sessions, session, keep):
                if update is None:
                    continue
                if update.path is not None and update.result is not None:
                    made.append(str(update.path))
                    yield str(update.path), update.status, update.result.seed, list(made)
                else:
                    yield update.preview or nothing, update.status, nothing, nothing
        except UsoError as error:
            yield nothing, {"text": tell(error.told), "percent": 0}, nothing, nothing
            raise refusal(error) from None

    return run


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
        return gr.skip() if jobs else {"text": say("nothing_to_stop"), "percent": 0}

    def next_image(request: gr.Request) -> Any:
        jobs = jobs_of(request)
        for job in jobs[:1]:
            job.skip()
        return gr.skip() if jobs else {"text": say("nothing_to_stop"), "percent": 0}

    def leave(request: gr.Request) -> None:
        for job in jobs_of(request):
            job.cancel()
        private.forget(request.session_hash or "")

    form.stop.click(end, None, form.status, **QUIET)
    form.skip.click(next_image, None, form.status, **QUIET)
    page.unload(leave)
