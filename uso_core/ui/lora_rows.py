"""LoRAs beside USO's in the form: up to four by name, each with a strength and a switch; and Turbo."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import gradio as gr

from uso_core.catalog.loras import find_loras, located, named_lora, turbo_lora
from uso_core.catalog.models import Model, get_model
from uso_core.comfy.loras import LoRA as Named
from uso_core.errors import RequestError, UsoError
from uso_core.messages import Message
from uso_core.request import MAX_LORA_STRENGTH, GenerationRequest, LoRA, number
from uso_core.settings import Settings
from uso_core.ui.event_options import QUIET, TOLD
from uso_core.ui.inputs import TOAST_SECONDS, ChoiceInput, SliderInput
from uso_core.ui.language import label, say, tell

if TYPE_CHECKING:
    from uso_core.ui.services import Services

ROWS = 4
TURBO_SETS = ("steps", "guidance", "sampler")
SHOWN_STRENGTH = 2.0  # of the slider, which goes as far below zero


@dataclass(frozen=True)
class LoRARows:
    """The panel with its rows, shown one more than are in use, and the switch for Turbo."""

    panel: gr.Accordion
    turbo: gr.Checkbox
    rows: tuple[gr.Row, ...]
    fields: dict[str, Any]

    @property
    def names(self) -> list[Any]:
        return [self.fields[f"lora_{place}"] for place in range(1, ROWS + 1)]

    @property
    def all(self) -> list[Any]:
        """Every component that `filled` sets."""
        return [*self.fields.values(), self.turbo]


def lay_out(model: Model) -> LoRARows:
    """The rows, hidden until LoRAs are found."""
    fields: dict[str, Any] = {}
    turbo = gr.Checkbox(
        label=label("turbo"), info=label("turbo_hint"), visible=bool(model.turbos), container=False, elem_id="turbo"
    )
    with gr.Accordion(label("loras"), open=False, visible=False, elem_id="loras") as panel:
        rows = tuple(_row(place, fields) for place in range(1, ROWS + 1))
    return LoRARows(panel, turbo, rows, fields)


def _row(place: int, fields: dict[str, Any]) -> gr.Row:
    with gr.Row(visible=place == 1, elem_classes="lora") as row:
        fields[f"lora_{place}_on"] = gr.Checkbox(
            value=True, label=label("lora_on", place), show_label=False, container=False, min_width=24, scale=0
        )
        fields[f"lora_{place}"] = ChoiceInput(
            [(label("no_lora"), "")], value="", label=label("lora", place), min_width=120, scale=1
        )
        fields[f"lora_{place}_strength"] = SliderInput(
            -SHOWN_STRENGTH, SHOWN_STRENGTH, value=1, step=0.05, label=label("lora_strength", place), buttons=[],
            min_width=120, scale=1,
        )  # fmt: skip
    return row


def chosen(values: dict[str, Any], settings: Settings) -> tuple[LoRA, ...]:
    """The LoRAs in the rows that are switched on; raises `RequestError` for one that is not here any more."""
    found = []
    for place in range(1, ROWS + 1):
        name = values.get(f"lora_{place}")
        if name and values.get(f"lora_{place}_on"):
            strength = values[f"lora_{place}_strength"]
            checked = number("LoRA strength", strength, -MAX_LORA_STRENGTH, MAX_LORA_STRENGTH)
            found.append(dataclasses.replace(named_lora(f"{name}:1", settings), strength=checked))
    return tuple(found)


def filled(rows: LoRARows, loras: Iterable[LoRA]) -> dict[Any, Any]:
    """Values for every row; those beyond the given LoRAs become empty."""
    places = [*((lora.name, lora.strength) for lora in loras), *[("", 1.0)] * ROWS][:ROWS]
    values: dict[Any, Any] = {rows.turbo: False}
    for place, (name, strength) in enumerate(places, 1):
        values[rows.fields[f"lora_{place}"]] = name
        values[rows.fields[f"lora_{place}_strength"]] = strength
        values[rows.fields[f"lora_{place}_on"]] = True
    return values


def there(request: GenerationRequest, settings: Settings) -> tuple[list[LoRA], list[Message]]:
    """A request's LoRAs that are on this disk, as many as there are rows, and a sentence for each other."""
    found: list[LoRA] = []
    told: list[Message] = []
    for lora in request.loras:
        try:
            (known,) = located(dataclasses.replace(request, loras=(lora,)), settings).loras
        except UsoError as error:
            told.append(error.told)
            continue
        if len(found) < ROWS:
            found.append(known)
        else:
            told.append(Message("lora_beyond", {"name": lora.name}))
    return found, told


