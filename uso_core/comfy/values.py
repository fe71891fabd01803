"""Checks single values of a graph's nodes, and collects notes about them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from uso_core.comfy.graph import Found, Graph, Node
from uso_core.messages import Message, message

MAX_NOTES = 60


class Values:
    """Collects the form's values in `found`, and in `notes` sentences about things without a counterpart."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.found: dict[str, Any] = {}
        self.notes: list[Message] = []
        self.told: set[str] = set()  # fields that a note explains

    def note(self, key: str, about: Iterable[str] = (), **values: object) -> None:
        """Adds a sentence; `about` names the fields that it explains why they are not filled in."""
        self.told.update(about)
        said = message(f"note_{key}", **values)
        if said not in self.notes and len(self.notes) < MAX_NOTES:
            self.notes.append(said)

    def has(self, node: Node, name: str) -> bool:
        return name in node.links or self.graph.own(node, name) is not None

    def node(self, node: Node, name: str) -> Node | None:
        found = self.graph.feed(node, name)
        return found.node if found is not None and found.slot >= 0 else None

    def number(self, node: Node, name: str, what: str, low: float, high: float) -> int | float | None:
        """An input's value in [low, high]; None if it says nothing, with a note on `what` for any other value."""
        value = self.graph.value(node, name)
        if isinstance(value, Found):
            self.note("computed", (what,), what=message(f"what_{what}"), node=label(value.node))
            return None
        result = as_number(value)
        if result is None or low <= result <= high:
            return result
        if what == "seed" and -3 <= result < 0:  # rgthree's words for random, one more, one less
            self.note("seed_drawn", (what,), node=label(self.node(node, name) or node))
            return None
        shown = {"value": _shown(result), "low": _shown(low), "high": _shown(high)}
        self.note("range", (what,), what=message(f"what_{what}"), **shown)
        return None

    def keep(self, name: str, value: object) -> None:
        if value is not None:
            self.found.setdefault(name, value)

    def keep_whole(self, name: str, node: Node, source: str, low: int, high: int) -> None:
        value = self.number(node, source, name, low, high)
        self.keep(name, None if value is None else int(value))

    def word(self, node: Node, name: str) -> str:
        """A short text; the class of the node that computes it, if one does."""
        value = self.graph.value(node, name)
        if isinstance(value, Found):
            return label(value.node)
        return shortened(value) if isinstance(value, str) else ""


def label(node: Node) -> str:
    """A node's class for use in a sentence: one short line, whatever the file says."""
    return shortened(node.kind) or "A node without a name"


def shortened(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text[:200]).split())[:80]


def as_number(value: object) -> int | float | None:
    """A number as ComfyUI accepts it, also as text; None for anything else. An int keeps all its digits."""
    if isinstance(value, str) and len(value) <= 32:
        try:
            value = int(value)
        except ValueError:
            try:
                value = float(value)
            except ValueError:
                return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, int):
        return value if value.bit_length() <= 128 else None
    return value if math.isfinite(value) else None


def _shown(value: int | float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
