"""The Create tab: the form, the run from Generate to the image, and what to do with the image."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr

from uso_core.errors import RequestError, UsoError
from uso_core.request import GenerationRequest
from uso_core.runtime.engine import Job
from uso_core.ui import examples, form_memory, grid_panel, lora_rows, presets
from uso_core.ui.card_grid import chosen
from uso_core.ui.event_options import QUIET
from uso_core.ui.form import Form, Updates, build_form, request_of
from uso_core.ui.inputs import refusal
from uso_core.ui.language import say, tell
from uso_core.ui.results import Results, build_results
from uso_core.ui.run import Run
from uso_core.ui.services import Services, Stores
from uso_core.ui.watch import keeper, watch
from uso_core.wildcards import expand

SECRET = re.compile("[0-9a-f]{32}")
# A page that is loaded again has the secret it had before; a copy of the tab is another page.
PAGE_SECRET = """
() => {
  const again = ["reload", "back_forward"].includes(performance.getEntriesByType("navigation")[0]?.type);
  const bytes = [...crypto.getRandomValues(new Uint8Array(16))];
  const drawn = bytes.map((byte) => byte.toString(16).padStart(2, "0")).join("");
  try {
    const secret = (again && sessionStorage.getItem("uso-page")) || drawn;
    sessionStorage.setItem("uso-page", secret);
    return [secret];
  } catch { return [drawn]; }
}
"""


def build(page: gr.Blocks, services: Services) -> tuple[Form, Results]:
    """Lays out the tab and connects it to the engine."""
    engine, model = services.engine, services.engine.status().model
    with gr.Row(equal_height=False, elem_id="create"):
        with gr.Column(min_width=320, elem_id="form"):
            form = build_form(page, model, services)
            grid = grid_panel.lay_out()
            presets.build(page, form, services)
        with gr.Column(min_width=320, elem_id="results"):
            shelf = examples.lay_out(model)
            results = build_results(form, services)
    examples.wire(page, shelf, form)
    seen = [results.image, form.status, results.selected, results.strip, results.archive, results.queue]
    form.start.click(
        _handler(form, results, services), {form.private, results.selected, *form.components}, seen,
        api_visibility="private", concurrency_limit=None, trigger_mode="multiple", show_progress="hidden",
    )  # fmt: skip
    page.load(_resume(form, results, services), gr.Textbox(visible=False), seen, js=PAGE_SECRET,
              api_visibility="private", concurrency_limit=None, show_progress="hidden")  # fmt: skip
    _wire_buttons(page, services, form, results)
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
    """The generator behind Generate: a run for each prompt that the prompt stands for, all with one seed."""

    def run(given: dict[Any, Any], request: gr.Request) -> Iterator[Updates]:
        session = request.session_hash or ""
        page, visitor = services.sessions.page(session), services.visitor(request)
        services.sessions.look(session, None)
        private = bool(given[form.private])
        keep = keeper(services, request, private)
        thumbnail = form.thumbnail(given)
        runs: list[Run] = []
        try:
            requests = _requests(form.values(given), services, services.stores(request))
            services.engine.check(*requests)  # together, before the first begins
            for each in requests:
                job = services.engine.submit(each, True, visitor)
                runs.append(Run(services.sessions, session, each.prompt, not private, thumbnail))
                services.runs.add(page, runs[-1])
                runs[-1].start(runs[-1].follow(job, keep))
        except UsoError as error:
            for begun in runs:
                begun.end()
            yield {
                form.status: {"text": tell(error.told), "percent": 0, "running": bool(services.sessions.jobs(session))}
            }
            raise refusal(error) from None
        yield from watch(runs, given[results.selected], session, form, results, services)

    return run


def _resume(form: Form, results: Results, services: Services) -> Callable[..., Iterator[Updates]]:
    """What a page that is loaded again goes on with: its images, and its runs."""

    def resume(secret: str, request: gr.Request) -> Iterator[Updates]:
        session = request.session_hash or ""
        yield {results.queue: ""}  # Gradio empties all outputs of an event that says nothing
        if not SECRET.fullmatch(str(secret)):
            return
        page = f"{services.visitor(request)} {secret}"
        services.sessions.adopt(session, page)
        made, runs = services.runs.made(page), services.runs.unseen(page)
        last = made[-1] if made else None
        if last is not None:
            yield {**results.showing(last), **results.shelf(made)}
        if runs:
            yield from watch(runs, last, session, form, results, services)

    return resume


def _requests(values: dict[str, Any], services: Services, stores: Stores) -> list[GenerationRequest]:
    """The form's request, once for each prompt that its prompt stands for."""
    asked = _asked(values, services, stores, services.settings.background)
    prompts = expand(asked.prompt)
    if len(prompts) > 1:
        asked = asked.with_seed()
    return [dataclasses.replace(asked, prompt=prompt) for prompt in prompts]


def _asked(values: dict[str, Any], services: Services, stores: Stores, background: str) -> GenerationRequest:
    """The form's request; raises `RequestError` if nothing at all is entered."""
    request = request_of(values, stores.styles, background)
    if not (request.prompt.strip() or request.content or request.styles):
        raise RequestError("nothing_entered", hint="describe_or_add")
    return dataclasses.replace(request, loras=lora_rows.chosen(values, services.settings))


def _wire_buttons(page: gr.Blocks, services: Services, form: Form, results: Results) -> None:
    """Stop and Skip show a text themselves only if nothing runs.

    A run reports its own end: a text from here could overtake its last one and stay.
    """

    def jobs_of(request: gr.Request) -> list[Job]:
        return services.sessions.jobs(request.session_hash or "")

    def runs_of(request: gr.Request) -> list[Run]:
        return services.runs.active(services.sessions.page(request.session_hash or ""))

    def said(going_on: Sequence[Job | Run]) -> Any:
        return gr.skip() if going_on else {"text": say("nothing_to_stop"), "percent": 0}

    def end(request: gr.Request) -> Any:
        runs = runs_of(request)
        for run in runs:
            run.end()
        return said(runs)

    def next_image(request: gr.Request) -> Any:
        jobs = jobs_of(request)
        for job in jobs[:1]:
            job.skip()
        return said(jobs)

    def end_one(request: gr.Request, event: gr.EventData) -> None:
        for run in runs_of(request):
            if run.key == chosen(event):
                run.end()

    def leave(request: gr.Request) -> None:
        services.sessions.leave(request.session_hash or "")
        services.passing.forget(request.session_hash or "")

    form.stop.click(end, None, form.status, **QUIET)
    form.skip.click(next_image, None, form.status, **QUIET)
    results.queue.click(end_one, None, None, trigger_mode="multiple", **QUIET)
    page.unload(leave)
