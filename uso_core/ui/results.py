"""The results: the image shown, this session's others, and what can be done with the selected one."""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import gradio as gr

from uso_core.catalog.models import MODELS
from uso_core.comfy import export_workflow, import_workflow, workflow_in_exif, workflow_in_png_text
from uso_core.errors import RequestError, UsoError
from uso_core.images import webp_texts
from uso_core.messages import Message
from uso_core.request import InputImage, LoRA, StoredStyle
from uso_core.storage.files import OUR_NAME, write_whole
from uso_core.storage.history import is_starred, thumbnail_of
from uso_core.storage.png import as_record, png_texts
from uso_core.text_files import parsed_json
from uso_core.ui import lora_rows, presets, text
from uso_core.ui.browser_storage import carrier
from uso_core.ui.card_grid import Card, cards, file_address, html, keys_of, pressed
from uso_core.ui.event_options import QUIET, TOLD
from uso_core.ui.form import STORED, STYLES, Form, Updates
from uso_core.ui.inputs import refusal
from uso_core.ui.kept_images import in_place
from uso_core.ui.language import label, say, tell
from uso_core.ui.run import Run
from uso_core.ui.services import Services, Stores
from uso_core.ui.temporary_files import passing_path

MOST_SHELVED = 60  # images of this session that are shown


def fetch(elem_id: str) -> str:
    """Downloads what a hidden button has just been given."""
    return f"() => document.querySelector('#{elem_id}')?.click()"


@dataclass(frozen=True)
class Results:
    """The components others write to. Whatever changes `selected` also shows that image; all else follows from it."""

    image: gr.Image
    selected: gr.State  # path of the image that settings, seed, comparison, export and actions are about
    strip: gr.HTML  # this session's images
    archive: gr.Button
    queue: gr.HTML  # this page's runs, if there are several

    def showing(self, path: str | None) -> Updates:
        """Selects an image."""
        return {self.image: path, self.selected: path}

    def shelf(self, made: Sequence[str]) -> Updates:
        """Shows this session's images, newest first."""
        there = list(map(Path, reversed(made)))
        shown = [
            Card(path.name, say("image_of_session", number=len(there) - place), "", (file_address(thumbnail_of(path)),),
                 file_address(path), is_starred(path), passing=not OUR_NAME.fullmatch(path.stem))
            for place, path in enumerate(there[:MOST_SHELVED])
        ]  # fmt: skip
        return {self.strip: html([("", shown)]), self.archive: gr.Button(interactive=bool(there))}

    def queued(self, runs: Sequence[Run]) -> str:
        """The value of `queue`: each run can be ended; one alone has the Stop button."""
        if len(runs) < 2:
            return ""
        cards = [
            Card(run.key, run.prompt or say("no_prompt"), say("end_run"),
                 (file_address(Path(run.thumbnail)),) if run.thumbnail else ())
            for run in runs
        ]  # fmt: skip
        return html([(say("queue"), cards)])


