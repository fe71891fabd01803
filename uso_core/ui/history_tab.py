"""The History tab: what was made before, by day, found by prompt, restored or deleted."""

from __future__ import annotations

from datetime import date
from itertools import groupby
from pathlib import Path
from typing import Any

import gradio as gr

from uso_core.errors import UsoError
from uso_core.storage.history import Entry, History
from uso_core.storage.styles import StyleStore
from uso_core.ui import text
from uso_core.ui.card_grid import Card, cards, chosen, file_address, html
from uso_core.ui.form import QUIET, TOLD, Form
from uso_core.ui.inputs import refusal
from uso_core.ui.language import label, say
from uso_core.ui.results import Results, restored

SHOWN = 200  # thumbnails at once; a search finds the others


def build(
    tabs: gr.Tabs, tab: gr.Tab, history: History, styles: StyleStore, form: Form, results: Results
) -> None:  # fmt: skip
    """Lays out the tab; it is read anew whenever it is opened or searched."""
    search = gr.Textbox(label=label("search"), placeholder=label("search_hint"), max_lines=1)
    with gr.Row(elem_classes="one-line"):
        picked = gr.Textbox(label=label("selected"), interactive=False, max_lines=2, scale=3, min_width=160)
        restore = gr.Button(label("restore_settings"), variant="primary", min_width=140, interactive=False)
        delete = gr.Button(label("delete"), variant="stop", min_width=100, interactive=False)
    note = gr.Markdown(elem_id="history-note")
    shown = cards("history-images", label("tab_history"))
    path, sure = gr.State(None), gr.State(None)  # chosen; and of which it was said once that it may go

    def look(words: str) -> tuple[str, str]:
        found = history.entries(words or "")
        days = [
            (text.day(day, date.today()), [_card(entry) for entry in entries])
            for day, entries in groupby(found[:SHOWN], lambda entry: entry.when.date())
        ]
        return html(days), "" if found else say("no_matches" if (words or "").strip() else "no_history")

    def choose(event: gr.EventData) -> tuple[Any, ...]:
        name = chosen(event)
        entry = next((entry for entry in history.entries() if entry.path.name == name), None)
        path, words = (str(entry.path), text.entry(entry.when, entry.prompt)) if entry else (None, "")
        return path, words, None, *buttons(path is not None)

    def buttons(usable: bool) -> tuple[gr.Button, gr.Button]:
        return gr.Button(interactive=usable), gr.Button(label("delete"), interactive=usable)

    def remove(path: str | None, sure: str | None, words: str) -> tuple[Any, ...]:
        if path and sure != path:
            return *([gr.skip()] * 4), path, gr.skip(), gr.Button(label("delete_sure"))
        if path:
            history.delete(Path(path))
        return *look(words), None, say("deleted"), None, *buttons(False)

    def put_back(path: str | None) -> list[Any]:
        if not path:
            return [gr.skip()] * (len(form.order) + 4)
        try:
            updates, words = restored(form, history, styles, Path(path))
        except UsoError as error:
            raise refusal(error) from None
        return [*updates, path, path, {"text": words, "percent": 0}, gr.Tabs(selected="create")]

    gr.on([tab.select, search.change], look, search, [shown, note], trigger_mode="always_last", **QUIET)
    shown.click(choose, None, [path, picked, sure, restore, delete], **QUIET)
    delete.click(remove, [path, sure, search], [shown, note, path, picked, sure, restore, delete], **QUIET)
    restore.click(put_back, path, [*form.order, results.image, results.selected, form.status, tabs], **TOLD)


def _card(entry: Entry) -> Card:
    words = say("made_at", time=f"{entry.when:%H:%M}", seed=entry.seed)
    return Card(
        entry.path.name,
        entry.prompt[: text.SHOWN_CHARACTERS] or say("no_prompt"),
        words,
        (file_address(entry.thumbnail),),
    )
