"""The form: its fields, the request they stand for, and how a request is put back into them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from uso_core import images
from uso_core.catalog.examples import AS_CONTENT, ASPECTS, aspect_of, sides, sides_of_content
from uso_core.catalog.models import Model, get_model
from uso_core.comfy import ComfyImport
from uso_core.errors import UsoError
from uso_core.request import (
    MAX_STRENGTH,
    SAMPLERS,
    SCHEDULES,
    GenerationRequest,
    InputImage,
    LoRA,
    StoredStyle,
    asks,
    settled,
    whole,
)
from uso_core.storage.styles import StyleStore
from uso_core.ui import ideas, known_words, lora_rows, text
from uso_core.ui.card_grid import data_address
from uso_core.ui.event_options import QUIET, TOLD
from uso_core.ui.inputs import TOAST_SECONDS, ChoiceInput, ImageInput, NumberInput, SliderInput
from uso_core.ui.language import label, say, say_on_load, tell
from uso_core.wildcards import escaped

if TYPE_CHECKING:
    from uso_core.ui.services import Services

STYLES = 4
HIGHEST_GUIDANCE = 20.0  # of the slider, if the model takes any
STORED = 2  # slots for stored styles; each may hold several images
MOST_IMAGES = 8  # of the slider
CUSTOM, SQUARE = "custom", "1:1"
TAKE_OUT = "(image, refused) => refused && image?.path === refused ? null : undefined"  # undefined leaves it as it is
STATUS = """
<div role="status" aria-live="polite" class="sentence">${
  String(value.text).replaceAll("&", "&amp;").replaceAll("<", "&lt;")
}</div>
<div class="track" data-running="${Boolean(value.running)}"
  ><div class="bar" style="width: ${Number(value.percent)}%"></div></div>
