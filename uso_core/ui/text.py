"""The page's sentences with values to fill in; the texts themselves are in translations/, one file per language."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import date, datetime, timedelta
from html import escape
from typing import TYPE_CHECKING

from uso_core.catalog.download import size_text
from uso_core.catalog.files import variant_called
from uso_core.catalog.locate import WeightsReport
from uso_core.catalog.models import Model
from uso_core.comfy import ComfyImport
from uso_core.events import ImageReady, Unread
from uso_core.messages import Message
from uso_core.request import SAMPLERS, GenerationRequest, LoRA, StoredStyle
from uso_core.ui.language import say, tell

if TYPE_CHECKING:
    from uso_core.runtime.engine import Status as EngineStatus
    from uso_core.runtime.executors import WorkerState
    from uso_core.ui.downloads import Download

TITLE = "USO"
SHOWN_CHARACTERS = 80  # of a long prompt
ALL_READ = Unread()
LORA_NOTES = ("note_lora_ignored", "note_lora_ignored_unknown")


def mode_key(content: bool, styles: int, prompt: str) -> str:
    """The key of the mode, which follows from what is filled in; `advice_` plus it says how to write the prompt."""
    parts = ["style"] * bool(styles) + ["subject"] * content or ["text"]
    return "_".join([*parts, *(["empty"] if not prompt.strip() else [])])


def mode(content: bool, styles: int, prompt: str) -> str:
    """The name of the mode, which follows from what is filled in, with one line of advice."""
    key = mode_key(content, styles, prompt)
    name = say(f"mode_{key.replace('style', 'styles') if styles > 1 else key}", styles=styles)
    return say("mode_line", name=name, advice=say(f"advice_{key}"))


def model_line(model: Model) -> str:
    """The current model and its size, and what is better than a demonstration."""
    return say("model_line_demo" if model.folder else "model_line", title=model.title, size=model.size)


def size(count: int) -> str:
    """Bytes for display, as the downloader shows them, in the request's language."""
    return size_text(count).replace(".", say("decimal_point"))


def waiting(ahead: int) -> str:
    """The position in the queue."""
    return say("waiting", ahead=ahead)


def loading(message: Message) -> str:
    """Which part of the model is being read."""
    return say("loading", what=message)


def stepping(image: int, images: int, step: int, steps: int, each: float, left: float, more: int) -> str:
    """A run's progress, in seconds per step and seconds left, and how many more of this page wait behind it."""
    key = "step_of_image" if images > 1 else "step"
    words = say(key, image=image, images=images, step=step, steps=steps, each=duration(each), left=duration(left))
    if not more:
        return words
    return f"{words} {say('one_more_waits') if more == 1 else say('more_wait', count=more)}"


def ready(event: ImageReady, images: int) -> str:
    """The end of a run, or of one of several images."""
    if event.index + 1 < images:
        return say("image_ready", image=event.index + 1, images=images)
    return done(event.result.seconds, event.result.seed, event.unread)


def of_grid(cell: int, cells: int, words: str) -> str:
    """Progress of one cell of a comparison grid."""
    return say("grid_cell", cell=cell, cells=cells, words=words)


def done(seconds: float, seed: int, unread: Unread = ALL_READ) -> str:
    """The end of a run, and what of the prompt was not read."""
    return " ".join((say("done", time=duration(seconds), seed=seed), *map(tell, unread.told)))


def day(when: date, today: date) -> str:
    """A day's heading in the history."""
    if when == today:
        return say("today")
    if when == today - timedelta(days=1):
        return say("yesterday")
    weekday, month = say("weekdays").split()[when.weekday()], say("months").split()[when.month - 1]
    return say("day", weekday=weekday, day=when.day, month=month, year=when.year)


def entry(when: datetime, prompt: str) -> str:
    """One image of the history, in one line."""
    return f"{when:%Y-%m-%d %H:%M}  {prompt[:SHOWN_CHARACTERS] or say('no_prompt')}"


def saved_style(model: str, images: int, created: datetime) -> str:
    """What is known of a stored style besides its name."""
    return say(
        "style_one_image" if images == 1 else "style_images", model=model, count=images, date=f"{created:%Y-%m-%d}"
    )


