"""Every English text of the page."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from html import escape
from typing import TYPE_CHECKING

from uso_core.catalog import Model
from uso_core.inventory import Inventory
from uso_core.request import GenerationRequest, SavedStyle
from weights.downloader import size_text

if TYPE_CHECKING:
    from uso_core.engine import Loaded
    from uso_core.memory.plan import MemoryPlan
    from uso_core.ui.downloads import Download

TITLE = "USO"
TAGLINE = "Any content image, any style images, a prompt: one picture."

LABELS = {  # what stands on and beside the fields, buttons and tabs; the first block is a contract with scripts
    "prompt": "Prompt",
    "content": "Content image",
    "style": "Style image {number}",
    "generate": "Generate",
    "stop": "Stop",
    "skip": "Skip",
    "reuse_settings": "Reuse settings",
    "use_as_content": "Use as content",
    "use_as_style": "Use as style",
    "width": "Width",
    "height": "Height",
    "steps": "Steps",
    "guidance": "Guidance",
    "seed": "Seed",
    "images": "Images",
    "tab_create": "Create",
    "tab_history": "History",
    "tab_styles": "Styles",
    "tab_model": "Model",
    # Create: the form
    "crop": "Crop",
    "crop_box": "Part of the picture: arrows move it, with Shift they resize it",
    "crop_apply": "Use this part",
    "cancel": "Cancel",
    "prompt_hint": "What happens in the picture, as a sentence: The woman gave a speech on the podium.",
    "content_hint": "the subject",
    "style_hint": "how it looks",
    "slot_hint": "optional",
    "content_strength": "Content strength",
    "style_strength": "Style {number} strength",
    "more_styles": "More styles",
    "saved_style": "Saved style {number}",
    "saved_style_strength": "Saved {number} strength",
    "no_saved_style": "none",
    "status": "Status",
    "private": "Private: keep nothing",
    "private_hint": "no history; the image stays on this page until you leave",
    "aspect": "Aspect",
    "aspect_as_content": "as content",
    "aspect_custom": "custom",
    "seed_hint": "-1 draws a new one",
    "new_seed": "New seed",
    "images_hint": "seeds running on",
    "more": "More",
    "content_size": "Content size",
    "content_size_hint": "long side of the content image, in pixels",
    "schedule": "Schedule",
    "schedule_hint": "uso: as published; flux: as in ComfyUI",
    "keep_size": "Keep size",
    "keep_size_hint": "the content image's shape instead of width, height",
    "fast": "Fast, small changes",
    "fast_hint": "leaves out steps in which little happens",
    "examples": "Examples",
    "examples_run": "Examples: a click fills the form and starts",
    "examples_fill": "Examples: a click fills the form",
    # Create: the results
    "result": "Result",
    "visit": "Made in this visit",
    "reuse_seed": "Reuse seed",
    "seed_used": "Seed used",
    "settings_of_image": "Settings of this image",
    "settings": "Settings",
    "compare_with": "Compare with the content image",
    "compare": "Content and result",
    "restore_file": "Restore from PNG or ComfyUI workflow",
    "comfy": "ComfyUI workflow",
    "archive": "Download all (zip)",
    # History
    "search": "Search",
    "search_hint": "words of the prompt",
    "selected": "Selected",
    "restore_settings": "Restore settings",
    "delete": "Delete",
    # Styles
    "style_name": "Name of the style",
    "style_name_hint": "such as: Ink on rice paper",
    "save_style": "Save style",
    "chosen_style": "Chosen style",
    "use_in_slot": "Use in slot",
    "rename": "Rename",
    "delete_style": "Delete style",
    "export_style": "Export",
    "import_style": "Import a style file",
    # Model
    "unload": "Unload",
    "choose_model": "Choose a model",
    "use_model": "Use this model",
    "model_in_use": "In use",
    "command": "In a terminal, from the project's folder",
    "download": "Download",
    "cancel_download": "Cancel download",
}

PLEASE_CHANGE = "Please change something"
IDLE = "Ready."
NOTHING_TO_STOP = "Nothing is running."
STOPPING = "Stopping after this step."
SKIPPED = "Skipped."
STOPPED = "Stopped. Nothing was lost: change what you like and generate again."
READING = "Reading the prompt and the pictures."
NOTHING_SELECTED = "Generate an image first, or choose one below the result."
NO_MATCHES = "No image with these words."
NO_HISTORY = "Nothing here yet: every image you generate is kept, unless you tick private."
DELETED = "Deleted."
NO_IMAGE_CHOSEN = "Choose an image first."
NO_PROMPT = "(no prompt)"
EMPTY_PROMPT = "no prompt: the layout stays"
STYLES_INTRO = (
    "Give the style pictures that are in the slots now, with their strengths, a name. You can then use the style "
    "without the pictures, with the model it was made with."
)
NO_STYLES = "No style is saved yet."
NO_STYLE_PICTURES = "There is no style picture in the slots of the Create tab."
NO_STYLE_CHOSEN = "Choose a style first."
FILL_A_SLOT = "Fill one there first."
STYLE_GONE = "This saved style is not there any more."
CHOOSE_ANOTHER = "Choose another."
STYLE_SLOTS_FULL = "Both places for saved styles are taken; choose none in one of them first."

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


def label(key: str, number: int | None = None) -> str:
    """The words of a field, button or tab, numbered where there are several."""
    return LABELS[key].format(number=number)


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


def waiting(ahead: int) -> str:
    """The place in the queue."""
    return f"Waiting: {ahead} ahead of you."


def loading(message: str) -> str:
    """What of the model is being read."""
    return f"Loading the model: {message}."


def stepping(image: int, images: int, step: int, steps: int, each: float, left: float, more: int) -> str:
    """How far a run is, in seconds a step and seconds left, and how many more of this page wait behind it."""
    which = f"Image {image} of {images}, step" if images > 1 else "Step"
    after = f" {more} more of yours {'waits' if more == 1 else 'wait'}." if more else ""
    return f"{which} {step} of {steps}, {duration(each)} a step, {duration(left)} left.{after}"


def done(seconds: float, seed: int) -> str:
    """The end of a run."""
    return f"Done in {duration(seconds)}, seed {seed}."


def day(when: date, today: date) -> str:
    """A day's heading in the history."""
    if when == today:
        return "Today"
    if when == today - timedelta(days=1):
        return "Yesterday"
    return f"{when:%A}, {when.day} {when:%B} {when.year}"