"""  # not {{}}: handlebars output is evaluated again, and the text may be untrusted

Updates = dict[Any, Any]  # values by component
Status = dict[str, Any]  # {"text": a sentence, "percent": of the bar}


@dataclass(frozen=True)
class Form:
    """The fields by name, the buttons and the status.

    Fields are named as in `GenerationRequest`, except `style_N`, `style_N_strength`, `stored_N`, `stored_N_strength`,
    `lora_N`, `lora_N_strength` and `lora_N_on`; `model` holds the name of the model that the form is set for.
    `pickers` hold the fields for stored styles. `private`, `aspect` and Turbo are beside the fields: they are not part
    of a request.
    """

    fields: dict[str, gr.components.Component]
    start: gr.Button
    stop: gr.Button
    skip: gr.Button
    status: gr.HTML
    pickers: tuple[gr.Column, ...]
    private: gr.Checkbox
    aspect: gr.Dropdown
    loras: lora_rows.LoRARows
    ideas: gr.HTML
    known: gr.HTML  # the words that the embedded model knows

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]

    @property
    def components(self) -> set[Any]:
        """All fields, as inputs of an event whose function takes a dict."""
        return set(self.fields.values())

    @property
    def style_slots(self) -> list[Any]:
        return [self.fields[f"style_{number}"] for number in range(1, STYLES + 1)]

    @property
    def slots(self) -> list[Any]:
        """The slots for images, content first."""
        return [self.fields["content"], *self.style_slots]

    def thumbnail(self, given: Updates) -> str | None:
        """The path of an image that stands for what is asked for."""
        return next((path for slot in self.slots if (path := given[slot])), None)

    def free_style(self, given: Updates) -> Any:
        """The first empty style slot, or the first if all are full, by an event's values."""
        return next((slot for slot in self.style_slots if not given[slot]), self.style_slots[0])

    @property
    def stored_fields(self) -> list[Any]:
        return [self.fields[f"stored_{number}"] for number in range(1, STORED + 1)]

    @property
    def stored(self) -> list[Any]:
        """The components that `refreshed` updates."""
        return [*self.pickers, *self.stored_fields]

    def values(self, given: Updates) -> dict[str, Any]:
        """The fields' values by name, from an event's values."""
        return {name: given[field] for name, field in self.fields.items()}

    def refreshed(self, styles: StyleStore) -> Updates:
        """Updates for `stored`, so that it offers the current styles."""
        entries = styles.entries()
        choices = [(label("no_saved_style"), ""), *((entry.name, entry.sha256) for entry in entries)]
        return {
            **{picker: gr.Column(visible=bool(entries)) for picker in self.pickers},
            **{field: gr.Dropdown(choices=choices) for field in self.stored_fields},
        }

    def set_for(self, model: Model) -> Updates:
        """Sets the fields to a model's sizes, limits and defaults."""
        low, high = model.sides
        return {
            self["model"]: model.name,
            self["prompt"]: gr.update(placeholder=_hint(model)),
            self.known: known_words.html(model),
            self["width"]: gr.update(value=model.size, minimum=low, maximum=high),
            self["height"]: gr.update(value=model.size, minimum=low, maximum=high),
            self.aspect: SQUARE,
            self["steps"]: model.steps,
            self["sampler"]: model.sampler,
            self["guidance"]: gr.update(value=model.guidance, interactive=model.guided, **_guidances(model)),
            self["content_size"]: gr.update(value=model.content_size, maximum=high),
            self.loras.turbo: gr.update(value=False, visible=bool(model.turbos)),
        }

    def imported(self, workflow: ComfyImport, paths: dict[str, Path], loras: Sequence[LoRA] = ()) -> Updates:
        """Values from a ComfyUI workflow. Numbers that it does not specify stay; images that it does not use go.

        `paths` are those of its images that are still kept, by sha256, `loras` those of its LoRAs that are here.
        """
        given = {name: getattr(workflow, name, None) for name in asks(GenerationRequest) if name in self.fields}
        values = {self[name]: value for name, value in given.items() if value is not None}
        for flag in ("keep_size", "fast"):
            values[self[flag]] = bool(given[flag])
        hashes = (workflow.content_sha256, *workflow.styles_sha256, *[""] * STYLES)
        for slot, sha256 in zip(self.slots, hashes, strict=False):
            values[slot] = str(paths[sha256]) if sha256 in paths else None
        values |= dict.fromkeys(self.stored_fields, "")
        values |= {field: 1.0 for name, field in self.fields.items() if name.endswith("_strength")}
        return {**self.with_aspect(values), **lora_rows.filled(self.loras, loras)}

    def updates(
        self,
        request: GenerationRequest,
        paths: dict[str, Path],
        stored: Collection[str] = (),
        loras: Sequence[LoRA] = (),
    ) -> Updates:
        """Values for every field except the model from a request.

        `paths` are its input files by sha256, `stored` the hashes of its stored styles that exist, `loras` those of its
        LoRAs that are here; all others stay empty.
        """
        values = {name: getattr(request, name) for name in asks(GenerationRequest) if name in self.fields}
        values["prompt"] = escaped(request.prompt)
        values["seed"] = -1 if request.seed is None else request.seed
        values["images"] = min(request.images, MOST_IMAGES)
        values["content"] = _path(request.content, paths)
        strengths = request.style_strengths or (1.0,) * len(request.styles)
        pairs = list(zip(request.styles, strengths, strict=True))
        given = [(_path(style, paths), each) for style, each in pairs if not isinstance(style, StoredStyle)]
        known = [
            (style.sha256 if style.sha256 in stored else "", each)
            for style, each in pairs
            if isinstance(style, StoredStyle)
        ]
        for kind, count, filled, empty in (("style", STYLES, given, None), ("stored", STORED, known, "")):
            places = [*filled, *[(empty, 1.0)] * count][:count]
            for number, (value, strength) in enumerate(places, 1):
                values |= {f"{kind}_{number}": value, f"{kind}_{number}_strength": strength}
        updates = {self[name]: value for name, value in values.items()}
        return {**self.with_aspect(updates), **lora_rows.filled(self.loras, loras)}

    def with_aspect(self, values: Updates) -> Updates:
        """The same values, and the aspect of their width and height."""
        width, height = (values.get(self[side]) for side in ("width", "height"))
        return {**values, self.aspect: shape(width, height)} if width and height else values

    @property
    def restorable(self) -> list[Any]:
        """The components that `imported` and `updates` set."""
        return [*self.fields.values(), self.aspect, self.loras.turbo]


