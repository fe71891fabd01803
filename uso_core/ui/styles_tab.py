"""The Styles tab: name the styles in the slots, and use, rename, share or delete stored ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from uso_core import images
from uso_core.errors import RequestError, UsoError
from uso_core.events import Failed, StylesReady
from uso_core.request import GenerationRequest
from uso_core.storage.files import write_whole
from uso_core.storage.styles import StyleEntry, StyleStore, mosaic
from uso_core.ui import text
from uso_core.ui.browser_storage import carrier
from uso_core.ui.card_grid import Card, cards, data_address, html, keys_of, pressed
from uso_core.ui.event_options import QUIET, TOLD
from uso_core.ui.form import STYLES, Form, Status, Updates, chosen_styles, status_line
from uso_core.ui.inputs import refusal
from uso_core.ui.language import label, say, tell
from uso_core.ui.results import fetch
from uso_core.ui.run import PATIENCE, describe
from uso_core.ui.services import Services
from uso_core.ui.temporary_files import passing_path

GRID = "style-cards"
EMPTY = '(written, saved) => written === saved ? "" : undefined'  # undefined leaves what was written meanwhile


def build(tabs: gr.Tabs, tab: gr.Tab, services: Services, form: Form) -> None:
    """Lays out the tab; the styles are read again whenever it is opened."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            gr.Markdown(label("styles_intro"))
            name = gr.Textbox(label=label("style_name"), placeholder=label("style_name_hint"), max_lines=1)
            with gr.Row(elem_classes="one-line"):
                save = gr.Button(label("save_style"), size="sm", min_width=110)
                take_in = gr.UploadButton(label("import_style"), file_types=[".safetensors"], size="sm", min_width=110)
            status = status_line("styles-status", "")
        with gr.Column(scale=3, min_width=280):
            shown = cards(GRID, label("tab_styles"))
            with gr.Row(elem_classes="one-line"):
                called = gr.Textbox(label=label("chosen_style"), max_lines=1, scale=3, min_width=160)
                use = gr.Button(label("use_in_slot"), min_width=110, interactive=False)
            with gr.Row(elem_classes="one-line"):
                rename = gr.Button(label("rename"), size="sm", min_width=80, interactive=False)
                export = gr.Button(label("export_style"), size="sm", min_width=80, interactive=False)
                delete = gr.Button(label("delete_style"), variant="stop", size="sm", min_width=80, interactive=False)
                export_file = gr.DownloadButton("safetensors", elem_id="style-file", visible="hidden")
    picked = carrier()
    key, sure = gr.State(""), gr.State("")  # the one that is described, and the one that a first click asked to delete
    named = gr.Textbox(visible=False)  # as the last one saved was called
    made_of = gr.State({})  # the image files of the styles saved on this page, by sha256
    image_slots = [form[f"style_{number}"] for number in range(1, STYLES + 1)]
    all_slots = [*form.stored_fields, *image_slots]
    listed = [shown, *form.stored]
    one = [key, called, sure, delete]

    def disarmed() -> Updates:
        return {sure: "", delete: gr.Button(label("delete_style"))}

    def look(request: gr.Request) -> Updates:
        styles = styles_of(request)
        return {shown: _cards(styles), **form.refreshed(styles)}

    def look_anew(request: gr.Request) -> Updates:
        return {**look(request), **disarmed()}

    def styles_of(request: gr.Request) -> StyleStore:
        return services.stores(request).styles

    def said(key: str, entry: StyleEntry, percent: int = 0) -> Updates:
        return {status: {"text": say(key, name=entry.name), "percent": percent}}

    def choose(names: Any, confirmed: str, request: gr.Request) -> Updates:
        styles = styles_of(request)
        entry = _entry(styles, _first(names))
        return {key: entry.sha256, called: entry.name, **({} if confirmed == entry.sha256 else disarmed())}

    def exported(names: Any, request: gr.Request) -> str:
        styles = styles_of(request)
        return _exported(styles, _entry(styles, _first(names)))

    def put_in_slot(names: Any, made: dict[str, list[str]], *values: Any) -> Updates:
        """What the style was just made of leaves its slots, images and stored styles, else it would count twice."""
        given = dict(zip(all_slots, values, strict=True))
        slots, sha256 = form.stored_fields, _first(names)
        sources = set(made.get(sha256, ()))
        emptied: Updates = {field: None for field in image_slots if given[field] in sources}
        emptied |= {field: "" for field in slots if given[field] in sources and given[field] != sha256}
        free = next((slot for slot in slots if slot in emptied or given[slot] in ("", None, sha256)), None)
        if free is None:
            raise refusal(RequestError("style_slots_full"))
        return {**emptied, free: sha256, tabs: gr.Tabs(selected="create")}

    def change_name(names: Any, words: str, request: gr.Request) -> Updates:
        with _told():
            entry = styles_of(request).rename(_first(names), words)
        return {**said("style_renamed", entry), called: entry.name, **look(request)}

    def remove(names: Any, confirmed: str, request: gr.Request) -> Updates:
        styles, sha256 = styles_of(request), _first(names)
        if confirmed != sha256:
            return {sure: sha256, delete: gr.Button(label("delete_sure"))}
        with _told():
            entry = _entry(styles, sha256)
            styles.delete(sha256)
        return {**said("style_deleted", entry), key: "", called: "", **disarmed(), **look(request)}

    def receive(path: str, request: gr.Request) -> Updates:
        with _told():
            entry = styles_of(request).take_in(Path(path))
        return {**said("style_saved", entry), **look(request)}

    def store(given: Updates, request: gr.Request) -> Iterator[Updates]:
        """The model may have to be loaded first."""
        styles = styles_of(request)
        try:
            free = styles.free_name(given[name])
            asked, thumbnails = _asked(form.values(given), styles, services.settings.background)
            for event in _encode(services, asked, request):
                if isinstance(event, StylesReady):
                    small = mosaic(thumbnails)
                    entry = styles.add(free, event.tokens, event.strengths, event.model, event.fingerprint, small)
                    sources = {
                        **given[made_of],
                        entry.sha256: [value for slot in (*image_slots, *form.stored_fields) if (value := given[slot])],
                    }
                    yield {**said("style_saved", entry, 100), named: given[name], made_of: sources, **look(request)}
                else:
                    yield {status: event}
        except UsoError as error:
            yield {status: {"text": tell(error.told), "percent": 0}}
            raise refusal(error) from None

    tab.select(look_anew, None, [*listed, sure, delete], **QUIET)
    now = {"js": pressed(GRID), **TOLD}
    shown.click(choose, [picked, sure], one, trigger_mode="always_last", **now)
    key.change(lambda key: [gr.Button(interactive=bool(key))] * 4, key, [use, rename, export, delete], **QUIET)
    use.click(put_in_slot, [picked, made_of, *all_slots], [*all_slots, tabs], **now)
    rename.click(change_name, [picked, called], [status, called, *listed], **now)
    copied = export.click(exported, picked, export_file, **now)
    copied.success(None, None, None, js=fetch("style-file"), **QUIET)
    delete.click(remove, [picked, sure], [status, *one, *listed], **now)
    take_in.upload(receive, take_in, [status, *listed], **TOLD)
    saved = save.click(
        store, {name, made_of, *form.components}, [status, named, made_of, *listed],
        api_visibility="private", concurrency_limit=None, show_progress="hidden",
    )  # fmt: skip
    saved.success(None, [name, named], name, js=EMPTY, **QUIET)