def entry(when: datetime, prompt: str) -> str:
    """One image of the history, in a line."""
    return f"{when:%Y-%m-%d %H:%M}  {prompt[:80] or NO_PROMPT}"


def saved_style(model: str, pictures: int, created: datetime) -> str:
    """What is known of a saved style besides its name."""
    count = "1 picture" if pictures == 1 else f"{pictures} pictures"
    return f"{model}, {count}, {created:%Y-%m-%d}"


def style_saved(name: str) -> str:
    """A style was saved or imported."""
    return f"The style {name} is saved."


def style_renamed(name: str) -> str:
    """A style has another name."""
    return f"The style is now called {name}."


def style_deleted(name: str) -> str:
    """A style is gone."""
    return f"The style {name} is deleted."


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
        f"Steps: {request.steps}, guidance {request.guidance:g}, schedule {request.schedule}{', fast' * request.fast}",
    ]
    if request.content:
        lines.append(
            f"Content: {request.content.name}, long side {request.content_size}, strength {request.content_strength:g}"
        )
    lines += [
        f"{'Saved style' if isinstance(style, SavedStyle) else 'Style'} {number}: {style.name}, strength {strength:g}"
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
    return f"The settings are restored; these pictures or saved styles are not kept here, choose them again: {names}."


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


def model_at_work(title: str, loaded: Loaded | None, plan: MemoryPlan | None) -> str:
    """HTML: which model is in memory, on what, with what plan; and which comes next, where that is another."""
    if loaded is None:
        return f"<p class='lead'>Model: {escape(title)} (not in memory)</p><p>It is read with the next picture.</p>"
    words = f"<p class='lead'>Model: {escape(loaded.model.title)} ({loaded.device}, {loaded.dtype})</p>"
    if loaded.model.title != title:
        words += f"<p>The next picture is made with {escape(title)}, which takes its place in memory.</p>"
    if plan is None:
        return words
    lines = "".join(
        f"<tr><th scope='row'>{escape(part)}</th><td>{escape(where)}</td><td class='size'>{escape(size)}</td></tr>"
        for part, where, size in plan.lines()
    )
    notes = "".join(f"<p>{escape(note)}</p>" for note in plan.notes)
    table = f"<details><summary>Memory plan</summary><table><tbody>{lines}</tbody></table></details>"
    return f"{words}<p class='plan'>{escape(plan.sentence)}</p>{notes}{table}"


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
