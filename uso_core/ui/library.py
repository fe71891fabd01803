"""The History tab: what was made before, by day, found by prompt, restored or deleted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from uso_core.history import Entry, History
from uso_core.ui import text
from uso_core.ui.form import Form
from uso_core.ui.results import QUIET, Results

SHOWN = 200  # thumbnails at once; a search finds the others


def build(tabs: gr.Tabs, tab: gr.Tab, history: History, form: Form, results: Results) -> None:
    """Lays out the tab; it is read anew whenever it is opened or searched."""
    search = gr.Textbox(label="Search", placeholder="words of the prompt", max_lines=1)
    note = gr.Markdown(elem_id="history-note")
    gallery = gr.Gallery(
        label="History", columns=6, height=560, allow_preview=False, object_fit="cover", buttons=[], fit_columns=False,
        interactive=False, elem_id="history-images",
    )  # fmt: skip
    with gr.Row():
        chosen = gr.Textbox(label="Selected", interactive=False, max_lines=2, scale=3)
        restore = gr.Button("Restore settings", variant="primary", min_width=140)
        delete = gr.Button("Delete", variant="stop", min_width=100)
    paths, path = gr.State([]), gr.State(None)

    def look(words: str) -> tuple[Any, list[str], str]:
        found = history.entries(words or "")[:SHOWN]
        shown = [(str(entry.thumbnail), _caption(entry)) for entry in found]
        return shown, [str(entry.path) for entry in found], "" if found else text.NO_MATCHES

    def choose(paths: list[str], event: gr.SelectData) -> tuple[str, str]:
        chosen = next((entry for entry in history.entries() if str(entry.path) == paths[event.index]), None)
        return paths[event.index], _caption(chosen) if chosen else ""

    def remove(path: str | None, words: str) -> tuple[Any, ...]:
        if path:
            history.delete(Path(path))
        return (*look(words), None, text.DELETED if path else "")

    def put_back(path: str | None) -> list[Any]:
        if not path:
            return [*([gr.skip()] * (len(form.order) + 2)), gr.skip()]
        request, kept, lost = history.restore(Path(path))
        if lost:
            gr.Info(text.restored(lost))
        return [*form.updates(request, kept), path, path, gr.Tabs(selected="create")]

    gr.on([tab.select, search.change], look, search, [gallery, paths, note], trigger_mode="always_last", **QUIET)
    gallery.select(choose, paths, [path, chosen], **QUIET)
    delete.click(remove, [path, search], [gallery, paths, note, path, chosen], **QUIET)
    restore.click(put_back, path, [*form.order, results.image, results.selected, tabs], **QUIET)


def _caption(entry: Entry) -> str:
    return f"{entry.when:%Y-%m-%d %H:%M}  {entry.prompt[:80] or '(no prompt)'}"
