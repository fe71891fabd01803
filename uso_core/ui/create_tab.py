"""The Create tab: the form, the run from Generate to the image, and what to do with the image."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gradio as gr

from uso_core.errors import RequestError, UsoError
from uso_core.request import GenerationRequest
from uso_core.runtime.engine import Job
from uso_core.ui import examples, form_memory, grid_panel, lora_rows
from uso_core.ui.event_options import QUIET
from uso_core.ui.form import Form, Status, Updates, build_form, request_of
from uso_core.ui.inputs import refusal
from uso_core.ui.language import say, tell
from uso_core.ui.results import Results, build_results
from uso_core.ui.run import follow
from uso_core.ui.services import Services, Stores


def build(page: gr.Blocks, services: Services) -> tuple[Form, Results]:
    """Lays out the tab and connects it to the engine."""
    engine, model = services.engine, services.engine.status().model
    with gr.Row(equal_height=False, elem_id="create"):
        with gr.Column(min_width=320, elem_id="form"):
            form = build_form(page, model, services)
            grid = grid_panel.lay_out()
        with gr.Column(min_width=320, elem_id="results"):
            shelf = examples.lay_out(model)
            results = build_results(form, services)
    examples.wire(page, shelf, form)
    form.start.click(
        _handler(form, results, services), {form.private, results.selected, *form.components},
        [results.image, form.status, results.selected, results.made], api_visibility="private",
        concurrency_limit=None, trigger_mode="multiple", show_progress="hidden",
    )  # fmt: skip
    _wire_buttons(page, services, form)
    form_memory.wire(page, form, services)

    def asked(values: dict[str, Any], request: gr.Request) -> GenerationRequest:
        return _asked(values, services, services.stores(request), services.settings.background)

    grid_panel.wire(grid, form, results, services, asked)

    def refresh(request: gr.Request) -> Updates:
        return form.refreshed(services.stores(request).styles)

    page.load(refresh, None, form.stored, **QUIET)
    page.load(engine.get_ready, None, None, **QUIET)  # while the user looks around
    return form, results


def _handler(form: Form, results: Results, services: Services) -> Callable[..., Iterator[Updates]]:
    """The generator behind Generate."""

    def run(given: dict[Any, Any], request: gr.Request) -> Iterator[Updates]:
        made: list[str] = []
        session, before = request.session_hash or "", given[results.selected]
        status: Status = {"text": "", "percent": 0}
        preview = False  # whether one is shown
        services.sessions.look(session, False)
        stores = services.stores(request)
        keep = partial(services.passing.add, session) if given[form.private] else stores.history.add
        try:
            visitor = services.visitor(request)
            # Named nowhere: its decoded images would stay as long as it waits.
            background = services.settings.background
            job = services.engine.submit(_asked(form.values(given), services, stores, background), True, visitor)
            for update in follow(job, services.sessions, session, keep):
                if update is None:
                    continue
                status = update.status
                shown: Updates = {form.status: {**status, "running": True}}
                looking = services.sessions.looking(session)
                if update.path is not None:
                    made.append(str(update.path))
                    shown[results.made] = list(made)
                    if not looking:
                        shown |= {results.image: made[-1], results.selected: made[-1]}
                        preview = False
                elif update.preview is not None and not looking:
                    shown[results.image] = services.passing.preview(session, update.preview)
                    preview = True
                yield shown
        except UsoError as error:
            status = {"text": tell(error.told), "percent": 0}
            yield ended(status, session, preview, made[-1] if made else before)
            raise refusal(error) from None
        yield ended(status, session, preview, made[-1] if made else before)

    def ended(status: Status, session: str, preview: bool, image: str | None) -> Updates:
        """The last words stay; what was only a preview does not."""
        running = bool(services.sessions.jobs(session))
        shown: Updates = {form.status: {**status, "running": running}}
        return {**shown, results.image: image} if preview and not services.sessions.looking(session) else shown

    return run


def _asked(values: dict[str, Any], services: Services, stores: Stores, background: str) -> GenerationRequest:
    """The form's request; raises `RequestError` if nothing at all is entered."""
    request = request_of(values, stores.styles, background)
    if not (request.prompt.strip() or request.content or request.styles):
        raise RequestError("nothing_entered", hint="describe_or_add")
    return dataclasses.replace(request, loras=lora_rows.chosen(values, services.settings))


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
        services.sessions.look(request.session_hash or "", False)
        services.passing.forget(request.session_hash or "")

    form.stop.click(end, None, form.status, **QUIET)
    form.skip.click(next_image, None, form.status, **QUIET)
    page.unload(leave)