def by_file_name(wanted: Sequence[Named], folders: Sequence[str], settings: Settings) -> list[LoRA | Message | None]:
    """For each LoRA that a workflow names: the one here, a sentence if it is here and not taken, None if it is not.

    Neither ending nor case count; `folders`, since they are others here, only where two files have the same name.
    """
    if not wanted:
        return []
    known: dict[str, list[str]] = {}
    paths = find_loras(settings)
    for name, path in paths.items():
        for key in {_key(name), _key(path.name)}:
            known.setdefault(key, []).append(name)
    found: list[LoRA | Message | None] = []
    for lora, folder in zip(wanted, folders, strict=True):
        names = known.get(_key(lora.name), [])
        near = _nearest(folder, {name: paths[name] for name in names})
        if not names or lora.strength is None:
            found.append(None)
        elif len(near) > 1:
            found.append(Message("lora_twins", {"name": lora.name, "names": ", ".join(near)}))
        elif abs(lora.strength) > MAX_LORA_STRENGTH:
            values = {"name": lora.name, "strength": lora.strength, "most": MAX_LORA_STRENGTH}
            found.append(Message("lora_too_strong", values))
        elif sum(isinstance(each, LoRA) for each in found) == ROWS:
            found.append(Message("lora_beyond", {"name": lora.name}))
        else:
            found.append(LoRA(near[0], "", lora.strength))
    return found


def _nearest(folder: str, paths: dict[str, Path]) -> list[str]:
    """The names of those files that share most of their last folders with a workflow's; all if none shares any.

    Without a folder a workflow means what lies in the folder of LoRAs itself.
    """
    top = [name for name, path in paths.items() if path.parent.name.lower() in ("loras", "lora")]
    if not folder and len(top) == 1:
        return top
    asked = [part.lower() for part in reversed(folder.split("/"))]

    def shared(path: Path) -> int:
        own = (part.lower() for part in reversed(path.parent.parts))
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(asked, own, strict=False)))

    most = max(map(shared, paths.values()), default=0)
    return [name for name, path in paths.items() if shared(path) == most]


def _key(name: str) -> str:
    file = PurePosixPath(name.replace("\\", "/")).name.lower()
    return file.removesuffix(".safetensors").removesuffix(".sft")


def wire(page: gr.Blocks, rows: LoRARows, fields: dict[str, Any], services: Services) -> None:
    """Offers what is found when the page is opened, and lets Turbo set steps, guidance, sampler and its LoRA."""
    settings = services.settings

    def offer() -> list[Any]:
        choices = [(label("no_lora"), ""), *((name, name) for name in find_loras(settings))]
        return [gr.Accordion(visible=len(choices) > 1), *[gr.Dropdown(choices=choices)] * ROWS]

    def reveal(*names: str) -> list[Any]:
        return [gr.Row(visible=not place or bool(name or names[place - 1])) for place, name in enumerate(names)]

    def switch(on: bool, name: str, *names: str) -> dict[Any, Any]:
        model = get_model(name)
        known = {turbo.name for turbo in model.turbos}
        if not on:
            with contextlib.suppress(UsoError):  # its file may be listed under another name
                known.add(turbo_lora(model, settings)[0].name)
            return {**_without(rows, names, known), **{fields[name]: getattr(model, name) for name in TURBO_SETS}}
        try:
            lora, turbo = turbo_lora(model, settings)
        except UsoError as error:
            gr.Warning(escape(tell(error.told), quote=False), duration=TOAST_SECONDS, title=say("please_change"))
            return {rows.turbo: False}
        place = next((place for place, each in enumerate(names, 1) if each in ("", None, lora.name)), None)
        if place is None:
            full = RequestError("too_many_loras", count=ROWS + 1, most=ROWS)
            gr.Warning(escape(tell(full.told), quote=False), duration=TOAST_SECONDS, title=say("please_change"))
            return {rows.turbo: False}
        return {
            rows.fields[f"lora_{place}"]: lora.name,
            rows.fields[f"lora_{place}_strength"]: lora.strength,
            rows.fields[f"lora_{place}_on"]: True,
            **{fields[name]: turbo.values[name] for name in TURBO_SETS},
        }

    page.load(offer, None, [rows.panel, *rows.names], **QUIET)
    gr.on([each.change for each in rows.names], reveal, rows.names, list(rows.rows),
          trigger_mode="always_last", **QUIET)  # fmt: skip
    outputs = [*rows.all, *(fields[name] for name in TURBO_SETS)]
    rows.turbo.input(switch, [rows.turbo, fields["model"], *rows.names], outputs,
                     trigger_mode="always_last", **TOLD)  # fmt: skip


def _without(rows: LoRARows, names: Sequence[str], unwanted: set[str]) -> dict[Any, Any]:
    """Empties the rows that hold one of the unwanted."""
    return {rows.fields[f"lora_{place}"]: "" for place, name in enumerate(names, 1) if name in unwanted}
