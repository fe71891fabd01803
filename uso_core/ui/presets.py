"""Presets: the form's settings under a name, without images, prompt and seed. The browser keeps them.

What comes back from the browser or a file may be anything: a value that the form does not take now is left out.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import gradio as gr

from uso_core.catalog.models import get_model
from uso_core.errors import RequestError
from uso_core.storage.files import write_whole
from uso_core.text_files import parsed_json
from uso_core.ui.browser_storage import carrier, change, reading, write
from uso_core.ui.event_options import QUIET, TOLD
from uso_core.ui.form import Form, Updates
from uso_core.ui.form_memory import fitting
from uso_core.ui.inputs import ImageInput, refusal
from uso_core.ui.language import label, say
from uso_core.ui.services import Services
from uso_core.ui.temporary_files import passing_path

KEY = "uso-presets"
MOST, LONGEST_NAME = 100, 80
MOST_BYTES = 1 << 20  # of a file with presets
LEFT_OUT = ("model", "prompt", "seed")
IN_FILE = "uso_presets"  # the key of a file's presets
DEFAULT_FOR = "default for"  # beside a preset's settings: the model that begins with them

Presets = dict[str, dict[str, Any]]


def build(page: gr.Blocks, form: Form, services: Services) -> None:
    """Lays out the panel and connects it to the form."""
    fields = {
        name: field for name, field in form.fields.items() if name not in LEFT_OUT and not isinstance(field, ImageInput)
    }
    with gr.Accordion(label("presets"), open=False, elem_id="presets"):
        with gr.Row():
            choice = gr.Dropdown([], value=None, label=label("preset"), filterable=False, min_width=140)
            name = gr.Textbox(label=label("preset_name"), max_lines=1, min_width=140)
        default = gr.Checkbox(label=label("preset_default"), info=label("preset_default_hint"), container=False)
        with gr.Row():
            save = gr.Button(label("preset_save"), size="sm", min_width=72)
            delete = gr.Button(label("preset_delete"), size="sm", min_width=72, elem_id="preset-delete")
            export = gr.DownloadButton(label("preset_export"), size="sm", min_width=72)
            take_in = gr.UploadButton(label("preset_import"), file_types=[".json"], size="sm", min_width=72)
    kept, sure = carrier(), gr.State("")  # the one that a first click asked to remove

    def disarmed() -> Updates:
        return {sure: "", delete: gr.Button(label("preset_delete"))}

    def offered(presets: Presets, chosen: str | None) -> Updates:
        return {choice: gr.Dropdown(choices=list(presets), value=chosen), **disarmed()}

    def exported(presets: Presets) -> Any:
        if not presets:
            return gr.DownloadButton(interactive=False)
        path = passing_path("uso-presets.json")
        text = json.dumps({IN_FILE: presets}, ensure_ascii=False, indent=2).encode()
        write_whole(path, lambda file: file.write(text))
        return gr.DownloadButton(value=str(path), interactive=True)

    def apply(saved: Any, chosen: str | None, model: str, request: gr.Request) -> Updates:
        given = read(saved).get(chosen or "", {})
        values, gone = fitting(fields, given, get_model(model), services, request)
        if not values:
            return {default: False, **disarmed()}
        begins = given.get(DEFAULT_FOR) == model
        return {**form.with_aspect(values), name: chosen, default: begins, **_without(given, gone, form), **disarmed()}

    def begin(saved: Any, model: str, request: gr.Request) -> Updates:
        """A model that was just chosen begins with its default."""
        found = next((title for title, values in read(saved).items() if values.get(DEFAULT_FOR) == model), None)
        return {choice: found, **apply(saved, found, model, request)} if found else {default: False}

    def mark(saved: Any, chosen: str | None, model: str, on: bool) -> Updates:
        """One preset at most is a model's default."""
        presets = read(saved)
        if chosen not in presets:
            return {kept: None, default: False}
        marked = {
            title: {key: value for key, value in values.items() if (key, value) != (DEFAULT_FOR, model)}
            for title, values in presets.items()
        }
        if on:
            marked[chosen][DEFAULT_FOR] = model
        return {kept: change(presets, marked)}

    def store(saved: Any, written: str | None, *values: Any) -> Updates:
        title, presets = " ".join((written or "").split()), read(saved)
        if not title:
            raise refusal(RequestError("preset_name"))
        if len(title) > LONGEST_NAME:
            raise refusal(RequestError("style_name_too_long", characters=len(title), most=LONGEST_NAME))
        if title not in presets and len(presets) >= MOST:
            raise refusal(RequestError("too_many_presets", most=MOST))
        of_model = {key: value for key, value in presets.get(title, {}).items() if key == DEFAULT_FOR}
        presets[title] = {**dict(zip(fields, values, strict=True)), **of_model}
        return {kept: change(read(saved), presets), **offered(presets, title), form.status: said("preset_saved", title)}

    def remove(saved: Any, chosen: str | None, confirmed: str) -> Updates:
        presets = read(saved)
        if chosen not in presets:
            return {kept: None, **offered(presets, None)}
        if confirmed != chosen:
            return {kept: None, sure: chosen, delete: gr.Button(label("delete_sure"))}
        del presets[chosen]
        told = {form.status: said("preset_deleted", chosen)}
        return {kept: change(read(saved), presets), **offered(presets, None), name: "", **told}

    def receive(saved: Any, path: str) -> Updates:
        """The presets of a file beside those there are: another one of a name gets a number after it."""
        file = Path(path)
        try:
            if file.stat().st_size > MOST_BYTES:
                raise RequestError("not_presets", name=file.name)
            given = parsed_json(file.read_bytes(), file.name)
            found = given.get(IN_FILE) if isinstance(given, dict) else None
            new = [(title, values) for title, values in _pairs(found) if isinstance(values, dict)]
            if not new:
                raise RequestError("not_presets", name=file.name)
            presets = read(saved)
            names = [_beside(presets, title, values) for title, values in new]
            if len(presets) > MOST:
                raise RequestError("too_many_presets", most=MOST)
        except RequestError as error:
            raise refusal(error) from None
        told = {form.status: said("presets_read", ", ".join(names))}
        return {kept: change(read(saved), presets), **offered(presets, None), **told}

    def said(key: str, words: str) -> dict[str, Any]:
        return {"text": say(key, name=words), "percent": 0}

    def look(saved: Any) -> Updates:
        """What another tab stored is offered as well."""
        return {choice: gr.Dropdown(choices=list(presets := read(saved))), export: exported(presets)}

    now = {"js": reading(KEY), **QUIET}
    told = [kept, choice, form.status, sure, delete]
    put = [*fields.values(), form.aspect, name, default, form.status, sure, delete]
    page.load(look, kept, [choice, export], **now)
    choice.focus(look, kept, [choice, export], **now)
    choice.select(apply, [kept, choice, form["model"]], put, trigger_mode="always_last", **now)
    form["model"].change(begin, [kept, form["model"]], [*put, choice], **now)
    marked = default.input(mark, [kept, choice, form["model"], default], [kept, default],
                           trigger_mode="always_last", **now)  # fmt: skip
    saved = save.click(store, [kept, name, *fields.values()], told, trigger_mode="multiple", **{**now, **TOLD})
    removed = delete.click(remove, [kept, choice, sure], [*told, name], **{**now, **TOLD})
    received = take_in.upload(receive, [kept, take_in], told, **{**now, **TOLD})
    for event in (marked, saved, removed, received):
        write(event, kept, KEY).then(look, kept, [choice, export], **now)


