"""Every English text of the page."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from uso_core.catalog import Model
from uso_core.inventory import Inventory
from uso_core.request import GenerationRequest
from weights.downloader import size_text

if TYPE_CHECKING:
    from uso_core.engine import Loaded
    from uso_core.ui.downloads import Download

TITLE = "USO"
TAGLINE = "Any content image, any style images, a prompt: one picture."
PROMPT_HINT = "What happens in the picture, as a sentence: The woman gave a speech on the podium."
PLEASE_CHANGE = "Please change something"
IDLE = "Ready."
NOTHING_TO_STOP = "Nothing is running."
STOPPING = "Stopping after this step."
SKIPPING = "Skipping this image after this step."
STOPPED = "Stopped. Nothing was lost: change what you like and generate again."
NOTHING_SELECTED = "Generate an image first, or choose one below the result."
NO_MATCHES = "No image with these words."
DELETED = "Deleted."

MODES = {  # by (content, styles, prompt): what is made, and how to write the prompt for it
    (False, 0, True): ("Text to image", "Write what is to be seen, as a natural sentence."),
    (False, 0, False): ("Text to image, without a prompt", "Write what is to be seen, or give a picture."),
    (True, 0, True): (
        "Subject",
        'Say what the subject does and where ("The man reads in a café"), or how to change the picture '
        '("Transform the image into Ghibli style").',
    ),
    (True, 0, False): ("Subject, without a prompt", "Say what the subject does and where."),
    (False, 1, True): ("Style", "Say what is to be seen, not how: the style image decides that."),
    (False, 1, False): ("Style, without a prompt", "Say what is to be seen; the style image decides how."),
    (True, 1, True): ("Style + subject, layout free", "Say what the subject does and where; empty keeps the layout."),
    (True, 1, False): ("Style + subject, layout kept: the prompt is empty", "Write a prompt to change the scene."),
}


def mode(content: bool, styles: int, prompt: str) -> str:
    """The mode that follows from what is filled in, named, with one line of advice."""
    name, advice = MODES[content, min(styles, 1), bool(prompt.strip())]
    if styles > 1:
        name = name.replace("Style", f"{styles} styles, blended", 1)
    return f"**{name}.** {advice}"


def model_line(title: str, reason: str, note: str) -> str:
    """One line that says which model is at work and why."""
    line = f"Model: **{title}** ({reason})."
    return f"{line} Note: {note}." if note else line


def duration(seconds: float) -> str:
    """Seconds as people say them: 0.31 s, 6 s, 2 min 5 s."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


def settings(request: GenerationRequest) -> str:
    """A request as readable lines; what stands at its default of no effect is left out."""
    strengths = request.style_strengths or (1.0,) * len(request.styles)
    lines = [
        f"Prompt: {request.prompt or '(empty)'}",
        f"Mode: {request.mode}",
        f"Size: {request.width} x {request.height}",
        f"Seed: {request.seed}",
        f"Steps: {request.steps}, guidance {request.guidance:g}, schedule {request.schedule}",
    ]
    if request.content:
        lines.append(
            f"Content: {request.content.name}, long side {request.content_size}, strength {request.content_strength:g}"
        )
    lines += [
        f"Style {number}: {style.name}, strength {strength:g}"
        for number, (style, strength) in enumerate(zip(request.styles, strengths, strict=True), 1)
    ]
    return "\n".join([*lines, f"Model: {request.model}"])


def imported(content: str | None, styles: tuple[str, ...], notes: tuple[str, ...]) -> str:
    """What was read from a ComfyUI workflow: the pictures to choose, and what has no counterpart here."""
    parts = ["The workflow's settings are filled in."]
    if content:
        parts.append(f"Choose {content} as content image.")
    if styles:
        parts.append(f"Choose {', '.join(styles)} as style.")
    return " ".join([*parts, *notes])


def restored(lost: list[str]) -> str:
    """What was restored from a picture, and which inputs were not."""
    if not lost:
        return "Every setting is restored."
    names = ", ".join(lost)
    return f"The settings are restored; these pictures are not kept here, choose them again: {names}."


ROLES = {
    "transformer": "Transformer",
    "lora": "USO LoRA",
    "projector": "USO style projector",
    "vae": "VAE",
    "t5": "T5 text encoder",
    "clip": "CLIP text encoder",
    "siglip": "SigLIP vision encoder",
}
NOT_THERE = "not there"


def model_at_work(title: str, loaded: Loaded | None, plan: str | None) -> str:
    """HTML: which model is in memory, on what, with what plan; and which comes next, where that is another."""
    if loaded is None:
        return f"<p class='lead'>Model: {escape(title)} (not in memory)</p><p>It is read with the next picture.</p>"
    words = f"<p class='lead'>Model: {escape(loaded.model.title)} ({loaded.device}, {loaded.dtype})</p>"
    if loaded.model.title != title:
        words += f"<p>The next picture is made with {escape(title)}, which takes its place in memory.</p>"
    return words + (f"<p class='plan'>{escape(plan)}</p>" if plan else "")


def model_summary(model: Model, licences: list[str], missing: str, to_fetch: str, complete: bool) -> str:
    """A sentence or two on a model: what it offers, under which licences, and whether it can be used."""
    low, high = model.sides
    offer = (
        f"Pictures of {low} to {high} pixels a side, {model.size} unless you say otherwise; {model.steps} steps. "
        f"Licence: {', '.join(licences)}."
    )
    note = f" Note: {model.note}." if model.note else ""
    if complete:
        return f"{offer}{note} All files are there."
    return f"{offer}{note} It cannot be used yet: {missing}, {to_fetch} to fetch."


def missing_count(stock: Inventory) -> str:
    """How many files are missing, as 3 of 7 files missing."""
    return f"{len(stock.missing)} of {len(stock.missing) + len(stock.paths)} files missing"


def origin(repo: str, gated: bool) -> str:
    """Where a missing file comes from."""
    return f"missing, from {repo}{' (accept its licence there first)' if gated else ''}"


def files_table(rows: list[tuple[str, str, str, bool]], summary: str) -> str:
    """HTML: the summary, and a row for each file with a mark that says whether it is there."""
    cells = "".join(
        f"<tr class='{'there' if there else 'missing'}'><th scope='row'>{escape(part)}</th>"
        f"<td class='place'>{escape(where)}</td><td class='size'>{escape(size)}</td></tr>"
        for part, where, size, there in rows
    )
    head = "<tr><th scope='col'>Part</th><th scope='col'>Where</th><th scope='col' class='size'>Size</th></tr>"
    return f"<p>{escape(summary)}</p><table><thead>{head}</thead><tbody>{cells}</tbody></table>"


def download_line(now: Download) -> str:
    """HTML: how far a download is, or how the last one ended."""
    if not now.running:
        return f"<p role='status' class='{'failed' if now.failed else 'ended'}'>{escape(now.outcome)}</p>"
    if not now.total:
        words, percent = f"{now.model.title}: asking what is there.", 0.0
    else:
        percent = 100 * now.done / now.total
        words = f"{now.model.title}: {size_text(now.done)} of {size_text(now.total)}, {percent:.0f} %"
        if now.bytes_per_second:
            words += f", {now.bytes_per_second / 1e6:.1f} MB/s"
        if now.seconds_left is not None:
            words += f", {duration(now.seconds_left)} left"
        words += f". Now: {now.file.rpartition('/')[2]}."
    if now.stopping:
        words += " Stopping after this piece."
    return (
        f"<p role='status'>{escape(words)}</p>"
        f"<div class='track'><div class='bar' style='width: {percent:.1f}%'></div></div>"
    )
