"""The Model tab: what is at work and where, what each model needs, and the way to another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from uso_core.catalog.download import size_text
from uso_core.catalog.locate import WeightsReport, find_weights
from uso_core.catalog.models import EMBEDDED_FILES, MODELS, Model, get_model
from uso_core.errors import UsoError
from uso_core.runtime.engine import Engine
from uso_core.settings import ROOT, Settings
from uso_core.ui import text
from uso_core.ui.api import licences, switchable
from uso_core.ui.downloads import Downloads
from uso_core.ui.form import QUIET, TOLD, Form
from uso_core.ui.inputs import refusal
from uso_core.ui.language import label, say, say_on_load

LOOK_SECONDS = 1.0  # between two looks at what changes by itself, while the tab is open


class Panel:
    """The tab's components, and what they show."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine, self._settings = engine, settings
        self.downloads = Downloads(settings)
        with gr.Row(equal_height=False, elem_id="model-now"):
            self.work = gr.HTML(elem_id="model-work")
            self.unload = gr.Button(label("unload"), size="sm", min_width=110, scale=0, visible=settings.may_switch)
        self.choice = gr.Dropdown(
            self.entries(),
            value=engine.model.name,
            label=label("choose_model"),
            filterable=False,
            elem_id="model-choice",
        )
        self.files = gr.HTML(elem_id="model-files")
        self.use = gr.Button(label("use_model"), variant="primary", visible=settings.may_switch)
        self.command = gr.Code(
            label=label("command"), language="shell", interactive=False, lines=1,
            show_line_numbers=False, wrap_lines=True, visible=False, buttons=["copy"], elem_id="model-command",
        )  # fmt: skip
        with gr.Row():
            self.download = gr.Button(label("download"), visible=False, min_width=200)
            self.cancel = gr.Button(label("cancel_download"), variant="stop", visible=False, min_width=210, scale=0)
        self.progress = gr.HTML(elem_id="model-download")
        self.seen = gr.State(self.entries())

    @property
    def shown(self) -> list[gr.components.Component]:
        return [self.work, self.unload, self.files, self.use, self.command, self.download, self.cancel, self.progress,
                self.choice, self.seen]  # fmt: skip

    def look(self, name: str, seen: list[tuple[str, str]]) -> list[Any]:
        """New values for all that is shown, with the model named in the dropdown; `seen` are the dropdown's lines."""
        engine, settings, now = self._engine, self._settings, self.downloads.now
        model = get_model(name)
        report = find_weights(model, settings)
        busy = now is not None and now.running
        lacks = bool(report.missing) and model.folder is None
        entries, at_work = self.entries(), model.name == engine.model.name
        return [
            text.model_at_work(engine.model.title, engine.loaded, engine.plan),
            gr.Button(interactive=engine.loaded is not None),
            text.files_table(_rows(report, settings), _summary(report)),
            gr.Button(say("model_in_use" if at_work else "use_model"), interactive=not at_work),
            gr.Code(value=f"python weights/downloader.py --variant {name}", visible=lacks),
            gr.Button(
                say("download_model", title=model.title),
                visible=settings.allow_download and lacks,
                interactive=not busy,
            ),
            gr.Button(visible=settings.allow_download and busy, interactive=now is not None and not now.stopping),
            text.download_line(now) if settings.allow_download and now is not None else "",
            # The choice itself stays as it is: another one may have been made since this look began.
            gr.Dropdown(choices=entries) if entries != seen else gr.skip(),
            entries,
        ]

    def entries(self) -> list[tuple[str, str]]:
        """The dropdown's lines: title, size, licence, whether files are missing; and the names behind them."""
        lines = []
        for model in MODELS.values():
            report = find_weights(model, self._settings)
            missing = f" · {text.missing_count(report)}" if report.missing else ""
            lines.append((f"{model.title} · {size_text(_bytes(model))} · {licences(model)[0]}{missing}", model.name))
        return lines


