"""The Model tab: the current model and where it runs, what each model needs, and how to switch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from uso_core.catalog.locate import WeightsReport, find_weights, offers
from uso_core.catalog.models import EMBEDDED_FILES, MODELS, TOKENIZERS, Model, get_model
from uso_core.errors import UsoError
from uso_core.settings import ROOT, Settings
from uso_core.ui import text
from uso_core.ui.api import licences, switchable
from uso_core.ui.event_options import QUIET, TOLD
from uso_core.ui.form import Form, Updates
from uso_core.ui.inputs import refusal
from uso_core.ui.language import label, say, say_on_load, tell
from uso_core.ui.services import Services

Entries = list[tuple[str, str]]  # lines of the dropdown, and the models' names

WANTED = "flux-dev"  # what whoever has only the embedded model wants next
LOOK_SECONDS = 1.0  # between two checks for changes while the tab is open


@dataclass(frozen=True)
class Panel:
    """The tab's components."""

    work: gr.HTML
    unload: gr.Button
    choice: gr.Dropdown
    files: gr.HTML
    use: gr.Button
    command: gr.Code
    download: gr.Button
    cancel: gr.Button
    progress: gr.HTML
    seen: gr.State  # the lines of the dropdown

    @property
    def shown(self) -> list[Any]:
        """The components that a check updates."""
        return [getattr(self, field.name) for field in dataclasses.fields(self)]


def build(page: gr.Blocks, tab: gr.Tab, tabs: gr.Tabs, services: Services, line: gr.Button, form: Form) -> None:
    """Lays out the tab; `line`, which leads here, and the form follow the current model, also on pages loaded later."""
    engine, settings, downloads = services.engine, services.settings, services.downloads
    built = engine.status().model
    panel = _lay_out(services)
    clock = gr.Timer(LOOK_SECONDS, active=False)
    asked = [panel.choice, panel.seen]
    following = [line, *form.set_for(built)]

    def look(name: str, seen: Entries) -> Updates:
        return _look(services, panel, name, seen)

    def follow() -> Updates:
        return {line: line_now(), **form.set_for(engine.status().model)}

    def line_now() -> str:
        return text.model_line(engine.status().model)

    def lead(seen: Entries) -> Updates:
        model = engine.status().model
        name = WANTED if model.folder else model.name
        return {tabs: gr.Tabs(selected="model"), panel.choice: name, **look(name, seen)}

    def use(name: str, seen: Entries) -> Updates:
        try:
            engine.choose(switchable(engine, settings, name).name)
        except UsoError as error:
            raise refusal(error) from None
        return {**follow(), **look(name, seen)}

    def download(name: str, seen: Entries) -> Updates:
        try:
            downloads.start(get_model(name))
        except UsoError as error:
            raise refusal(error) from None
        return look(name, seen)

    def cancel(name: str, seen: Entries) -> Updates:
        downloads.cancel()
        return look(name, seen)

    def unload(name: str, seen: Entries) -> Updates:
        if settings.may_switch:
            engine.unload()
        return look(name, seen)

    def run_clock(event: gr.SelectData) -> Any:
        return gr.Timer(active=tabs.children[event.index] is tab)

    looks = [tab.select, panel.choice.select, clock.tick]
    gr.on(looks, look, asked, panel.shown, trigger_mode="always_last", **QUIET)
    tabs.select(run_clock, None, clock, **QUIET)
    panel.use.click(use, asked, [*following, *panel.shown], **TOLD)
    panel.download.click(download, asked, panel.shown, **TOLD)
    panel.cancel.click(cancel, asked, panel.shown, **QUIET)
    line.click(lead, panel.seen, [tabs, *panel.shown], **QUIET)
    panel.unload.click(unload, asked, panel.shown, **QUIET)
    page.load(lambda: gr.skip() if engine.status().model is built else follow(), None, following, **QUIET)
    say_on_load(page, lambda: [line_now()], [line])


def _lay_out(services: Services) -> Panel:
    settings, entries = services.settings, _entries(services.settings)
    with gr.Row(equal_height=False, elem_id="model-now"):
        work = gr.HTML(elem_id="model-work")
        unload = gr.Button(label("unload"), size="sm", min_width=110, scale=0, visible=settings.may_switch)
    choice = gr.Dropdown(
        entries, value=services.engine.status().model.name, label=label("choose_model"), filterable=False,
        elem_id="model-choice",
    )  # fmt: skip
    files = gr.HTML(elem_id="model-files")
    use = gr.Button(label("use_model"), visible=settings.may_switch)
    command = gr.Code(
        label=label("command"), language="shell", interactive=False, lines=1,
        show_line_numbers=False, wrap_lines=True, visible=False, buttons=["copy"], elem_id="model-command",
    )  # fmt: skip
    with gr.Row():
        download = gr.Button(label("download"), visible=False, min_width=200)
        cancel = gr.Button(label("cancel_download"), variant="stop", visible=False, min_width=210, scale=0)
    progress = gr.HTML(elem_id="model-download")
    return Panel(work, unload, choice, files, use, command, download, cancel, progress, gr.State(entries))


