"""Which of a node's saved values belongs to which input: the frontend saves them as a list without names."""

from __future__ import annotations

import re
from typing import Any

from uso_core.comfy.computed import HELD
from uso_core.comfy.nodes import CONTROL_WORDS, SIGNATURES, WIDGET_TYPES, Input
from uso_core.comfy.parts import dict_of, dicts, type_of

Raw = dict[str, Any]


def widgets_of(kind: str, raw: Raw) -> list[Input]:
    """The widgets that a node's list of values belongs to, as far as they are known."""
    if kind in SIGNATURES:
        return [one for one in SIGNATURES[kind].inputs if one.widget]
    slots = [slot for slot in dicts(raw.get("inputs")) if dict_of(slot.get("widget"))]
    listed = [widget(str(slot["widget"].get("name")), type_of(slot.get("type"))) for slot in slots]
    return [Input(name, "ANY", control=True) for name in HELD[kind]] if kind in HELD and not listed else listed


def widget(name: str, kind: str) -> Input:
    return Input(name, kind if kind in WIDGET_TYPES else "ANY", control=kind == "INT")


def saved_values(raw: Raw, widgets: list[Input], certain: bool) -> dict[str, object] | None:
    """A node's widget values by name, in whichever form they are saved; None if they cannot be matched to names.

    `certain` says that the widgets are all those that the node has, in order.
    """
    saved, named = raw.get("widgets_values"), dict_of(raw.get("widgets_values_named"))
    if isinstance(saved, dict):
        return {**saved, **named}
    if not isinstance(saved, list) or not saved or named:
        return named if isinstance(saved, list) or saved is None or named else None
    rows = {f"lora_{number}": row for number, row in enumerate(saved, 1) if isinstance(row, dict) and "lora" in row}
    linked = {str(slot.get("name")) for slot in dicts(raw.get("inputs")) if slot.get("link") is not None}
    matched = _matched(saved, widgets, certain, linked)
    return {**(matched or {}), **rows} if rows or matched is not None else None


def _matched(saved: list[Any], widgets: list[Input], certain: bool, linked: set[str]) -> dict[str, object] | None:
    """Values by name, skipping the controls after seeds; None if one is not of its widget's type, or too few are known.

    What stands in place of a linked input counts for nothing.
    """
    values: dict[str, object] = {}
    place = 0
    for widget in widgets:
        if place == len(saved):
            return values if certain else None
        value = saved[place]
        place += 1
        if value is not None and _is_of(value, widget.type):
            values[widget.name] = value
        elif value is not None and widget.name not in linked:
            return None
        following = saved[place] if place < len(saved) else 0
        if widget.control and (following is None or (isinstance(following, str) and following in CONTROL_WORDS)):
            place += 1
    return values if certain or all(value in (None, "", "image") for value in saved[place:]) else None


def _is_of(value: object, kind: str) -> bool:
    """Whether a saved value can be one of a widget's type."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind in ("INT", "FLOAT"):
        return number or (isinstance(value, str) and re.fullmatch(r"\s*-?[\d.]{1,32}\s*", value) is not None)
    if kind == "STRING":
        return isinstance(value, str)
    return kind != "BOOLEAN" or isinstance(value, bool | str)
