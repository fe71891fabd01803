"""The Create tab: the form, the run from Generate to the image, and what to do with the image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gradio as gr

from uso_core.errors import UsoError
from uso_core.runtime.engine import Job
from uso_core.ui import examples
from uso_core.ui.form import QUIET, Form, Updates, build_form, request_of
from uso_core.ui.inputs import refusal
from uso_core.ui.language import say, tell
from uso_core.ui.results import Results, build_results
from uso_core.ui.run import follow
from uso_core.ui.services import Services


def build(page: gr.Blocks, services: Services) -> tuple[Form, Results]:
    """Lays out the tab and connects it to the engine."""
    engine, model = services.engine, services.engine.status().model
    shelf = examples.lay_out(model)
    with gr.Row(equal_height=False, elem_id="create"):
        with gr.Column(scale=6, min_width=340, elem_id="form"):
            form = build_form(page, model, services)
        with gr.Column(scale=5, min_width=340, elem_id="results"):
            results = build_results(form, services)
    examples.wire(page, shelf, form)
    form.start.click(
        _handler(form, results, services), {form.private, *form.components},
        [results.image, form.status, results.seed_used, results.made], api_visibility="private",
        concurrency_limit=None, trigger_mode="multiple", show_progress="hidden",
    )  # fmt: skip
    _wire_buttons(page, services, form)

    def refresh(request: gr.Request) -> Updates:
        return form.refreshed(services.stores(request).styles)

    page.load(refresh, None, form.stored, **QUIET)
    page.load(engine.get_ready, None, None, **QUIET)  # while the user looks around
    return form, results


def _handler(form: Form, results: Results, services: Services) -> Callable[..., Iterator[Updates]]:
    """The generator behind Generate."""

    def run(given: dict[Any, Any], request: gr.Request) -> Iterator[Updates]:
        made: list[str] = []
        session = request.session_hash or ""
        stores = services.stores(request)
        keep = partial(services.passing.add, session) if given[form.private] else stores.history.add
        try:
            visitor = services.visitor(request)
            # Named nowhere: its decoded images would stay as long as it waits.
            background = services.settings.background
            job = services.engine.submit(request_of(form.values(given), stores.styles, background), True, visitor)
            for update in follow(job, services.sessions, session, keep):
                if update is None:
                    continue
                shown: Updates = {form.status: update.status}
                if update.path is not None and update.result is not None:
                    made.append(str(update.path))
                    seed = update.result.seed
                    shown |= {results.image: made[-1], results.seed_used: seed, results.made: list(made)}
                elif update.preview is not None:
                    shown[results.image] = services.passing.preview(session, update.preview)
                yield shown
        except UsoError as error:
            yield {form.status: {"text": tell(error.told), "percent": 0}}
            raise refusal(error) from None

    return run


def _wire_buttons(page: gr.Blocks, services: Services, form: Form) -> None:
    """Stop and Skip show a text themselves only if nothing runs.

    A run reports its own end: a text from here could overtake its last one and stay.
    """

    def jobs_of(request: gr.Request) -> list[Job]:
        return services.sessions.jobs(request.session_hash or "")

    def said(jobs: list[Job]) -> Any:
        return gr.skip() if jobs else {"text": say("nothing_to_stop"), "percent": 0}

    def end(request: gr.Request) -> Any:
        jobs = jobs_of(request)
        for job in jobs:
            job.cancel()
        return said(jobs)

    def next_image(request: gr.Request) -> Any:
        jobs = jobs_of(request)
        for job in jobs[:1]:
            job.skip()
        return said(jobs)

    def leave(request: gr.Request) -> None:
        end(request)
        services.passing.forget(request.session_hash or "")

    form.stop.click(end, None, form.status, **QUIET)
    form.skip.click(next_image, None, form.status, **QUIET)
    page.unload(leave)