def _look(services: Services, panel: Panel, name: str, seen: Entries) -> Updates:
    """New values for the panel, with the model of that name in the dropdown; `seen` are the dropdown's lines."""
    settings, now, status = services.settings, services.downloads.now, services.engine.status()
    model = get_model(name)
    report = find_weights(model, settings)
    busy = now is not None and now.running
    lacks = bool(report.missing) and model.folder is None
    fetches = settings.allow_download
    entries, at_work = _entries(settings), model is status.model
    title = say("download_model", title=model.title)
    shown: Updates = {
        panel.work: text.model_at_work(status.model.title, status.reason, status.loaded) + text.workers_table(status),
        panel.unload: gr.Button(interactive=status.loaded is not None),
        panel.files: text.files_table(_rows(report, settings), _summary(report)) + _found(report, settings),
        panel.use: gr.Button(
            say("model_in_use" if at_work else "use_model"), interactive=report.complete and not at_work
        ),
        panel.command: gr.Code(value=f"python weights/downloader.py --variant {name}", visible=lacks),
        panel.download: gr.Button(title, visible=fetches and lacks, interactive=not busy),
        panel.cancel: gr.Button(visible=fetches and busy, interactive=now is not None and not now.stopping),
        panel.progress: text.download_line(now) if fetches and now is not None else "",
        panel.seen: entries,
    }
    if entries != seen:  # the choice stays: the user may have changed it since this check began
        shown[panel.choice] = gr.Dropdown(choices=entries)
    return shown


def _entries(settings: Settings) -> Entries:
    """The dropdown's lines: title, size, licence, whether files are missing; and the names behind them."""
    lines = []
    for model in MODELS.values():
        report = find_weights(model, settings)
        missing = f" · {text.missing_count(report)}" if report.missing else ""
        lines.append((f"{model.title} · {text.size(_bytes(model))} · {licences(model)[0]}{missing}", model.name))
    return lines


def _rows(report: WeightsReport, settings: Settings) -> list[tuple[str, str, str, bool]]:
    """Each part's name, its location or source, its size, and whether it is there."""
    rows = []
    titles = {
        each.role: tell(each.title) for each, standing in offers(report, settings) if standing.key == "offer_used"
    }
    for row in (*report.model.files, *TOKENIZERS):
        if row.role not in (*report.paths, *report.missing):
            continue
        path = report.paths.get(row.role)
        where = text.origin(row.repo, row.gated) if path is None else _place(path, settings)
        size = row.bytes if path is None else _disk_bytes(path)
        rows.append((titles.get(row.role) or say(f"role_{row.role}"), where, text.size(size), path is not None))
    if report.model.folder is not None:
        for role in EMBEDDED_FILES:
            path = report.paths.get(role)
            where = say("not_there") if path is None else _place(path, settings)
            rows.append((say(f"role_{role}"), where, text.size(_disk_bytes(path) if path else 0), path is not None))
    return rows


def _found(report: WeightsReport, settings: Settings) -> str:
    """What the model folders hold besides, for those who may choose."""
    rows = [
        (tell(each.title), _place(each.path, settings), text.size(_disk_bytes(each.path)), tell(standing))
        for each, standing in (offers(report, settings) if settings.may_switch else ())
        if standing.key != "offer_used"
    ]
    return text.found_table(rows) if rows else ""


def _summary(report: WeightsReport) -> str:
    model = report.model
    lacking = sum(row.bytes for row in (*model.files, *TOKENIZERS) if row.role in report.missing)
    return text.model_summary(model, licences(model), text.missing_count(report), text.size(lacking), report.complete)


def _place(path: Path, settings: Settings) -> str:
    """A path for display: inside the project from its folder on; elsewhere only the name if others may read it."""
    if path.is_relative_to(ROOT):
        return str(path.relative_to(ROOT))
    return str(path) if settings.may_switch else path.name


def _bytes(model: Model) -> int:
    if model.folder is not None:
        return _disk_bytes(ROOT / "weights" / model.folder)
    return sum(row.bytes for row in model.files)


def _disk_bytes(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; 0 for what cannot be read."""
    try:
        files = path.rglob("*") if path.is_dir() else [path]
        return sum(file.stat().st_size for file in files if file.is_file())
    except OSError:
        return 0