def duration(seconds: float) -> str:
    """Seconds in readable form: 0.31 s, 6 s, 2 min 5 s."""
    if seconds < 1:
        return say("seconds", seconds=say("decimal", number=seconds))
    if seconds < 60:
        return say("seconds", seconds=f"{seconds:.0f}")
    return say("minutes", minutes=int(seconds // 60), seconds=int(seconds % 60))


def settings(request: GenerationRequest) -> str:
    """A request as readable lines, without values at a default that has no effect."""
    strengths = request.style_strengths or (1.0,) * len(request.styles)
    lines = [
        say("settings_prompt", prompt=request.prompt) if request.prompt else say("settings_no_prompt"),
        say("settings_mode", mode=request.mode),
        say("settings_size", width=request.width, height=request.height),
        say("settings_seed", seed=request.seed),
        say("settings_steps", steps=request.steps, guidance=f"{request.guidance:g}", schedule=request.schedule),
    ]
    if request.sampler != SAMPLERS[0]:
        lines[-1] = say("settings_sampler", line=lines[-1], sampler=request.sampler)
    if request.fast:
        lines[-1] = say("settings_fast", line=lines[-1])
    if request.content:
        name, given = request.content.name, f"{request.content_strength:g}"
        lines.append(say("settings_content", name=name, side=request.content_size, strength=given))
    for place, (style, strength) in enumerate(zip(request.styles, strengths, strict=True), 1):
        key = "settings_saved_style" if isinstance(style, StoredStyle) else "settings_style"
        lines.append(say(key, place=place, name=style.name, strength=f"{strength:g}"))
    for lora in request.loras:
        lines.append(say("settings_lora", name=lora.name, strength=f"{lora.strength:g}"))
    return "\n".join([*lines, say("settings_model", model=request.model)])


def imported(
    workflow: ComfyImport, kept: Collection[str], slots: int, loras: Sequence[LoRA | Message | None], model: Model
) -> str:
    """What was read from a ComfyUI workflow: the images to choose, and what has no counterpart here.

    `kept` are the hashes of those images that the history has, `slots` how many styles the page takes, `loras` what
    `lora_rows.by_file_name` says of the workflow's, `model` the one at work.
    """
    parts = [say("imported")]
    styles = list(zip(workflow.styles[:slots], workflow.styles_sha256, strict=False))
    found = [workflow.content] if workflow.content and workflow.content_sha256 in kept else []
    found += [name for name, sha256 in styles if sha256 in kept]
    wanted = [name for name, sha256 in styles if sha256 not in kept] + list(workflow.styles[slots:])
    if found:
        parts.append(say("imported_kept", names=", ".join(found)))
    if workflow.content and workflow.content_sha256 not in kept:
        parts.append(say("imported_content", name=workflow.content))
    if wanted:
        parts.append(say("imported_styles", names=", ".join(wanted)))
    if workflow.model_file and model.folder is None and variant_called(workflow.model_file) != model.variant:
        parts.append(say("imported_model", name=workflow.model_file, title=model.title))
    here = {lora.name for lora, found in zip(workflow.loras, loras, strict=True) if found is not None}
    notes = [note for note in workflow.notes if not (note.key in LORA_NOTES and note.values.get("name") in here)]
    return " ".join([*parts, *map(tell, notes), *(tell(found) for found in loras if isinstance(found, Message))])


def restored(lost: list[str], beyond: list[str], loras: Sequence[Message] = ()) -> str:
    """What was restored from an image, which inputs were lost, which styles exceed the page's slots, and its LoRAs."""
    words = [say("restored_without", names=", ".join(lost))] if lost else []
    words += [say("restored_beyond", names=", ".join(beyond))] if beyond else []
    if loras and not words:
        words = [say("restored_except")]
    return " ".join([*words, *map(tell, loras)]) or say("restored")


def model_at_work(title: str, reason: Message, loaded: WorkerState | None) -> str:
    """HTML: which model is in memory, where, by which plan; which comes next, if it is another, and why it is."""
    why = f"<p>{escape(say('model_reason', reason=reason))}</p>"
    if loaded is None:
        unloaded, later = escape(say("model_unloaded", title=title)), escape(say("model_read_later"))
        return f"<p class='lead'>{unloaded}</p>{why}<p>{later}</p>"
    plan = loaded.plan
    at_work = say("model_loaded", title=loaded.model.title, device=loaded.device, dtype=loaded.dtype)
    words = f"<p class='lead'>{escape(at_work)}</p>"
    if loaded.model.title != title:
        words += f"<p>{escape(say('model_next', title=title))}</p>"
    words += why
    lines = "".join(
        f"<tr><th scope='row'>{escape(tell(part))}</th><td>{escape(tell(where))}</td>"
        f"<td class='size'>{escape(say('size', size=size))}</td></tr>"
        for part, where, size in plan.lines()
    )
    notes = "".join(f"<p>{escape(tell(note))}</p>" for note in plan.notes)
    summary = escape(say("memory_plan"))
    table = f"<details><summary>{summary}</summary><table><tbody>{lines}</tbody></table></details>"
    return f"{words}<p class='plan'>{escape(tell(plan.summary))}</p>{notes}{table}"


def workers_table(status: EngineStatus) -> str:
    """HTML: a row per worker in another process with its machine and model; empty if there are none."""
    if not status.places:
        return ""
    rows = "".join(
        f"<tr><th scope='row'>{number}</th><td class='place'>{escape(place)}</td><td>{escape(_held(state))}</td></tr>"
        for number, (place, state) in enumerate(zip(status.places, status.workers, strict=False), 1)
    )
    summary = escape(say("workers_at_work", count=len(status.places)))
    return f"<details><summary>{summary}</summary><table><tbody>{rows}</tbody></table></details>"


def _held(state: WorkerState | None) -> str:
    return say("worker_unloaded") if state is None else f"{state.model.title} ({state.device}, {state.dtype})"


def model_summary(model: Model, licences: list[str], missing: str, to_fetch: str, complete: bool) -> str:
    """A sentence or two on a model: what it offers, its licences, and whether it can be used."""
    low, high = model.sides
    parts = [
        say("model_offer", low=low, high=high, size=model.size, steps=model.steps, licences=", ".join(licences)),
        *([say("model_line_note", note=model.note)] if model.note else []),
        say("model_complete") if complete else say("model_incomplete", missing=missing, bytes=to_fetch),
    ]
    return " ".join(parts)


def missing_count(report: WeightsReport) -> str:
    """How many files are missing, e.g. 3 of 7 files missing."""
    return say("files_missing", missing=len(report.missing), all=len(report.missing) + len(report.paths))


def origin(repo: str, gated: bool) -> str:
    """Where a missing file comes from."""
    return say("missing_from_gated" if gated else "missing_from", repo=repo)


def files_table(rows: list[tuple[str, str, str, bool]], summary: str) -> str:
    """HTML: the summary, and a row per file with a mark that says whether it is there."""
    cells = "".join(
        f"<tr class='{'there' if there else 'missing'}'><th scope='row'>{escape(part)}</th>"
        f"<td class='place'>{escape(where)}</td><td class='size'>{escape(size)}</td></tr>"
        for part, where, size, there in rows
    )
    part, where, size = (escape(say(f"column_{name}")) for name in ("part", "where", "size"))
    head = f"<tr><th scope='col'>{part}</th><th scope='col'>{where}</th><th scope='col' class='size'>{size}</th></tr>"
    return f"<p>{escape(summary)}</p><table><thead>{head}</thead><tbody>{cells}</tbody></table>"


def found_table(rows: list[tuple[str, str, str, str]]) -> str:
    """HTML: a row per file in the model folders that is not used: what it is, where, its size, and why not."""
    cells = "".join(
        f"<tr class='spare'><th scope='row'>{escape(what)}</th><td class='place'>{escape(where)}</td>"
        f"<td class='size'>{escape(size)}</td><td class='use'>{escape(standing)}</td></tr>"
        for what, where, size, standing in rows
    )
    what, where, size, use = (escape(say(f"column_{name}")) for name in ("part", "where", "size", "use"))
    head = f"<th scope='col'>{what}</th><th scope='col'>{where}</th><th scope='col' class='size'>{size}</th>"
    table = f"<table><thead><tr>{head}<th scope='col'>{use}</th></tr></thead><tbody>{cells}</tbody></table>"
    return f"<details><summary>{escape(say('found_in_folders', count=len(rows)))}</summary>{table}</details>"


def download_line(now: Download) -> str:
    """HTML: a download's progress, or how the last one ended."""
    if now.outcome is not None:
        return f"<p role='status' class='{'failed' if now.failed else 'ended'}'>{escape(tell(now.outcome))}</p>"
    percent = 100 * now.done / now.total if now.total else 0.0
    return (
        f"<p role='status'>{escape(_download_words(now, percent))}</p>"
        f"<div class='track'><div class='bar' style='width: {percent:.1f}%'></div></div>"
    )


def _download_words(now: Download, percent: float) -> str:
    title, stopping = now.model.title, [say("download_stopping")] if now.stopping else []
    if not now.total:
        return " ".join([say("download_asking", title=title), *stopping])
    done, total = size(now.done), size(now.total)
    parts = [say("download_so_far", title=title, done=done, total=total, percent=f"{percent:.0f}")]
    if now.bytes_per_second:
        parts.append(say("download_speed", speed=now.bytes_per_second / 1e6))
    if now.seconds_left is not None:
        parts.append(say("download_left", left=duration(now.seconds_left)))
    return " ".join([f"{', '.join(parts)}.", say("download_file", file=now.file.rpartition("/")[2]), *stopping])
