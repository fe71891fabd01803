"""The comparison grid of the Create tab: two values varied, each cell an image of its own, and the contact sheet."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gradio as gr
from PIL import Image

from uso_core.errors import UsoError
from uso_core.grid import ALL, AXES, Axis, cells, read_axis, sheet
from uso_core.request import GenerationRequest, Result
from uso_core.storage.files import save_image
from uso_core.ui import text
from uso_core.ui.event_options import QUIET
from uso_core.ui.form import Form, Status, Updates
from uso_core.ui.inputs import refusal
from uso_core.ui.language import label, say, tell
from uso_core.ui.results import Results
from uso_core.ui.run import follow
from uso_core.ui.services import Services
from uso_core.ui.temporary_files import passing_path
from uso_core.wildcards import expand

Asked = Callable[[dict[str, Any], gr.Request], GenerationRequest]
FIRST, FIRST_VALUES = "style_strength", "0, 0.5, 1, 1.5"


@dataclass(frozen=True)
class Panel:
    """Both axes with their values, and the button."""

    across: gr.Dropdown
    across_values: gr.Textbox
    down: gr.Dropdown
    down_values: gr.Textbox
    start: gr.Button

    @property
    def fields(self) -> set[Any]:
        return {self.across, self.across_values, self.down, self.down_values}


def lay_out() -> Panel:
    """Below the form."""
    names = [(label(f"grid_{name}"), name) for name in AXES]
    with gr.Accordion(label("grid"), open=False, elem_id="grid"):
        gr.Markdown(label("grid_hint"))
        with gr.Row():
            across = gr.Dropdown(names, value=FIRST, label=label("grid_across"), filterable=False, min_width=120)
            across_values = gr.Textbox(FIRST_VALUES, label=label("grid_across_values"), max_lines=1, min_width=120)
        with gr.Row():
            choices = [(label("grid_none"), ""), *names]
            down = gr.Dropdown(choices, value="", label=label("grid_down"), filterable=False, min_width=120)
            down_values = gr.Textbox("", label=label("grid_down_values"), max_lines=1, min_width=120)
        start = gr.Button(label("grid_start"), elem_id="grid-start")
    return Panel(across, across_values, down, down_values, start)


def wire(panel: Panel, form: Form, results: Results, services: Services, asked: Asked) -> None:
    """Starts the run; `asked` makes the form's request."""

    def run(given: dict[Any, Any], request: gr.Request) -> Iterator[Updates]:
        session = request.session_hash or ""
        page = services.sessions.page(session)
        services.sessions.look(session, None)
        try:
            base = asked(form.values(given), request)
            across = read_axis(given[panel.across], given[panel.across_values] or "", base.styles)
            values = given[panel.down_values] or ""
            down = read_axis(given[panel.down], values, base.styles) if given[panel.down] else None
            seeded = base.with_seed()
            grids = [cells(replace(seeded, prompt=each), across, down) for each in expand(base.prompt)]
            visitor = services.visitor(request)
            services.engine.check(*(cell for rows in grids for row in rows for cell in row))
            keep = (
                partial(services.passing.add, session) if given[form.private] else services.stores(request).history.add
            )
            for rows in grids:
                if not (yield from _made(rows, across, down, keep, visitor, session, page)):
                    return
        except UsoError as error:
            yield {form.status: {"text": tell(error.told), "percent": 0}}
            raise refusal(error) from None

    def _made(
        rows: list[list[GenerationRequest]],
        across: Axis,
        down: Axis | None,
        keep: Any,
        visitor: str,
        session: str,
        page: str,
    ) -> Generator[Updates, None, bool]:
        """Makes one grid; returns whether it was left to end."""
        done: dict[tuple[int, int], Image.Image] = {}
        first: Result | None = None
        count, wide = len(rows) * len(rows[0]), len(rows[0])
        for place, cell in enumerate(cell for row in rows for cell in row):
            taken: list[Image.Image] = []

            def keep_it(image: Image.Image, result: Result, taken: list[Image.Image] = taken) -> Any:
                taken.append(image)
                path = keep(image, result)
                services.runs.made(page, str(path))
                return path

            job = services.engine.submit(cell, False, visitor)
            for update in follow(job, services.sessions, session, keep_it):
                if update is None:
                    continue
                status = _status(update.status, place, count)
                shown: Updates = {form.status: {**status, "running": True}}
                if update.path is not None and update.result is not None:
                    first = first or update.result
                    done[divmod(place, wide)] = taken[-1]
                    contact = _saved(sheet(done, across, down), first, session)
                    if len(done) == count:
                        services.runs.made(page, contact)
                    shown |= results.shelf(services.runs.made(page))
                    if not services.sessions.looking(session):
                        shown |= results.showing(contact)
                yield shown
            if job.cancelled and divmod(place, wide) not in done:
                yield {form.status: {"text": say("stopped"), "percent": 0}}
                return False
        if first is not None:
            yield {form.status: {"text": say("grid_done", count=len(done)), "percent": 100}}
        return True

    def _saved(contact: Image.Image, first: Result, session: str) -> str:
        path = save_image(contact, first, passing_path("grid.png"), beside=False)
        services.passing.own(session, path)
        return str(path)

    for name, values in ((panel.across, panel.across_values), (panel.down, panel.down_values)):
        name.input(_fitting, [name, values], values, **QUIET)
    panel.start.click(
        run, {form.private, *panel.fields, *form.components},
        [results.image, form.status, results.selected, results.strip, results.archive], api_visibility="private",
        concurrency_limit=None, show_progress="hidden",
    )  # fmt: skip


def _fitting(name: str, values: str) -> Any:
    """The values for a newly chosen axis: all styles, or what was written."""
    return ALL if name == "style" else "" if values == ALL else gr.skip()


def _status(status: Status, place: int, count: int) -> Status:
    percent = (100 * place + status["percent"]) / count
    return {"text": text.of_grid(place + 1, count, str(status["text"])), "percent": round(percent)}