def shape(width: float | None, height: float | None) -> str:
    """What the field for the aspect shows beside these sides, or beside an empty field."""
    return width and height and aspect_of(round(width), round(height)) or CUSTOM


def request_of(
    values: dict[str, Any], stored_styles: StyleStore | None = None, background: str = "white"
) -> GenerationRequest:
    """The request described by named values, for the page and the API; images are paths or empty.

    `background` stands behind what is transparent, `stored_styles` holds those that values may name. Raises
    `RequestError` for a value out of range or a file that is not an image, `SettingsError` for an unknown model.
    """
    model = get_model(values["model"])
    given = settled(GenerationRequest, values, model)
    for side in ("width", "height"):
        whole(side, given[side], *model.sides)
    styles, strengths = chosen_styles(values, stored_styles, background, aside=True)
    given |= {"content": opened(values["content"], background, aside=True) if values.get("content") else None}
    loras = tuple(values.get("loras") or ())
    return GenerationRequest(**given, styles=styles, style_strengths=strengths, model=model.name, loras=loras)


def chosen_styles(
    values: dict[str, Any], stored_styles: StyleStore | None, background: str = "white", aside: bool = False
) -> tuple[tuple[InputImage | StoredStyle, ...], tuple[float, ...]]:
    """The styles in the fields, images first, and their strengths.

    Raises `RequestError` for a file that is not an image, or a stored style that no longer exists.
    """
    given: list[tuple[InputImage | StoredStyle, float | None]] = []
    for number in range(1, STYLES + 1):
        if path := values.get(f"style_{number}"):
            given.append((opened(path, background, aside), values[f"style_{number}_strength"]))
    for number in range(1, STORED + 1):
        if stored_styles is not None and (sha256 := values.get(f"stored_{number}")):
            given.append((stored_styles.get(str(sha256)), values[f"stored_{number}_strength"]))
    return tuple(style for style, _ in given), tuple(1.0 if each is None else each for _, each in given)


def opened(path: str, background: str, aside: bool = False) -> InputImage:
    """An image that was uploaded: its user knows its name, not where it lies here."""
    return images.open_image(path, Path(path).name, background, aside)


def _path(image: InputImage | StoredStyle | None, paths: dict[str, Path]) -> str | None:
    return str(paths[image.sha256]) if image is not None and image.sha256 in paths else None


def build_form(page: gr.Blocks, model: Model, services: Services) -> Form:
    """Lays out the fields with a model's limits and defaults."""
    laid: dict[str, Any] = {"model": gr.State(model.name)}
    with gr.Row(elem_classes="slots"):
        laid["content"], laid["content_strength"] = _slot("content", "content_hint", "content_strength")
        places = [_style_place(laid, "style_hint", 1), _style_place(laid, "slot_hint", 2)]
    with gr.Accordion(label("more_styles"), open=False), gr.Row(elem_classes="slots"):
        for number in (3, 4):
            slot = _slot("style", "slot_hint", "style_strength", number)
            laid[f"style_{number}"], laid[f"style_{number}_strength"] = slot
    mode = gr.Markdown(text.mode(False, 0, ""), elem_id="mode")
    with gr.Column(elem_id="ask"):
        with gr.Column(elem_id="prompt"):
            laid["prompt"] = gr.Textbox(label=label("prompt"), placeholder=_hint(model), lines=2, max_lines=6)
            offered = ideas.lay_out()
            known = gr.HTML(known_words.html(model), show_label=False, elem_id="known-words")
        with gr.Row(elem_id="start"):
            start = gr.Button(label("generate"), variant="primary", elem_id="generate", scale=3, min_width=120)
            stop = gr.Button(label("stop"), elem_id="stop", scale=1, min_width=72)
            skip = gr.Button(label("skip"), elem_id="skip", scale=1, min_width=72)
        status = status_line("status", say("idle"))
    aspect = _numbers(laid, model)
    loras = lora_rows.lay_out(model)
    laid |= loras.fields
    _advanced(laid, model)
    private = gr.Checkbox(label=label("private"), info=label("private_hint"), elem_id="private", container=False)
    pickers = tuple(picker for picker, _ in places)
    form = Form(laid, start, stop, skip, status, pickers, private, aspect, loras, offered, known)
    _wire(form, mode, aspect)
    _wire_slots(form, services.settings.background)
    say_on_load(page, lambda: [text.mode(False, 0, ""), {"text": say("idle"), "percent": 0}], [mode, status])
    _wire_stored(form, [small for _, small in places], services)
    lora_rows.wire(page, loras, laid, services)
    ideas.wire(form, services)
    say_on_load(page, lambda: [ideas.html((), ()), known_words.html(model)], [offered, known])
    return form