def _encode(services: Services, asked: GenerationRequest, request: gr.Request) -> Iterator[Status | StylesReady]:
    """Status texts while it runs, then the styles; closing the page ends it."""
    session = request.session_hash or ""
    job = services.engine.encode_styles(asked, services.visitor(request))
    services.sessions.add(session, job)
    try:
        for event in job.events(PATIENCE):
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, StylesReady):
                yield event
            elif (status := describe(event, job)) is not None:
                yield status
    finally:
        job.cancel()
        services.sessions.remove(job)


def _asked(values: dict[str, Any], styles: StyleStore, background: str) -> tuple[GenerationRequest, list[Any]]:
    """A request with only the styles in the slots, and an image to show for each."""
    used, strengths = chosen_styles(values, styles, background)
    if not used:
        raise RequestError("no_style_images", hint="fill_a_slot")
    small = {entry.sha256: entry.thumbnail for entry in styles.entries()}
    thumbnails = [
        getattr(style, "image", None) or images.open_image(small[style.sha256], style.name).image for style in used
    ]
    return GenerationRequest(styles=used, style_strengths=strengths, model=values["model"]), thumbnails


def _first(names: Any) -> str:
    """The key of the chosen card, or an empty one."""
    return next(iter(keys_of(names)), "")


def _cards(styles: StyleStore) -> str:
    entries = styles.entries()
    if not entries:
        return f"<p>{say('no_styles')}</p>"
    shown = [
        Card(entry.sha256, entry.name, text.saved_style(entry.model, len(entry.strengths), entry.created),
             (data_address(entry.thumbnail),))
        for entry in entries
    ]  # fmt: skip
    return html([("", shown)])


def _entry(styles: StyleStore, sha256: str) -> StyleEntry:
    found = next((entry for entry in styles.entries() if entry.sha256 == sha256), None)
    if found is None:
        raise refusal(RequestError("style_gone", hint="choose_another"))
    return found


def _exported(styles: StyleStore, entry: StyleEntry) -> str:
    """A copy of the style's file under a telling name, for the browser to download."""
    words = "".join(each if each.isalnum() else "-" for each in entry.name).strip("-") or "style"
    copy = passing_path(f"{words[:60]}.safetensors")
    data = styles.path(entry.sha256).read_bytes()
    write_whole(copy, lambda file: file.write(data))
    return str(copy)


class _told:
    """Turns a `UsoError` into Gradio's, which the page shows."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, UsoError):
            raise refusal(error) from None