def build_results(form: Form, services: Services) -> Results:
    """Lays out the right side of the page and connects it to the form."""
    output = Path(services.settings.output)
    image = in_place(gr.Image, output)(
        label=label("result"), type="filepath", format="png", interactive=False, height=None, elem_id="result",
        buttons=["download"],
    )  # fmt: skip
    with gr.Row(elem_id="actions"):
        as_content, as_style, reuse, reuse_seed = (
            gr.Button(label(name), size="sm", min_width=80)
            for name in ("use_as_content", "use_as_style", "reuse_settings", "reuse_seed")
        )
    with gr.Column(min_width=120, elem_id="session"):
        gr.Markdown(label("visit"), elem_id="session-title")
        strip = cards("visit", label("visit"))
        queue = cards("queue", label("queue"))
    with gr.Accordion(label("settings_of_image"), open=False):
        settings = gr.Textbox(label=label("settings"), lines=8, interactive=False, buttons=["copy"])
    with gr.Accordion(label("compare_with"), open=False):
        compare = in_place(gr.ImageSlider, output)(
            label=label("compare"), interactive=False, max_height=420, buttons=[], elem_id="compare"
        )
    with gr.Row(elem_id="files"):
        seed_used = gr.Textbox(label=label("seed_used"), interactive=False, max_lines=1, min_width=120)
        with gr.Column(min_width=160):
            restore = gr.UploadButton(
                label("restore_file"), file_types=[".png", ".webp", ".json"], elem_id="restore", size="sm"
            )
            with gr.Row():
                comfy = gr.Button(label("comfy"), size="sm", interactive=False, min_width=100)
                comfy_file = gr.DownloadButton("json", elem_id="comfy-file", visible="hidden")
                archive = gr.Button(label("archive"), size="sm", interactive=False, min_width=100)
                archive_file = gr.DownloadButton("zip", elem_id="archive-file", visible="hidden")
    results = Results(image, gr.State(None), strip, archive, queue)
    pressed_card = carrier()
    asked = [pressed_card, results.selected]
    now: dict[str, Any] = {"js": pressed("visit"), "trigger_mode": "always_last"}

    def describe(path: str | None, request: gr.Request) -> Updates:
        shown = {settings: "", compare: None, comfy: gr.Button(interactive=False), seed_used: ""}
        if not path:
            return shown
        try:
            made, stored = services.stores(request).history.restore(Path(path))
        except UsoError as error:
            return {**shown, settings: tell(error.told)}
        content = stored.get(made.content.sha256) if made.content else None
        return {
            settings: text.settings(made),
            compare: (str(content), path) if content else None,
            comfy: gr.Button(interactive=True),
            seed_used: str(made.seed),
        }

    def export(names: Any, selected: str | None, request: gr.Request) -> str | None:
        path = _meant(names, selected, services, request)
        if path is None:
            return None
        try:
            made, _ = services.stores(request).history.restore(Path(path))
            workflow = passing_path(f"{Path(path).stem}.comfyui.json")
            text_of_it = json.dumps(export_workflow(made)).encode()
            write_whole(workflow, lambda file: file.write(text_of_it))
        except UsoError as error:
            raise refusal(error) from None
        return str(workflow)

    def into_content(names: Any, selected: str | None, request: gr.Request) -> Updates:
        path = _meant(names, selected, services, request)
        told = _told(form, services, request, "now_content" if path else "nothing_selected")
        return {form["content"]: path, **told} if path else told

    def pack(request: gr.Request) -> str | None:
        return packed(list(map(Path, services.runs.made(services.sessions.page(request.session_hash or "")))))

    archive.click(pack, None, archive_file, **TOLD).then(None, None, None, js=fetch("archive-file"), **QUIET)
    comfy.click(export, asked, comfy_file, **now, **TOLD).then(None, None, None, js=fetch("comfy-file"), **QUIET)
    results.selected.change(describe, results.selected, [settings, compare, comfy, seed_used], **QUIET)
    as_content.click(into_content, asked, [form["content"], form.status], **now, **QUIET)
    reuse_seed.click(lambda seed: int(seed) if seed else gr.skip(), seed_used, form["seed"], **QUIET)
    _wire_slots(form, services, as_style, asked, now)
    _wire_restore(form, services, reuse, restore, asked, now)
    return results


def _meant(names: Any, selected: str | None, services: Services, request: gr.Request) -> str | None:
    """The image of the pressed card of this session, which is shown or about to be; else the one that is selected."""
    page = services.sessions.page(request.session_hash or "")
    own = {Path(each).name: each for each in services.runs.made(page)}
    return next((own[name] for name in keys_of(names) if name in own), selected)


def _told(form: Form, services: Services, request: gr.Request, key: str) -> Updates:
    """A text in the status line, unless a run is being followed there."""
    if services.sessions.jobs(request.session_hash or ""):
        return {form.status: gr.skip()}
    return {form.status: {"text": say(key), "percent": 0}}