def _without(given: dict[str, Any], gone: list[str], form: Form) -> Updates:
    """What the status says of a preset's LoRAs and stored styles that are gone."""
    if not gone:
        return {}
    loras = [str(given[name]) for name in gone if name.startswith("lora")]
    words = [say("preset_loras_gone", names=", ".join(loras))] if loras else []
    words += [say("preset_styles_gone")] if len(loras) < len(gone) else []
    return {form.status: {"text": " ".join(words), "percent": 0}}


def _pairs(saved: Any) -> list[tuple[str, Any]]:
    """The entries of a value from outside that have a name, with one that fits."""
    if not isinstance(saved, dict):
        return []
    named = ((" ".join(name.split())[:LONGEST_NAME], values) for name, values in saved.items())
    return [(name, values) for name, values in named if name]


def _beside(presets: Presets, title: str, values: dict[str, Any]) -> str:
    """Adds a preset to others, under a name that no different one has; returns the name."""
    taken = title
    for count in itertools.count(2):
        if taken not in presets or presets[taken] == values:
            break
        ending = f" ({count})"
        taken = title[: LONGEST_NAME - len(ending)] + ending
    if values.get(DEFAULT_FOR) and any(each.get(DEFAULT_FOR) == values[DEFAULT_FOR] for each in presets.values()):
        values = {key: value for key, value in values.items() if key != DEFAULT_FOR}  # one at most
    presets[taken] = values
    return taken


def read(saved: Any) -> Presets:
    """The presets in a value from outside; their own values are checked when one is applied."""
    return {name: values for name, values in _pairs(saved)[:MOST] if isinstance(values, dict)}
