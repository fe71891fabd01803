"""The History tab: what was made before, by day, found by prompt, restored or deleted."""

from __future__ import annotations

from datetime import date
from itertools import groupby
from pathlib import Path
from typing import Any

import gradio as gr

from uso_core.errors import UsoError
from uso_core.history import Entry, History
from uso_core.styles import StyleStore
from uso_core.ui import text
from uso_core.ui.cards import Card, cards, chosen, file_address, html
from uso_core.ui.form import QUIET, TOLD, Form
from uso_core.ui.inputs import refusal
from uso_core.ui.results import Results, restored
from uso_core.ui.text import label

SHOWN = 200  # thumbnails at once; a search finds the others


def build(
    tabs: gr.Tabs, tab: gr.Tab, history: History, styles: StyleStore, form: Form, results: Results
) -> None:  # fmt: skip
    """Lays out the tab; it is read anew whenever it is opened or searched."""
    search = gr.Textbox(label=label("search"), placeholder=label("search_hint"), max_lines=1)
    with gr.Row(elem_classes="one-line"):
        picked = gr.Textbox(label=label("selected"), interactive=False, max_lines=2, scale=3, min_width=160)
        restore = gr.Button(label("restore_settings"), variant="primary", min_width=140)
        delete = gr.Button(label("delete"), variant="stop", min_width=100)
    note = gr.Markdown(elem_id="history-note")
    shown = cards("history-images", label("tab_history"))
    path = gr.State(None)

    def look(words: str) -> tuple[str, str]:
        found = history.entries(words or "")
        days = [
            (text.day(day, date.today()), [_card(entry) for entry in entries])
            for day, entries in groupby(found[:SHOWN], lambda entry: entry.when.date())
        ]
        return html(days), "" if found else text.NO_MATCHES if (words or "").strip() else text.NO_HISTORY

    def choose(event: gr.EventData) -> tuple[str | None, str]:
        name = chosen(event)
        entry = next((entry for entry in history.entries() if entry.path.name == name), None)
        return (str(entry.path), text.entry(entry.when, entry.prompt)) if entry else (None, "")

    def remove(path: str | None, words: str) -> tuple[Any, ...]:
        if path:
            history.delete(Path(path))
        return (*look(words), None, text.DELETED if path else text.NO_IMAGE_CHOSEN)

    def put_back(path: str | None) -> list[Any]:
        if not path:
            gr.Info(text.NO_IMAGE_CHOSEN)
            return [gr.skip()] * (len(form.order) + 4)
        try:
            updates, lost = restored(form, history, styles, Path(path))
        except UsoError as error:
            raise refusal(error) from None
        status = {"text": text.restored(lost), "percent": 0}
        return [*updates, path, path, status, gr.Tabs(selected="create")]

    gr.on([tab.select, search.change], look, search, [shown, note], trigger_mode="always_last", **QUIET)
    shown.click(choose, None, [path, picked], **QUIET)
    delete.click(remove, [path, search], [shown, note, path, picked], **QUIET)
    restore.click(put_back, path, [*form.order, results.image, results.selected, form.status, tabs], **TOLD)


def _card(entry: Entry) -> Card:
    words = f"{entry.when:%H:%M}, {text.label('seed').lower()} {entry.seed}"
    return Card(entry.path.name, entry.prompt[:80] or text.NO_PROMPT, words, (file_address(entry.thumbnail),))
