"""The comparison grid of the Create tab: two values varied, each cell an image of its own, and the contact sheet."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
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
from uso_core.ui.run import Keep, Run, Update
from uso_core.ui.services import Services
from uso_core.ui.temporary_files import PREVIEW_SECONDS, passing_path
from uso_core.ui.watch import keeper, watch
from uso_core.wildcards import expand

Asked = Callable[[dict[str, Any], gr.Request], GenerationRequest]
_Updates = Generator[Update | None]
_Ended = Generator[Update | None, None, bool]
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
        services.sessions.look(session, None)
        private = bool(given[form.private])
        try:
            base = asked(form.values(given), request)
            across = read_axis(given[panel.across], given[panel.across_values] or "", base.styles)
            values = given[panel.down_values] or ""
            down = read_axis(given[panel.down], values, base.styles) if given[panel.down] else None
            seeded = base.with_seed()
            grids = [cells(replace(seeded, prompt=each), across, down) for each in expand(base.prompt)]
            services.engine.check(*(cell for rows in grids for row in rows for cell in row))
        except UsoError as error:
            yield {form.status: {"text": tell(error.told), "percent": 0}}
            raise refusal(error) from None
        page, visitor = services.sessions.page(session), services.visitor(request)
        begun = Run(services.sessions, session, base.prompt, not private, form.thumbnail(given))
        services.runs.add(page, begun)
        made = _Made(begun, services, page, session, visitor, keeper(services, request, private), private)
        begun.start(made.grids(grids, across, down))
        yield from watch([begun], given[results.selected], session, form, results, services)

    for name, values in ((panel.across, panel.across_values), (panel.down, panel.down_values)):
        name.select(_fitting, [name, values], values, trigger_mode="always_last", **QUIET)
    panel.start.click(
        run, {form.private, results.selected, *panel.fields, *form.components},
        [results.image, form.status, results.selected, results.strip, results.archive, results.queue],
        api_visibility="private", concurrency_limit=None, trigger_mode="multiple", show_progress="hidden",
    )  # fmt: skip


@dataclass(frozen=True)
class _Made:
    """Makes grids, cell by cell: each cell is kept as an image of its own, the contact sheet as long as the page is."""

    run: Run
    services: Services
    page: str
    session: str
    visitor: str
    keep: Keep
    private: bool

    def grids(self, grids: Sequence[list[list[GenerationRequest]]], across: Axis, down: Axis | None) -> _Updates:
        for rows in grids:
            if not (yield from self._grid(rows, across, down)):
                return

    def _grid(self, rows: list[list[GenerationRequest]], across: Axis, down: Axis | None) -> _Ended:
        """Returns whether the grid was left to end."""
        done: dict[tuple[int, int], Image.Image] = {}
        first: Result | None = None
        shown: Path | None = None  # the latest sheet
        count, wide = len(rows) * len(rows[0]), len(rows[0])
        for place, cell in enumerate(chain.from_iterable(rows)):
            row, column = divmod(place, wide)

            def keep(image: Image.Image, result: Result, at: tuple[int, int] = (row, column)) -> Path:
                done[at] = image
                return self.keep(image, result)

            job = self.services.engine.submit(cell, False, self.visitor)
            for update in self.run.follow(job, keep):
                if update is None:
                    yield None
                    continue
                status = _status(update.status, place, count)
                if update.result is None:
                    yield Update(status)
                    continue
                first = first or update.result
                self._let_go(shown)
                shown = self._saved(sheet(done, across, down), first)
                if len(done) == count:
                    self.services.runs.made(self.page, str(shown))
                yield Update(status, path=shown, result=update.result)
            if job.cancelled and (row, column) not in done:
                yield Update({"text": say("stopped"), "percent": 0})
                return False
        yield Update({"text": say("grid_done", count=len(done)), "percent": 100})
        return True

    def _saved(self, contact: Image.Image, first: Result) -> Path:
        name = f"grid-{first.seed}-{secrets.token_hex(4)}.png"  # two sheets of one session may have one seed
        path = save_image(contact, first, passing_path(name), beside=False)
        if self.private:
            self.services.passing.own(self.session, path)
        return path

    def _let_go(self, shown: Path | None) -> None:
        """Deletes a sheet that lacks cells, soon after the next has come."""
        if shown is not None:
            self.services.passing.own(self.run.key, shown)
            self.services.passing.forget(self.run.key, after_seconds=PREVIEW_SECONDS)


def _fitting(name: str, values: str) -> Any:
    """The values for a newly chosen axis: all styles, or what was written."""
    return ALL if name == "style" else "" if values == ALL else gr.skip()


def _status(status: Status, place: int, count: int) -> Status:
    percent = (100 * place + status["percent"]) / count
    return {"text": text.of_grid(place + 1, count, str(status["text"])), "percent": round(percent)}
