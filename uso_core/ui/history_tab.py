"""The History tab: earlier images by day, searchable by prompt; and what the lightbox does with one of them."""

from __future__ import annotations

from datetime import date
from itertools import groupby
from pathlib import Path
from typing import Any

import gradio as gr

from uso_core.errors import UsoError
from uso_core.storage.history import Entry
from uso_core.ui import text
from uso_core.ui.browser_storage import carrier
from uso_core.ui.card_grid import Card, action, cards, chosen, file_address, html, keys_of, pressed
from uso_core.ui.event_options import QUIET, TOLD
from uso_core.ui.form import Form, Updates
from uso_core.ui.inputs import refusal
from uso_core.ui.language import label, say
from uso_core.ui.results import Results, fetch, packed, restored
from uso_core.ui.services import Services
from uso_core.ui.temporary_files import discard

SHOWN = 200  # thumbnails at once; a search finds the others
GRID = "history-images"
SEVERAL = """
(on) => {
  const grid = document.querySelector("#history-images");
  grid.classList.toggle("several", on);
  grid.querySelector("section")?.parentElement.dispatchEvent(new CustomEvent("press", { bubbles: true, detail: [] }));
  return on;
}
"""


def build(tabs: gr.Tabs, tab: gr.Tab, services: Services, form: Form, results: Results) -> None:
    """Lays out the tab; it is read again whenever it is opened or searched."""
    with gr.Row(elem_id="history-bar"):
        search = gr.Textbox(
            label=label("search"), placeholder=label("search_hint"), max_lines=1, scale=3, min_width=200
        )
        with gr.Column(min_width=160, scale=1, elem_classes="checks"):
            starred = gr.Checkbox(label=label("only_starred"), container=False)
            several = gr.Checkbox(label=label("select_several"), container=False)
        with gr.Row(visible=False) as bar:
            archive = gr.Button(label("download_selected"), size="sm", min_width=100, interactive=False)
            delete = gr.Button(label("delete_selected"), variant="stop", size="sm", min_width=100, interactive=False)
            archive_file = gr.DownloadButton("zip", elem_id="selected-file", visible="hidden")
    note = gr.Markdown(elem_id="history-note")
    shown = cards(GRID, label("tab_history"))
    picked, sure = carrier(), gr.State([])  # the names chosen, and those that a first click asked to delete

    def look(words: str, only: bool, request: gr.Request) -> Updates:
        found = services.stores(request).history.entries(words or "", bool(only))
        days = [
            (text.day(day, date.today()), [_card(entry) for entry in entries])
            for day, entries in groupby(found[:SHOWN], lambda entry: entry.when.date())
        ]
        empty = "no_stars" if only else "no_history"
        words = say("no_matches", words=words.strip()[: text.SHOWN_CHARACTERS]) if (words or "").strip() else say(empty)
        if found:
            words = say("newest_shown", shown=SHOWN, count=len(found)) if len(found) > SHOWN else ""
        return {shown: html(days), note: words}

    def pick(names: Any) -> Updates:
        usable = bool(keys_of(names))
        return {
            archive: gr.Button(interactive=usable),
            delete: gr.Button(label("delete_selected"), interactive=usable),
            sure: [],
        }

    def paths_of(names: Any, request: gr.Request) -> list[Path]:
        history = services.stores(request).history
        return [path for name in keys_of(names) if (path := history.find(name))]

    def pack(names: Any, request: gr.Request) -> str | None:
        return packed(paths_of(names, request))

    def remove(
        names: Any, asked: list[str], words: str, only: bool, selected: str | None, request: gr.Request
    ) -> Updates:
        if keys_of(names) != asked:
            return {sure: keys_of(names), delete: gr.Button(label("delete_sure"))}
        try:
            for path in paths_of(names, request):
                services.stores(request).history.delete(path)
        except UsoError as error:
            raise refusal(error) from None
        return {**look(words, only, request), **pick([]), **without_deleted(selected, request)}

    def without_deleted(selected: str | None, request: gr.Request) -> Updates:
        """The Create tab without images that are gone."""
        page = services.sessions.page(request.session_hash or "")
        gone = selected is not None and not Path(selected).is_file()
        return {**results.shelf(services.runs.made(page)), **(results.showing(None) if gone else {})}

    def act(given: Updates, request: gr.Request, event: gr.EventData) -> Updates:
        """Selects an image of the history, or one that this page made; or what the lightbox asks for."""
        stores, page = services.stores(request), services.sessions.page(request.session_hash or "")
        own = {Path(each).name: Path(each) for each in services.runs.made(page)}
        kept = stores.history.find(chosen(event))
        path = kept or own.get(chosen(event))
        if path is None or not path.is_file():
            gr.Warning(say("image_gone"), title=say("please_change"))
            gone = without_deleted(given[results.selected], request)
            return {**look(given[search], given[starred], request), **gone}
        create = {tabs: gr.Tabs(selected="create")}
        try:
            match action(event):
                case "":
                    services.sessions.look(request.session_hash or "", str(path))
                    return results.showing(str(path))
                case "content":
                    return {form["content"]: str(path), **create}
                case "style":
                    return {form.free_style(given): str(path), **create}
                case "restore":
                    updates, words = restored(form, services, stores, path)
                    services.sessions.look(request.session_hash or "", str(path))
                    words_shown = {form.status: {"text": words, "percent": 0}}
                    return {**updates, **results.showing(str(path)), **create, **words_shown}
                case "star" | "unstar" if kept:
                    stores.history.star(path, action(event) == "star")
                    again = results.shelf(services.runs.made(page))
                    return {**look(given[search], given[starred], request), **again}
                case "delete":
                    (stores.history.delete if kept else discard)(path)
                    again = without_deleted(given[results.selected], request)
                    return {**look(given[search], given[starred], request), **again}
        except UsoError as error:
            raise refusal(error) from None
        return gr.skip()

    listed, buttons = [shown, note], [archive, delete, sure]
    gr.on([tab.select, search.change, starred.change], look, [search, starred], listed,
          trigger_mode="always_last", **QUIET)  # fmt: skip
    several.change(lambda on: gr.Row(visible=on), several, bar, js=SEVERAL, **QUIET)
    shown.select(pick, picked, buttons, js=pressed(GRID), trigger_mode="always_last", **QUIET)
    fetched = archive.click(pack, picked, archive_file, js=pressed(GRID), **TOLD)
    fetched.then(None, None, None, js=fetch("selected-file"), **QUIET)
    created = [results.image, results.selected, results.strip, results.archive]
    delete.click(remove, [picked, sure, search, starred, results.selected], [*listed, *buttons, *created],
                 js=pressed(GRID), **TOLD)  # fmt: skip
    outputs = [*form.restorable, *listed, *created, form.status, tabs]
    chosen_or_asked = [event for grid in (shown, results.strip) for event in (grid.click, grid.apply)]
    gr.on(chosen_or_asked, act, {search, starred, results.selected, *form.style_slots}, outputs,
          trigger_mode="multiple", **TOLD)  # fmt: skip


def _card(entry: Entry) -> Card:
    words = say("made_at", time=f"{entry.when:%H:%M}", seed=entry.seed)
    return Card(
        entry.path.name,
        entry.prompt[: text.SHOWN_CHARACTERS] or say("no_prompt"),
        words,
        (file_address(entry.thumbnail),),
        file_address(entry.path),
        entry.starred,
    )