def _hint(model: Model) -> Any:
    """How to write a prompt, in words that the model knows."""
    return label("prompt_hint_small" if model.folder else "prompt_hint")


def status_line(elem_id: str, words: str) -> gr.HTML:
    """A sentence with a progress bar below it."""
    return gr.HTML(
        {"text": words, "percent": 0}, label=label("status"), show_label=False, html_template=STATUS,
        elem_id=elem_id, elem_classes="status",
    )  # fmt: skip


def _numbers(laid: dict[str, Any], model: Model) -> gr.Dropdown:
    """The shape, the seed and the numbers."""
    with gr.Row(elem_classes="numbers"):
        aspects = [*ASPECTS, (label("aspect_as_content"), AS_CONTENT), (label("aspect_custom"), CUSTOM)]
        aspect = gr.Dropdown(aspects, value=SQUARE, label=label("aspect"), filterable=False, min_width=88)
        laid["width"], laid["height"] = _side("width", model), _side("height", model)
        laid["images"] = NumberInput(
            value=1, precision=0, minimum=1, maximum=MOST_IMAGES, step=1, label=label("images"), min_width=64
        )
        with gr.Column(min_width=110, elem_id="seed"):
            laid["seed"] = NumberInput(label=label("seed"), value=-1, precision=0, minimum=-1)
            dice = gr.Button(label("new_seed"), size="sm", elem_id="dice")
    with gr.Row(elem_classes="numbers"):
        laid["steps"] = SliderInput(1, 100, value=model.steps, step=1, label=label("steps"), buttons=[], min_width=140)
        laid["guidance"] = SliderInput(
            **_guidances(model),
            value=model.guidance,
            interactive=model.guided,
            step=0.1,
            label=label("guidance"),
            buttons=[],
            min_width=140,
        )
    dice.click(None, None, laid["seed"], js="() => Math.floor(Math.random() * 1e8)", **QUIET)
    return aspect


def _advanced(laid: dict[str, Any], model: Model) -> None:
    """Rarely used settings."""
    with gr.Accordion(label("more"), open=False):
        with gr.Row():
            laid["content_size"] = SliderInput(
                32, model.sides[1], value=model.content_size, step=16, label=label("content_size"),
                info=label("content_size_hint"), buttons=[], min_width=300,
            )  # fmt: skip
            laid["schedule"] = gr.Radio(
                list(SCHEDULES), value=SCHEDULES[0], label=label("schedule"), info=label("schedule_hint")
            )
            laid["sampler"] = gr.Radio(
                list(SAMPLERS), value=model.sampler, label=label("sampler"), info=label("sampler_hint")
            )
        with gr.Group():
            laid["keep_size"] = gr.Checkbox(label=label("keep_size"), info=label("keep_size_hint"))
            laid["fast"] = gr.Checkbox(label=label("fast"), info=label("fast_hint"))


