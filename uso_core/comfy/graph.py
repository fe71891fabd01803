"""A workflow as one flat graph whose links can be followed backwards.

A followed link passes through reroutes, bypassed nodes and subgraph boundaries like ComfyUI_frontend's
`ExecutableNodeDTO`, so it ends at the node that would really have run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from uso_core.comfy.computed import NEVER_DYNAMIC, UnknownResult, results_of
from uso_core.comfy.nodes import CONTEXT, CONTEXTS, GET_NODES, ONWARD, PASS_THROUGH, SET_NODES, SWITCHES
from uso_core.comfy.prompt_text import as_sent
from uso_core.errors import RequestError

MAX_NODES = 20_000  # with subgraphs expanded
MAX_HOPS = 50_000  # followed links in total; a real workflow needs some hundreds
MAX_DEPTH = 24  # nested joins of texts
MUTED, BYPASSED = 2, 4
OF_HOST, OF_CHOICES = -1, -2  # slots of a `Found` that is no output of a node


class Origin(NamedTuple):
    """Where a link begins: an output of a node, or, with `entry`, that input of the outer node of the subgraph."""

    key: str
    slot: int
    entry: str | None = None


class Found(NamedTuple):
    """What feeds an input: an output of a node that runs, or, with slot `OF_HOST`, a value set on a subgraph's node.

    As a value it stands for one that the file does not decide, and names the node that would: by computing it, or, with
    slot `OF_CHOICES`, by drawing one of the choices in its text.
    """

    node: Node
    slot: int
    value: object = None


@dataclass
class Node:
    """One node. `types` are its inputs' in order ("" unknown); `exits` (of a subgraph's node) lead to inner nodes.

    `unread` says that its saved values could not be matched to its inputs.
    """

    key: str
    kind: str
    mode: int = 0
    types: dict[str, str] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    links: dict[str, Origin] = field(default_factory=dict)
    values: dict[str, object] = field(default_factory=dict)
    exits: dict[int, Origin] | None = None
    unread: bool = False
    hash: tuple[str, str] | None = None  # the file name and sha256 of the image that our own export put here


class Graph:
    """Nodes by key, and how to follow their links. The keys are those of ComfyUI's own prompt: "57:44".

    With `canvas` the texts are those of the frontend's fields, which it may still rewrite. `broadcasts` are nodes whose
    targets the file does not tell, `runs` how many the file holds if it is a history,
    `closed` the groups that could not be opened, `missed` subgraphs' nodes asked for a value that could not be matched,
    `ends` the muted nodes, and bypassed ones that pass nothing on, at which a followed link ended.
    """

    def __init__(self, canvas: bool = False) -> None:
        self.canvas = canvas
        self.runs = 0
        self.closed: list[str] = []
        self.nodes: dict[str, Node] = {}
        self.broadcasts: list[Node] = []
        self.missed: dict[str, Node] = {}
        self.ends: dict[str, Node] = {}
        self._hops = self._added = 0
        self._by_name: dict[tuple[str, str], Origin] | None = None
        self._deciding: set[str] = set()

    def add(self, node: Node) -> None:
        self._added += 1  # nodes that share a key count too
        if self._added > MAX_NODES:
            raise RequestError("workflow_too_many_nodes", hint="workflow", most=MAX_NODES)
        self.nodes.setdefault(node.key, node)

    def _spend(self, hops: int) -> None:
        self._hops += hops
        if self._hops > MAX_HOPS:
            raise RequestError("workflow_tangled", hint="workflow")

    def own(self, node: Node, name: str) -> object:
        """The value of a node's own widget; None if it says nothing."""
        if name not in node.values and node.unread and node.exits is not None:
            self.missed[node.key] = node
        return node.values.get(name)

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
                if origin.entry not in source.links and (value := self.own(source, origin.entry)) is not None:
                    return Found(source, OF_HOST, value)
                origin = source.links.get(origin.entry)
            elif source.mode == MUTED:
                self._end_at(source)
                return None
            elif source.mode == BYPASSED:
                self._spend(len(source.types) // 16)
                onward = _bypass(source, origin.slot, wanted)
                origin, wanted = source.links.get(onward), source.types.get(onward, "") or wanted
                if origin is None:
                    self._end_at(source)
            elif source.exits is not None:
                origin = source.exits.get(origin.slot)
            elif source.kind in GET_NODES:
                origin = self._set_as(source)
            elif source.kind in PASS_THROUGH and source.links:
                origin = next(iter(source.links.values()), None)
            elif source.kind in CONTEXTS and 0 < origin.slot < len(CONTEXT):
                own, base = source.links.get(CONTEXT[origin.slot]), source.links.get(CONTEXT[0])
                origin = own or (Origin(base.key, origin.slot) if base is not None and base.slot == 0 else None)
            elif source.kind in SWITCHES and origin.slot == 0 and (branch := self._branch(source)) is not None:
                if branch not in source.links:
                    return Found(source, OF_HOST, self.own(source, branch))
                origin = source.links[branch]
            else:
                return Found(source, origin.slot)
        return None

    def _end_at(self, node: Node) -> None:
        if not self._deciding:  # a switch may well take another branch
            self.ends.setdefault(node.key, node)

    def _branch(self, node: Node) -> str | None:
        """The input that a switch passes on; None if the file does not decide it."""
        switch = SWITCHES[node.kind]
        if node.key in self._deciding or len(self._deciding) > MAX_DEPTH:
            return None
        self._spend(len(node.links) // 16)
        self._deciding.add(node.key)
        try:
            if switch.selector:
                return switch.branch(self.value(node, switch.selector))
            return next((name for name in sorted(node.links) if self.feed(node, name) is not None), None)
        finally:
            self._deciding.discard(node.key)

    def value(self, node: Node, name: str, path: tuple[str, ...] = (), prompt: bool = False) -> object:
        """An input's value: from its link, else from the node's own widget. A `Found` if the file does not decide it.

        For a `prompt` the frontend's own rewriting of texts counts too.
        """
        found = self.feed(node, name)
        if found is None:
            return self._as_sent(node, self.own(node, name), prompt)
        if found.slot == OF_HOST:
            return self._as_sent(found.node, found.value, prompt)
        source = found.node
        if source.key in path or len(path) > MAX_DEPTH:
            return found
        deeper = (*path, source.key)
        unknown: list[Found] = []

        def known(each: str) -> object:
            value = self.value(source, each, deeper, prompt)
            if isinstance(value, Found):
                unknown.append(value)
                raise UnknownResult
            return value

        try:
            results = results_of(source.kind, known)
        except UnknownResult:
            return unknown[0] if unknown else found
        value = results[found.slot] if 0 <= found.slot < len(results) else None
        return found if value is None else value

    def _as_sent(self, node: Node, value: object, prompt: bool) -> object:
        if not (prompt and self.canvas and isinstance(value, str)) or node.kind in NEVER_DYNAMIC:
            return value
        sent = as_sent(value)
        return Found(node, OF_CHOICES) if sent is None else sent

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
        if found.node.kind in SWITCHES:
            return None  # which input it passes on is not known
        if role == "CONDITIONING" and found.slot == 1 and "negative" in links:
            return "negative"  # nodes that handle both prompts output the negative one second
        named = next((name for name in ONWARD[role] if name in links), None)
        alike = [name for name in links if found.node.types.get(name) == role]
        return named or (alike[0] if len(alike) == 1 else None)  # which of several it passes on is not known either

    def _set_as(self, getter: Node) -> Origin | None:
        """What a getter's name stands for: set in its own subgraph, else in one around it."""
        if self._by_name is None:
            setters = (node for node in self.nodes.values() if node.kind in SET_NODES and node.links and node.mode == 0)
            self._by_name = {
                (_scope(node.key), name): next(iter(node.links.values()))
                for node in setters
                if isinstance(name := node.values.get("name"), str)
            }
        name, scope = getter.values.get("name"), _scope(getter.key)
        while isinstance(name, str):
            if (scope, name) in self._by_name:
                return self._by_name[scope, name]
            if not scope:
                break
            scope = _scope(scope)
        return None


def _scope(key: str) -> str:
    """The key of the subgraph that a node is in; "" outside of all."""
    return key.rpartition(":")[0]


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
