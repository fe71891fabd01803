"""The form: its fields, what they mean as a request, and a request put back into them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from uso_core import images
from uso_core.catalog import Model, get_model
from uso_core.comfy import ComfyImport
from uso_core.request import MAX_STRENGTH, SCHEDULES, SIZE_MULTIPLE, GenerationRequest, whole
from uso_core.ui import text
from uso_core.ui.inputs import NumberInput, PictureInput, SliderInput

STYLES = 4
ASPECTS = {"1:1": (1, 1), "3:2": (3, 2), "2:3": (2, 3), "4:3": (4, 3), "3:4": (3, 4), "16:9": (16, 9), "9:16": (9, 16)}
AS_CONTENT, CUSTOM = "as content", "custom"
QUIET: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
STATUS = """
<div role="status" aria-live="polite" class="sentence">{{value.text}}</div>
<div class="track"><div class="bar" style="width: {{value.percent}}%"></div></div>
"""

Status = dict[str, Any]  # {"text": a sentence, "percent": of the bar}


@dataclass(frozen=True)
class Form:
    """The fields by name, the buttons and the status. The field `model` holds the name of the model it is set for."""

    fields: dict[str, gr.components.Component]
    start: gr.Button
    stop: gr.Button
    skip: gr.Button
    status: gr.HTML

    @property
    def order(self) -> list[gr.components.Component]:
        return list(self.fields.values())

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]

    def set_for(self, model: Model) -> dict[gr.components.Component, Any]:
        """The fields with the sizes, limits and defaults of a model."""
        low, high = model.sides
        return {
            self["model"]: model.name,
            self["width"]: gr.update(value=model.size, minimum=low, maximum=high),
            self["height"]: gr.update(value=model.size, minimum=low, maximum=high),
            self["steps"]: model.steps,
            self["guidance"]: model.guidance,
            self["content_size"]: gr.update(value=model.content_size, maximum=high),
        }

    def imported(self, workflow: ComfyImport) -> list[Any]:
        """Values for every field from a ComfyUI workflow; what it does not say stays, pictures are to be chosen."""
        names = ("prompt", "seed", "steps", "guidance", "width", "height", "content_size", "schedule", "images",
                 "keep_size")  # fmt: skip
        given = {name: getattr(workflow, name) for name in names}
        return [gr.skip() if given.get(name) is None else given[name] for name in self.fields]

    def updates(self, request: GenerationRequest, pictures: dict[str, Path]) -> list[Any]:
        """Values for every field from a request; `pictures` are its input files by sha256, others are left empty."""

        def path(picture: Any) -> str | None:
            return str(pictures[picture.sha256]) if picture is not None and picture.sha256 in pictures else None

        strengths = request.style_strengths or (1.0,) * len(request.styles)
        styles = [(path(style), strength) for style, strength in zip(request.styles, strengths, strict=True)]
        styles += [(None, 1.0)] * STYLES
        values: dict[str, Any] = {
            "prompt": request.prompt,
            "content": path(request.content),
            "content_strength": request.content_strength,
            "width": request.width,
            "height": request.height,
            "steps": request.steps,
            "guidance": request.guidance,
            "seed": -1 if request.seed is None else request.seed,
            "content_size": request.content_size,
            "schedule": request.schedule,
            "images": min(request.images, 8),
            "keep_size": request.keep_size,
            "model": gr.skip(),  # the model stays the one that is chosen
        }
        for number in range(1, STYLES + 1):
            values[f"style_{number}"], values[f"style_{number}_strength"] = styles[number - 1]
        return [values[name] for name in self.fields]


def request_of(values: dict[str, Any]) -> GenerationRequest:
    """The request that named values ask for, the page's and the API's alike; pictures are paths or empty.

    Raises `RequestError` for what is out of range or no picture, `SettingsError` for a model that is none.
    """
    model = get_model(values["model"])
    for side in ("width", "height"):
        whole(side, values[side], *model.sides)
    chosen = [
        (values[f"style_{number}"], values[f"style_{number}_strength"])
        for number in range(1, STYLES + 1)
        if values[f"style_{number}"]
    ]
    return GenerationRequest(
        prompt=values["prompt"] or "",
        content=images.open_picture(values["content"]) if values["content"] else None,
        styles=tuple(images.open_picture(path) for path, _ in chosen),
        width=values["width"],
        height=values["height"],
        steps=values["steps"],
        guidance=values["guidance"],
        seed=None if values["seed"] in (None, -1) else values["seed"],
        content_size=values["content_size"],
        schedule=values["schedule"],
        images=values["images"],
        keep_size=bool(values["keep_size"]),
        model=model.name,
        content_strength=values["content_strength"],
        style_strengths=tuple(strength for _, strength in chosen),
    )


def build_form(model: Model) -> Form:
    """Lays out the fields with the limits and defaults of a model."""
    laid: dict[str, Any] = {"model": gr.State(model.name)}
    with gr.Row():
        laid["content"], laid["content_strength"] = _slot("Content image", "the subject", "Content strength")
        laid["style_1"], laid["style_1_strength"] = _slot("Style image 1", "how it looks", "Style 1 strength")
        laid["style_2"], laid["style_2_strength"] = _slot("Style image 2", "optional", "Style 2 strength")
    with gr.Accordion("More styles", open=False), gr.Row():
        for number in (3, 4):
            slot = _slot(f"Style image {number}", "optional", f"Style {number} strength")
            laid[f"style_{number}"], laid[f"style_{number}_strength"] = slot
    mode = gr.Markdown(text.mode(False, 0, ""), elem_id="mode")
    laid["prompt"] = gr.Textbox(label="Prompt", placeholder=text.PROMPT_HINT, lines=2, max_lines=8)
    with gr.Row():
        start = gr.Button("Generate", variant="primary", elem_id="generate", scale=3, min_width=120)
        stop = gr.Button("Stop", elem_id="stop", scale=1, min_width=80)
        skip = gr.Button("Skip", elem_id="skip", scale=1, min_width=80)
    status = gr.HTML(
        {"text": text.IDLE, "percent": 0}, label="Status", show_label=False, html_template=STATUS, elem_id="status"
    )
    with gr.Row():
        aspect = gr.Dropdown([*ASPECTS, AS_CONTENT, CUSTOM], value="1:1", label="Aspect", min_width=100)
        laid["width"], laid["height"] = _side("Width", model), _side("Height", model)
    with gr.Row():
        with gr.Column(min_width=140):
            laid["seed"] = NumberInput(label="Seed", value=-1, precision=0, minimum=-1, info="-1 draws a new one")
            dice = gr.Button("New seed", size="sm")
        laid["images"] = SliderInput(1, 8, value=1, step=1, label="Images", info="seeds running on", buttons=[])
    with gr.Accordion("More", open=False):
        with gr.Row():
            laid["steps"] = SliderInput(1, 100, value=model.steps, step=1, label="Steps")
            laid["guidance"] = SliderInput(0, 20, value=model.guidance, step=0.1, label="Guidance")
        with gr.Row():
            laid["content_size"] = SliderInput(
                32, model.sides[1], value=model.content_size, step=16, label="Content size",
                info="long side of the content image, in pixels",
            )  # fmt: skip
            laid["schedule"] = gr.Radio(list(SCHEDULES), value=SCHEDULES[0], label="Schedule",
                                        info="uso: as published; flux: as in ComfyUI")  # fmt: skip
        laid["keep_size"] = gr.Checkbox(label="Keep size", info="the content image's shape instead of width, height")
    strengths = ["content_strength", *(f"style_{number}_strength" for number in range(1, STYLES + 1))]
    first = ["prompt", "content", *(f"style_{number}" for number in range(1, STYLES + 1))]
    rest = [name for name in laid if name not in (*first, *strengths)]
    form = Form({name: laid[name] for name in (*first, *rest, *strengths)}, start, stop, skip, status)
    _wire(form, mode, aspect, dice)
    return form


def _wire(form: Form, mode: gr.Markdown, aspect: gr.Dropdown, dice: gr.Button) -> None:
    slots = [form["content"], *(form[f"style_{number}"] for number in range(1, STYLES + 1))]

    def name_mode(prompt: str, content: str | None, *styles: str | None) -> str:
        return text.mode(bool(content), sum(map(bool, styles)), prompt or "")

    gr.on([part.change for part in (form["prompt"], *slots)], name_mode, [form["prompt"], *slots], mode,
          trigger_mode="always_last", **QUIET)  # fmt: skip

    def resize(choice: str, content: str | None, content_size: int, model: str) -> tuple[Any, Any]:
        base = get_model(model).size
        if choice == AS_CONTENT and content:
            image = images.open_picture(content).image
            prepared = images.content_crop(*image.size, content_size) if image else (1, 1)
            return images.kept_size(prepared, content_size, base)
        return sides(*ASPECTS[choice], base) if choice in ASPECTS else (gr.skip(), gr.skip())

    given = [aspect, form["content"], form["content_size"], form["model"]]
    aspect.input(resize, given, [form["width"], form["height"]], **QUIET)
    gr.on([form["width"].input, form["height"].input], lambda: CUSTOM, None, aspect, **QUIET)
    dice.click(lambda: random.randrange(10**8), None, form["seed"], **QUIET)


def sides(across: int, down: int, base: int) -> tuple[int, int]:
    """Width and height of an aspect with about the area of base x base pixels, in multiples of 16."""
    scale = base / (across * down) ** 0.5
    width, height = (max(round(part * scale / SIZE_MULTIPLE), 1) * SIZE_MULTIPLE for part in (across, down))
    return width, height


def _slot(label: str, placeholder: str, strength: str) -> tuple[gr.Image, gr.Slider]:
    with gr.Column(min_width=140, elem_classes="slot"):
        image = PictureInput(
            label=label, type="filepath", image_mode=None, sources=["upload", "clipboard", "webcam"], height=190,
            placeholder=placeholder, buttons=["fullscreen"], elem_classes="slot",
        )  # fmt: skip
        slider = SliderInput(0, MAX_STRENGTH, value=1, step=0.05, label=strength, buttons=[])
    return image, slider


def _side(label: str, model: Model) -> gr.Number:
    low, high = model.sides
    return NumberInput(label=label, value=model.size, precision=0, minimum=low, maximum=high, step=16, min_width=100)