def _wire(form: Form, mode: gr.Markdown, aspect: gr.Dropdown) -> None:
    slots = [*form.slots, *form.stored_fields]

    def name_mode(prompt: str, content: str | None, *styles: str | None) -> str:
        return text.mode(bool(content), sum(map(bool, styles)), prompt or "")

    gr.on([part.change for part in (form["prompt"], *slots)], name_mode, [form["prompt"], *slots], mode,
          trigger_mode="always_last", **QUIET)  # fmt: skip

    def resize(choice: str, content: str | None, content_size: int, model: str) -> tuple[Any, Any, Any]:
        if choice == AS_CONTENT and content:
            size = images.open_image(content, aside=True).size
            if size is not None:
                return sides_of_content(*size, content_size, get_model(model))
        if choice in ASPECTS:
            return *sides(*ASPECTS[choice], get_model(model)), gr.skip()
        return gr.skip(), gr.skip(), gr.skip()

    given = [aspect, form["content"], form["content_size"], form["model"]]
    aspect.select(resize, given, [form["width"], form["height"], form["content_size"]],
                  trigger_mode="always_last", **QUIET)  # fmt: skip
    given = [form["width"], form["height"]]
    gr.on([each.input for each in given], shape, given, aspect, trigger_mode="always_last", **QUIET)


def _wire_slots(form: Form, background: str) -> None:
    """An image that cannot be read is told when it is put into its slot, and leaves it, unless another one has come."""

    def look(path: str | None) -> str | None:
        if not path:
            return None
        try:
            notes = opened(path, background, aside=True).notes
        except UsoError as error:
            gr.Warning(escape(tell(error.told), quote=False), duration=TOAST_SECONDS, title=say("please_change"))
            return path
        for note in notes:
            gr.Info(escape(tell(note), quote=False), title="")
        return None

    for slot in form.slots:
        refused = gr.Textbox(visible=False)
        looked = slot.input(look, slot, refused, trigger_mode="always_last", **TOLD)
        looked.then(None, [slot, refused], slot, js=TAKE_OUT, **QUIET)


def _wire_stored(form: Form, thumbnails: list[gr.HTML], services: Services) -> None:
    """Each picker shows the thumbnail of its stored style."""

    def show(request: gr.Request, *used: str) -> list[str]:
        small = {entry.sha256: entry.thumbnail for entry in services.stores(request).styles.entries()}
        return [f'<img src="{data_address(small[each])}" alt="">' if each in small else "" for each in used]

    gr.on([field.change for field in form.stored_fields], show, form.stored_fields, thumbnails,
          trigger_mode="always_last", **QUIET)  # fmt: skip


def _slot(name: str, hint: str, strength: str, number: int | None = None) -> tuple[gr.Image, gr.Slider]:
    with gr.Column(min_width=100, elem_classes="slot"):
        image = ImageInput(
            label=label(name, number), type="filepath", image_mode=None, sources=["upload", "webcam"],
            height=None, placeholder=label(hint), buttons=[], elem_classes="slot",
        )  # fmt: skip
        slider = SliderInput(
            0, MAX_STRENGTH, value=1, step=0.05, label=label(strength, number), buttons=[], elem_classes="strength"
        )
    return image, slider


def _style_place(laid: dict[str, Any], hint: str, number: int) -> tuple[gr.Column, gr.HTML]:
    """A slot for a style image or, where there are stored styles, one of those: its picker and the thumbnail in it."""
    with gr.Column(min_width=100, elem_classes="style-place"):
        laid[f"style_{number}"], laid[f"style_{number}_strength"] = _slot("style", hint, "style_strength", number)
        with gr.Column(min_width=100, elem_classes="saved-style", visible=False) as picker:
            small = gr.HTML("", show_label=False, elem_classes="saved-thumbnail")
            laid[f"stored_{number}"] = ChoiceInput(
                [(label("no_saved_style"), "")], value="", label=label("saved_style", number), min_width=100
            )
            laid[f"stored_{number}_strength"] = SliderInput(
                0, MAX_STRENGTH, value=1, step=0.05, label=label("saved_style_strength", number), buttons=[],
                min_width=100, elem_classes="strength",
            )  # fmt: skip
    return picker, small


def _guidances(model: Model) -> dict[str, float]:
    low, high = model.guidances
    return {"minimum": low, "maximum": min(high, HIGHEST_GUIDANCE)}


def _side(name: str, model: Model) -> gr.Number:
    low, high = model.sides
    return NumberInput(
        label=label(name), value=model.size, precision=0, minimum=low, maximum=high, step=16, min_width=100
    )
