"""A workflow as one flat graph whose links can be followed backwards.

A followed link passes through reroutes, bypassed nodes and subgraph boundaries like ComfyUI_frontend's
`ExecutableNodeDTO`, so it ends at the node that would really have run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from uso_core.comfy.nodes import CONSTANTS, GET_NODE, ONWARD, PASS_THROUGH, SET_NODE
from uso_core.errors import RequestError

MAX_NODES = 20_000  # with subgraphs expanded
MAX_HOPS = 50_000  # followed links in total; a real workflow needs some hundreds
MAX_DEPTH = 24  # nested joins of texts
MAX_JOINED_CHARACTERS = 100_000
MUTED, BYPASSED = 2, 4


class Origin(NamedTuple):
    """Where a link begins: an output of a node, or, with `entry`, that input of the outer node of the subgraph."""

    key: str
    slot: int
    entry: str | None = None


class Found(NamedTuple):
    """What feeds an input: an output of a node that runs, or, with slot -1, a value set on a subgraph's node."""

    node: Node
    slot: int
    value: object = None


@dataclass
class Node:
    """One node. `types` are its inputs' in order ("" unknown); `exits` (of a subgraph's node) lead to inner nodes."""

    key: str
    kind: str
    mode: int = 0
    types: dict[str, str] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    links: dict[str, Origin] = field(default_factory=dict)
    values: dict[str, object] = field(default_factory=dict)
    exits: dict[int, Origin] | None = None


class Graph:
    """Nodes by key, and how to follow their links. The keys are those of ComfyUI's own prompt: "57:44"."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self._hops = self._added = 0
        self._by_name: dict[str, Origin] | None = None

    def add(self, node: Node) -> None:
        self._added += 1  # nodes that share a key count too
        if self._added > MAX_NODES:
            raise RequestError("workflow_too_many_nodes", hint="workflow", most=MAX_NODES)
        self.nodes.setdefault(node.key, node)

    def _spend(self, hops: int) -> None:
        self._hops += hops
        if self._hops > MAX_HOPS:
            raise RequestError("workflow_tangled", hint="workflow")

    def feed(self, node: Node, name: str) -> Found | None:
        """What really feeds an input; None if nothing does (no link, muted, bypassed to nothing, a cycle)."""
        origin, wanted = node.links.get(name), node.types.get(name, "")
        seen: set[Origin] = set()
        while origin is not None and origin not in seen:
            seen.add(origin)
            self._spend(1)
            source = self.nodes.get(origin.key)
            if source is None:
                return None
            if origin.entry is not None:
                if origin.entry not in source.links and origin.entry in source.values:
                    return Found(source, -1, source.values[origin.entry])
                origin = source.links.get(origin.entry)
            elif source.mode == MUTED:
                return None
            elif source.mode == BYPASSED:
                self._spend(len(source.types) // 16)
                onward = _bypass(source, origin.slot, wanted)
                origin, wanted = source.links.get(onward), source.types.get(onward, "") or wanted
            elif source.exits is not None:
                origin = source.exits.get(origin.slot)
            elif source.kind == GET_NODE:
                origin = self._setters().get(str(source.values.get("value")))
            elif source.kind in PASS_THROUGH:
                origin = next(iter(source.links.values()), None)
            else:
                return Found(source, origin.slot)
        return None

    def value(self, node: Node, name: str, path: tuple[str, ...] = ()) -> object:
        """An input's value: from its link, else from the node's own widget. A `Found` if a node would compute it."""
        found = self.feed(node, name)
        if found is None:
            return node.values.get(name)
        if found.slot < 0:
            return found.value
        source = found.node
        if source.key in path or len(path) > MAX_DEPTH:
            return found
        path = (*path, source.key)
        if source.kind == "StringConcatenate":
            parts = [self.value(source, part, path) for part in ("string_a", "delimiter", "string_b")]
            texts = [part for part in parts if isinstance(part, str)]
            return "".join(texts) if len(texts) == 3 and sum(map(len, texts)) <= MAX_JOINED_CHARACTERS else found
        if source.links.keys() <= set(CONSTANTS):  # a node that computes something has other inputs
            for constant in CONSTANTS:
                if constant in source.values or constant in source.links:
                    value = self.value(source, constant, path)
                    return found if value is None else value
        return found

    def chain(self, node: Node, name: str, role: str) -> Iterator[Found]:
        """The nodes behind an input, nearest first, each time following the input that carries `role`."""
        seen: set[str] = set()
        found = self.feed(node, name)
        while found is not None and found.slot >= 0 and found.node.key not in seen:
            seen.add(found.node.key)
            self._spend(len(found.node.links) // 16)
            yield found
            onward = self.onward(found, role)
            found = self.feed(found.node, onward) if onward else None

    def onward(self, found: Found, role: str) -> str | None:
        links = found.node.links
        if role == "CONDITIONING" and found.slot == 1 and "negative" in links:
            return "negative"  # nodes that handle both prompts output the negative one second
        named = next((name for name in ONWARD[role] if name in links), None)
        return named or next((name for name in links if found.node.types.get(name) == role), None)

    def _setters(self) -> dict[str, Origin]:
        if self._by_name is None:
            setters = (node for node in self.nodes.values() if node.kind == SET_NODE and node.links and node.mode == 0)
            self._by_name = {str(node.values.get("value")): next(iter(node.links.values())) for node in setters}
        return self._by_name


def _bypass(node: Node, slot: int, wanted: str) -> str:
    """The input that a bypassed node passes on to an output; "" for none. The same position if the type fits, else the
    first of that type."""
    names, types = list(node.types), list(node.types.values())
    given = node.outputs[slot] if 0 <= slot < len(node.outputs) else wanted
    wanted = wanted or given
    if not names:
        return ""
    if wanted == "*":
        return names[slot] if slot < len(names) else names[0]
    if slot < len(names) and _fits(types[slot], given) and _fits(types[slot], wanted):
        return names[slot]
    if wanted in types:
        return names[types.index(wanted)]
    return next((name for name, kind in node.types.items() if _fits(kind, given) and _fits(kind, wanted)), "")


def _fits(one: str, two: str) -> bool:
    return "*" in (one, two) or bool(set(one.lower().split(",")) & set(two.lower().split(",")))