def build(
    page: gr.Blocks, tab: gr.Tab, tabs: gr.Tabs, line: gr.Markdown, form: Form, engine: Engine, settings: Settings
) -> None:  # fmt: skip
    """Lays out the tab; `line` and the form follow the model at work, also on pages that are loaded later."""
    built = engine.model.name
    panel = Panel(engine, settings)
    clock = gr.Timer(LOOK_SECONDS, active=False)
    asked = [panel.choice, panel.seen]
    following = [line, *form.set_for(engine.model)]

    def follow() -> list[Any]:
        return [line_now(), *form.set_for(engine.model).values()]

    def line_now() -> str:
        return text.model_line(engine.model.title, engine.reason, engine.model.note)

    def use(name: str, seen: list[tuple[str, str]]) -> list[Any]:
        try:
            engine.choose(switchable(engine, settings, name).name)
        except UsoError as error:
            raise refusal(error) from None
        return [*follow(), *panel.look(name, seen)]

    def download(name: str, seen: list[tuple[str, str]]) -> list[Any]:
        try:
            panel.downloads.start(get_model(name))
        except UsoError as error:
            raise refusal(error) from None
        return panel.look(name, seen)

    def cancel(name: str, seen: list[tuple[str, str]]) -> list[Any]:
        panel.downloads.cancel()
        return panel.look(name, seen)

    def unload(name: str, seen: list[tuple[str, str]]) -> list[Any]:
        if settings.may_switch:
            engine.unload()
        return panel.look(name, seen)

    def run_clock(event: gr.SelectData) -> Any:
        return gr.Timer(active=tabs.children[event.index] is tab)

    gr.on([tab.select, panel.choice.input, clock.tick], panel.look, asked, panel.shown, trigger_mode="always_last",
          **QUIET)  # fmt: skip
    tabs.select(run_clock, None, clock, **QUIET)
    panel.use.click(use, asked, [*following, *panel.shown], **TOLD)
    panel.download.click(download, asked, panel.shown, **TOLD)
    panel.cancel.click(cancel, asked, panel.shown, **QUIET)
    panel.unload.click(unload, asked, panel.shown, **QUIET)
    page.load(lambda: [gr.skip()] * len(following) if engine.model.name == built else follow(), None, following,
              **QUIET)  # fmt: skip
    say_on_load(page, lambda: [line_now()], [line])


def _rows(report: WeightsReport, settings: Settings) -> list[tuple[str, str, str, bool]]:
    """What each part is, where it lies or comes from, its size, and whether it is there."""
    rows = []
    for row in report.model.files:
        path = report.paths.get(row.role)
        where = text.origin(row.repo, row.gated) if path is None else _place(path, settings)
        size = row.bytes if path is None else _disk_bytes(path)
        rows.append((say(f"role_{row.role}"), where, size_text(size), path is not None))
    if report.model.folder is not None:
        for role in EMBEDDED_FILES:
            path = report.paths.get(role)
            where = say("not_there") if path is None else _place(path, settings)
            rows.append((say(f"role_{role}"), where, size_text(_disk_bytes(path) if path else 0), path is not None))
    return rows


def _summary(report: WeightsReport) -> str:
    model = report.model
    lacking = sum(row.bytes for row in model.files if row.role in report.missing)
    return text.model_summary(model, licences(model), text.missing_count(report), size_text(lacking), report.complete)


def _place(path: Path, settings: Settings) -> str:
    """A path for people: within the project from its folder on; of others only the name where others may read it."""
    if path.is_relative_to(ROOT):
        return str(path.relative_to(ROOT))
    return str(path) if settings.may_switch else path.name


def _bytes(model: Model) -> int:
    if model.folder is not None:
        return _disk_bytes(ROOT / "weights" / model.folder)
    return sum(row.bytes for row in model.files)


def _disk_bytes(path: Path) -> int:
    """Bytes of a file, or of all in a folder; 0 for what cannot be read."""
    try:
        files = path.rglob("*") if path.is_dir() else [path]
        return sum(file.stat().st_size for file in files if file.is_file())
    except OSError:
        return 0
