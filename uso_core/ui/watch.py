"""What the page shows of its runs: their status, previews and images, in the order of submission."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import gradio as gr
from PIL import Image

from uso_core.errors import UsoError
from uso_core.request import Result
from uso_core.ui.form import Form, Status, Updates
from uso_core.ui.inputs import refusal
from uso_core.ui.language import tell
from uso_core.ui.results import Results
from uso_core.ui.run import Keep, Run
from uso_core.ui.services import Services


def keeper(services: Services, request: gr.Request, private: bool) -> Keep:
    """Stores what a page makes, in the history unless it is private, and counts it among the page's images."""
    session = request.session_hash or ""
    page = services.sessions.page(session)
    store = partial(services.passing.add, session) if private else services.stores(request).history.add

    def keep(image: Image.Image, result: Result) -> Path:
        path = store(image, result)
        services.runs.made(page, str(path))
        return path

    return keep


def watch(
    runs: Sequence[Run], before: str | None, session: str, form: Form, results: Results, services: Services
) -> Iterator[Updates]:  # fmt: skip
    """What the page shows of its runs, one after the other; afterwards raises what the first that failed raised."""
    page, queued = services.sessions.page(session), ""
    preview, failure = False, None  # whether a preview is shown
    for run in runs:
        status: Status = {"text": "", "percent": 0}
        shelved = 0
        try:
            for update in run.updates():
                shown: Updates = {}
                looking = services.sessions.looking(session)
                if update is not None:
                    status = update.status
                    shown[form.status] = {**status, "running": True}
                if (now := results.queued(services.runs.active(page))) != queued:
                    shown[results.queue] = queued = now
                if len(run.paths) > shelved:
                    shelved, before = len(run.paths), str(run.paths[-1])
                    shown |= results.shelf(services.runs.made(page))
                    if not looking:
                        shown |= results.showing(before)
                        preview = False
                elif update is not None and update.preview is not None and not looking:
                    shown[results.image] = services.passing.preview(session, update.preview)
                    preview = True
                elif looking and preview:  # which may have reached the page after the choice
                    shown[results.image], preview = looking, False
                if shown:
                    yield shown
        except UsoError as error:
            failure = failure or error
            status = {"text": tell(error.told), "percent": 0}
        shown = {form.status: {**status, "running": bool(services.sessions.jobs(session))}}
        if preview and not services.sessions.looking(session):  # the last words stay; what was only a preview does not
            shown[results.image] = before
        yield shown
    yield {results.queue: results.queued(services.runs.active(page))}
    if failure is not None:
        raise refusal(failure) from None