def _wire_slots(
    form: Form, services: Services, as_style: gr.Button, asked: list[Any], now: dict[str, Any]
) -> None:  # fmt: skip
    def into_style(names: Any, selected: str | None, request: gr.Request, *slots: Any) -> Updates:
        path = _meant(names, selected, services, request)
        told = _told(form, services, request, "now_style" if path else "nothing_selected")
        free = form.free_style(dict(zip(form.style_slots, slots, strict=True)))
        return {free: path, **told} if path else told

    as_style.click(into_style, [*asked, *form.style_slots], [*form.style_slots, form.status], **now, **QUIET)


def _wire_restore(
    form: Form, services: Services, reuse: gr.Button, restore: gr.UploadButton, asked: list[Any], now: dict[str, Any]
) -> None:  # fmt: skip
    def reuse_settings(names: Any, selected: str | None, request: gr.Request) -> Updates:
        return put_back(_meant(names, selected, services, request), request)

    def put_back(path: str | None, request: gr.Request) -> Updates:
        if not path:
            return {form.status: {"text": say("nothing_selected"), "percent": 0}}
        try:
            workflow = _workflow(Path(path))
            if workflow is None:
                updates, words = restored(form, services, services.stores(request), Path(path))
            else:
                found = import_workflow(workflow)
                kept = services.stores(request).history.inputs((found.content_sha256, *found.styles_sha256))
                here = lora_rows.by_file_name(found.loras, found.lora_folders, services.settings)
                updates = form.imported(found, kept, [lora for lora in here if isinstance(lora, LoRA)])
                model = services.engine.status().model
                words = text.imported(found, kept, STYLES, here, model)
        except UsoError as error:
            raise refusal(error) from None
        return {**updates, form.status: {"text": words, "percent": 0}}

    outputs = [*form.restorable, form.status]
    reuse.click(reuse_settings, asked, outputs, **now, **TOLD)
    restore.upload(put_back, restore, outputs, trigger_mode="always_last", **TOLD)


def restored(form: Form, services: Services, stores: Stores, path: Path) -> tuple[Updates, str]:
    """Values for the fields from a PNG of ours, and a sentence naming the inputs that cannot be restored.

    Raises `RequestError` if the file is not ours.
    """
    request, images = stores.history.restore(path)
    given: list[InputImage | StoredStyle] = [style for style in request.styles if isinstance(style, InputImage)]
    stored = [style for style in request.styles if isinstance(style, StoredStyle)]
    there = {style.sha256 for style in stored if stores.styles.holds(style.sha256)}
    placed = [*([request.content] if request.content else []), *given[:STYLES], *stored[:STORED]]
    lost = [each.name for each in placed if each.sha256 not in {*images, *there}]
    beyond = [each.name for each in [*given[STYLES:], *stored[STORED:]]]
    loras, told = lora_rows.there(request, services.settings)
    model = services.engine.status().model
    if request.model not in (None, model.name):
        made = MODELS[request.model].title if request.model in MODELS else request.model
        told.append(Message("restored_model", {"name": made, "title": model.title}))
    return form.updates(request, images, there, loras), text.restored(lost, beyond, told)


def _workflow(path: Path) -> str | bytes | None:
    """The ComfyUI workflow in a JSON file or in an image's texts; None if there is none, or a record of ours.

    Raises `RequestError` for a file with presets, which another button takes.
    """
    if path.suffix.lower() == ".json":
        data, values = path.read_bytes(), None
        with contextlib.suppress(RequestError):  # the importer tells what is wrong with it
            values = parsed_json(data, path.name)
        if isinstance(values, dict) and presets.IN_FILE in values:
            raise RequestError("presets_file", hint="presets_file", name=path.name)
        return None if as_record(values) else data
    if path.suffix.lower() == ".webp":
        return workflow_in_exif(webp_texts(path))
    return workflow_in_png_text(png_texts(path))


def packed(paths: Sequence[Path]) -> str | None:
    """The path of an archive of the images, uncompressed: PNG does not shrink further. Raises what the page shows."""
    there = [path for path in paths if path.is_file()]
    if not there:
        return None

    def write(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w", strict_timestamps=False) as archive:
            for path in there:
                archive.write(path, path.name)

    try:
        target = passing_path("uso.zip")
        write_whole(target, write)
    except UsoError as error:
        raise refusal(error) from None
    return str(target)
