"""Presets: the form's settings under a name, without images, prompt and seed. The browser keeps them.

What comes back from the browser or a file may be anything: a value that the form does not take now is left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gradio as gr

from uso_core.catalog.loras import find_loras
from uso_core.catalog.models import get_model
from uso_core.errors import RequestError
from uso_core.storage.files import write_whole
from uso_core.text_files import parsed_json
from uso_core.ui.event_options import QUIET, TOLD
from uso_core.ui.form import Form, Updates
from uso_core.ui.form_memory import fits
from uso_core.ui.inputs import ImageInput, refusal
from uso_core.ui.language import label, say
from uso_core.ui.services import Services
from uso_core.ui.temporary_files import passing_path

KEY = "uso-presets"
MOST, LONGEST_NAME = 100, 60
MOST_BYTES = 1 << 20  # of a file with presets
LEFT_OUT = ("model", "prompt", "seed")
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
            delete = gr.Button(label("preset_delete"), size="sm", min_width=72)
            export = gr.DownloadButton(label("preset_export"), size="sm", min_width=72)
            take_in = gr.UploadButton(label("preset_import"), file_types=[".json"], size="sm", min_width=72)
    kept = gr.BrowserState({}, storage_key=KEY, secret=KEY)

    def offered(presets: Presets, chosen: str | None) -> Updates:
        return {choice: gr.Dropdown(choices=list(presets), value=chosen), export: exported(presets)}

    def exported(presets: Presets) -> Any:
        if not presets:
            return gr.DownloadButton(interactive=False)
        path = passing_path("uso-presets.json")
        text = json.dumps({"uso_presets": presets}, ensure_ascii=False, indent=2).encode()
        write_whole(path, lambda file: file.write(text))
        return gr.DownloadButton(value=str(path), interactive=True)

    def apply(saved: Any, chosen: str | None, model: str) -> Updates:
        values = read(saved).get(chosen or "", {})
        known = set(find_loras(services.settings))
        row = get_model(model)
        fitting = {field: values[key] for key, field in fields.items() if fits(key, field, values.get(key), row, known)}
        begins = values.get(DEFAULT_FOR) == model
        return {**form.with_aspect(fitting), name: chosen, default: begins} if fitting else {default: False}

    def begin(saved: Any, model: str) -> Updates:
        """A model that was just chosen begins with its default."""
        found = next((title for title, values in read(saved).items() if values.get(DEFAULT_FOR) == model), None)
        return {choice: found, **apply(saved, found, model)} if found else {default: False}

    def mark(saved: Any, chosen: str | None, model: str, on: bool) -> Updates:
        """One preset at most is a model's default."""
        presets = read(saved)
        if chosen not in presets:
            return {default: False}
        for values in presets.values():
            if values.get(DEFAULT_FOR) == model:
                del values[DEFAULT_FOR]
        if on:
            presets[chosen][DEFAULT_FOR] = model
        return {kept: presets, export: exported(presets)}

    def store(given: Updates) -> Updates:
        title, presets = " ".join(str(given[name] or "").split())[:LONGEST_NAME], read(given[kept])
        if not title:
            raise refusal(RequestError("preset_name"))
        if title not in presets and len(presets) >= MOST:
            raise refusal(RequestError("too_many_presets", most=MOST))
        of_model = {key: value for key, value in presets.get(title, {}).items() if key == DEFAULT_FOR}
        presets[title] = {**{key: given[field] for key, field in fields.items()}, **of_model}
        return {kept: presets, **offered(presets, title), form.status: said("preset_saved", title)}

    def remove(given: Updates) -> Updates:
        presets = read(given[kept])
        if presets.pop(given[choice] or "", None) is None:
            return gr.skip()
        return {kept: presets, **offered(presets, None), name: "", form.status: said("preset_deleted", given[choice])}

    def receive(path: str, saved: Any) -> Updates:
        """The presets of a file beside those there are; one of the same name replaces."""
        file = Path(path)
        try:
            if file.stat().st_size > MOST_BYTES:
                raise RequestError("not_presets", name=file.name)
            given = parsed_json(file.read_bytes(), file.name)
            new = read(given.get("uso_presets")) if isinstance(given, dict) else {}
            if not new:
                raise RequestError("not_presets", name=file.name)
        except RequestError as error:
            raise refusal(error) from None
        presets = {**read(saved), **new}
        if len(presets) > MOST:
            raise refusal(RequestError("too_many_presets", most=MOST))
        return {kept: presets, **offered(presets, None), form.status: said("presets_read", ", ".join(new))}

    def said(key: str, words: str) -> dict[str, Any]:
        return {"text": say(key, name=words), "percent": 0}

    page.load(lambda saved: offered(read(saved), None), kept, [choice, export], **QUIET)
    choice.input(apply, [kept, choice, form["model"]], [*fields.values(), form.aspect, name, default], **QUIET)
    form["model"].change(begin, [kept, form["model"]], [*fields.values(), form.aspect, name, default, choice], **QUIET)
    default.input(mark, [kept, choice, form["model"], default], [kept, export, default], **QUIET)
    told = [kept, choice, export, form.status]
    save.click(store, {kept, name, *fields.values()}, told, **TOLD)
    delete.click(remove, {kept, choice}, [*told, name], **TOLD)
    take_in.upload(receive, [take_in, kept], told, **TOLD)


def read(saved: Any) -> Presets:
    """The presets in a value from outside; their own values are checked when one is applied."""
    if not isinstance(saved, dict):
        return {}
    return {
        " ".join(name.split())[:LONGEST_NAME]: values
        for name, values in list(saved.items())[:MOST]
        if isinstance(name, str) and name.strip() and isinstance(values, dict)
    }
