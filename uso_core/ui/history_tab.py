"""The History tab: earlier images by day, searchable by prompt, to restore or delete."""

from __future__ import annotations

from datetime import date
from itertools import groupby
from pathlib import Path

import gradio as gr

from uso_core.errors import UsoError
from uso_core.storage.history import Entry
from uso_core.ui import text
from uso_core.ui.card_grid import Card, cards, chosen, file_address, html
from uso_core.ui.event_options import QUIET, TOLD
from uso_core.ui.form import Form, Updates
from uso_core.ui.inputs import refusal
from uso_core.ui.language import label, say
from uso_core.ui.results import Results, restored
from uso_core.ui.services import Services

SHOWN = 200  # thumbnails at once; a search finds the others


def build(tabs: gr.Tabs, tab: gr.Tab, services: Services, form: Form, results: Results) -> None:
    """Lays out the tab; it is read again whenever it is opened or searched."""
    search = gr.Textbox(label=label("search"), placeholder=label("search_hint"), max_lines=1)
    with gr.Row(elem_classes="one-line", elem_id="history-bar"):
        picked = gr.Textbox(label=label("selected"), interactive=False, max_lines=2, scale=3, min_width=160)
        restore = gr.Button(label("restore_settings"), variant="primary", min_width=140, interactive=False)
        delete = gr.Button(label("delete"), variant="stop", min_width=100, interactive=False)
    note = gr.Markdown(elem_id="history-note")
    shown = cards("history-images", label("tab_history"))
    path, sure = gr.State(None), gr.State(None)  # the chosen one, and the one that a first click asked to delete

    def look(words: str, request: gr.Request) -> Updates:
        found = services.stores(request).history.entries(words or "")
        days = [
            (text.day(day, date.today()), [_card(entry) for entry in entries])
            for day, entries in groupby(found[:SHOWN], lambda entry: entry.when.date())
        ]
        empty = say("no_matches" if (words or "").strip() else "no_history")
        return {shown: html(days), note: "" if found else empty}

    def choose(request: gr.Request, event: gr.EventData) -> Updates:
        name, entries = chosen(event), services.stores(request).history.entries()
        entry = next((entry for entry in entries if entry.path.name == name), None)
        words = text.entry(entry.when, entry.prompt) if entry else ""
        return {path: str(entry.path) if entry else None, picked: words, sure: None, **buttons(entry is not None)}

    def buttons(usable: bool) -> Updates:
        return {restore: gr.Button(interactive=usable), delete: gr.Button(label("delete"), interactive=usable)}

    def remove(given: Updates, request: gr.Request) -> Updates:
        if given[path] and given[sure] != given[path]:
            return {sure: given[path], delete: gr.Button(label("delete_sure"))}
        try:
            if given[path]:
                services.stores(request).history.delete(Path(given[path]))
        except UsoError as error:
            raise refusal(error) from None
        return {**look(given[search], request), path: None, picked: say("deleted"), sure: None, **buttons(False)}

    def put_back(selected: str | None, request: gr.Request) -> Updates:
        if not selected:
            return gr.skip()
        try:
            updates, words = restored(form, services, services.stores(request), Path(selected))
        except UsoError as error:
            raise refusal(error) from None
        services.sessions.look(request.session_hash or "", True)
        return {
            **updates,
            **results.showing(selected),
            tabs: gr.Tabs(selected="create"),
            form.status: {"text": words, "percent": 0},
        }

    chosen_one = [path, picked, sure, restore, delete]
    gr.on([tab.select, search.change], look, search, [shown, note], trigger_mode="always_last", **QUIET)
    shown.click(choose, None, chosen_one, **QUIET)
    delete.click(remove, {path, sure, search}, [shown, note, *chosen_one], **TOLD)
    outputs = [*form.restorable, results.image, results.selected, form.status, tabs]
    restore.click(put_back, path, outputs, **TOLD)


def _card(entry: Entry) -> Card:
    words = say("made_at", time=f"{entry.when:%H:%M}", seed=entry.seed)
    return Card(
        entry.path.name,
        entry.prompt[: text.SHOWN_CHARACTERS] or say("no_prompt"),
        words,
        (file_address(entry.thumbnail),),
    )
