"""The frontend's format as a flat graph: version 0.4 has links as lists, 1.0 as objects, either has subgraphs.

Also what the canvas adds to wires: group nodes, broadcasts, and values that a subgraph's node sets on inner widgets.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from uso_core.comfy import group_nodes
from uso_core.comfy.graph import BYPASSED, MUTED, Graph, Node, Origin
from uso_core.comfy.image_names import noted_hash
from uso_core.comfy.nodes import BROADCASTS, PICKY_BROADCASTS, SIGNATURES, WIDGET_TYPES, Input
from uso_core.comfy.parts import dict_of, dicts, id_of, type_of, whole_of
from uso_core.comfy.widgets import saved_values, widget, widgets_of
from uso_core.errors import RequestError

MAX_PARTS = 200_000  # inputs, values and links of all nodes, with subgraphs expanded
MAX_DEPTH = 24  # nested subgraphs
INPUT_NODE, OUTPUT_NODE = "-10", "-20"  # a subgraph's own input and output nodes


class Canvas:
    """Expands a frontend workflow into a flat graph, subgraph by subgraph."""

    def __init__(self, data: dict[str, Any]) -> None:
        subgraphs = dict_of(data.get("definitions")).get("subgraphs")
        self.definitions = {id_of(one.get("id")): one for one in dicts(subgraphs)}
        self.groups = dict_of(dict_of(data.get("extra")).get("groupNodes"))
        self.graph = Graph(canvas=True)
        self._parts = 0
        self._links_of: dict[int, list[_Link]] = {}
        self._opened: list[object] = []  # kept, for `_links_of` knows definitions by identity
        self._hosts: dict[str, list[Input]] = {}
        self._open(data, "", {}, 0)

    def _open(self, scope: dict[str, Any], prefix: str, promoted: dict[str, dict[str, object]], depth: int) -> None:
        """Adds a scope's nodes; `promoted` holds values that its outer node sets on inner widgets."""
        if depth > MAX_DEPTH:
            raise RequestError("workflow_too_deep", hint="workflow", most=MAX_DEPTH)
        self._count(scope, "nodes", "links", "inputs")
        origins = self._origins(scope, prefix)
        for raw in dicts(scope.get("nodes")):
            self._count(raw, "inputs", "outputs", "widgets_values")
            inner_id, kind = id_of(raw.get("id")), id_of(raw.get("type"))
            definition = self.definitions.get(kind) if kind else None
            group = group_nodes.group_of(kind, self.groups)
            if definition is None and group is not None:
                self._count(group, "nodes", "links", "external")
                definition = group_nodes.opened(group, raw)
                self._opened.append(definition)
            if definition is None and kind.startswith(group_nodes.PREFIXES):
                self.graph.closed.append(kind)
            node = Node(prefix + inner_id, kind, whole_of(raw.get("mode")))
            for slot in dicts(raw.get("inputs")):
                name = str(slot.get("name"))
                node.types[name] = type_of(slot.get("type"))
                origin = origins.get(id_of(slot.get("link")))
                if origin is not None:
                    node.links[name] = origin
            node.outputs = tuple(type_of(slot.get("type")) for slot in dicts(raw.get("outputs")))
            node.hash = noted_hash(dict_of(raw.get("properties")))
            self._read_values(node, raw, None if group is not None else definition)
            for name, value in promoted.get(inner_id, {}).items():
                if _alike(node.values.get(name), value):
                    node.values[name] = value
            self.graph.add(node)
            if definition is not None:
                self._enter(node, raw, definition, depth)
        self._broadcast(scope, prefix)

    def _read_values(self, node: Node, raw: dict[str, Any], definition: dict[str, Any] | None) -> None:
        if definition is not None and node.kind not in self._hosts:
            self._hosts[node.kind] = _host_widgets(definition)
        widgets = self._hosts[node.kind] if definition is not None else widgets_of(node.kind, raw)
        values = saved_values(raw, widgets, definition is not None or node.kind in SIGNATURES)
        node.values, node.unread = values or {}, values is None

    def _broadcast(self, scope: dict[str, Any], prefix: str) -> None:
        """Links without a wire: as saved in `extra.ue_links` (cg-use-everywhere), else as far as they are certain."""
        raws = {id_of(raw.get("id")): raw for raw in dicts(scope.get("nodes"))}
        active = [
            node
            for key in raws
            if (node := self.graph.nodes.get(prefix + key)) is not None and node.mode not in (MUTED, BYPASSED)
        ]
        extra = dict_of(scope.get("extra"))
        self._count(extra, "ue_links")
        saved = dicts(extra.get("ue_links"))
        if not saved:
            self.graph.broadcasts += [node for node in active if node.kind in PICKY_BROADCASTS]
            offers = self._offers([node for node in active if node.kind in BROADCASTS], raws, prefix)
            if offers:
                self._spread(offers, raws, prefix)
            return
        names = {key: [str(slot.get("name")) for slot in dicts(raw.get("inputs"))] for key, raw in raws.items()}
        for link in saved:
            key, place = id_of(link.get("downstream")), whole_of(link.get("downstream_slot"))
            target = self.graph.nodes.get(prefix + key)
            if target is not None and 0 <= place < len(names.get(key, ())):
                origin = Origin(prefix + id_of(link.get("upstream")), whole_of(link.get("upstream_slot")))
                target.links.setdefault(names[key][place], origin)

    def _offers(self, nodes: list[Node], raws: dict[str, Any], prefix: str) -> dict[tuple[str, str], Origin]:
        """What broadcasting nodes offer, by the type or name of the inputs that it is for; nothing that two offer."""
        offers: dict[tuple[str, str], list[tuple[Node, Origin]]] = {}
        outputs = {key: [type_of(each.get("type")) for each in dicts(raw.get("outputs"))] for key, raw in raws.items()}
        for node in nodes:
            for place, name in enumerate(node.types):
                origin = node.links.get(name)
                if origin is None:
                    continue
                types = outputs.get(origin.key.removeprefix(prefix), [])
                kind = types[origin.slot] if 0 <= origin.slot < len(types) else ""
                by_name = ("name", ("positive", "negative")[place % 2])
                wanted = by_name if node.kind == "Prompts Everywhere" else ("type", kind)
                offers.setdefault(wanted, []).append((node, origin))
        self.graph.broadcasts += [node for given in offers.values() if len(given) > 1 for node, _ in given]
        return {wanted: given[0][1] for wanted, given in offers.items() if len(given) == 1}

    def _spread(self, offers: dict[tuple[str, str], Origin], raws: dict[str, Any], prefix: str) -> None:
        """Feeds the inputs that are left open, widgets excepted."""
        for key, raw in raws.items():
            node = self.graph.nodes.get(prefix + key)
            if node is None or node.kind in BROADCASTS:
                continue
            for slot in dicts(raw.get("inputs")):
                name = str(slot.get("name"))
                origin = offers.get(("name", name)) or offers.get(("type", type_of(slot.get("type"))))
                if origin is not None and slot.get("link") is None and not slot.get("widget"):
                    node.links.setdefault(name, origin)

    def _count(self, holder: dict[str, Any], *names: str) -> None:
        self._parts += sum(len(holder[name]) for name in names if isinstance(holder.get(name), list | dict))
        if self._parts > MAX_PARTS:
            raise RequestError("workflow_too_many_links", hint="workflow")

    def _enter(self, node: Node, raw: dict[str, Any], definition: dict[str, Any], depth: int) -> None:
        if node.mode in (MUTED, BYPASSED):  # nothing inside runs
            node.exits = {}
            return
        prefix = f"{node.key}:"
        origins = self._origins(definition, prefix)
        node.exits = {}
        for link in self._links(definition):
            if link.target == OUTPUT_NODE and link.id in origins:
                node.exits.setdefault(link.target_slot, origins[link.id])
        self._open(definition, prefix, _proxies(node, raw), depth + 1)

    def _links(self, scope: dict[str, Any]) -> list[_Link]:
        if id(scope) not in self._links_of:  # a definition is opened once per use
            self._links_of[id(scope)] = list(_links(scope))
        return self._links_of[id(scope)]

    def _origins(self, scope: dict[str, Any], prefix: str) -> dict[str, Origin]:
        entries = [str(slot.get("name")) for slot in dicts(scope.get("inputs"))] if prefix else []
        origins = {}
        for link in self._links(scope):
            if link.origin != INPUT_NODE:
                origins[link.id] = Origin(prefix + link.origin, link.slot)
            elif 0 <= link.slot < len(entries):
                origins[link.id] = Origin(prefix[:-1], link.slot, entries[link.slot])
        return origins


class _Link(NamedTuple):
    id: str
    origin: str
    slot: int
    target: str
    target_slot: int


def _links(scope: dict[str, Any]) -> Iterator[_Link]:
    links = scope.get("links")
    for link in links if isinstance(links, list) else []:
        if isinstance(link, dict):
            link = [link.get(key) for key in ("id", "origin_id", "origin_slot", "target_id", "target_slot")]
        if isinstance(link, list) and len(link) >= 5 and id_of(link[0]):
            yield _Link(id_of(link[0]), id_of(link[1]), whole_of(link[2]), id_of(link[3]), whole_of(link[4]))


def _host_widgets(definition: dict[str, Any]) -> list[Input]:
    """The same for a subgraph's node: its inputs that lead to an inner widget, in order."""
    ends = {(link.origin, link.slot): link for link in _links(definition)}
    nodes = {id_of(node.get("id")): dicts(node.get("inputs")) for node in dicts(definition.get("nodes"))}
    widgets = []
    for place, slot in enumerate(dicts(definition.get("inputs"))):
        link = ends.get((INPUT_NODE, place))
        inside = nodes.get(link.target, []) if link else []
        target = inside[link.target_slot] if link and 0 <= link.target_slot < len(inside) else {}
        if dict_of(target.get("widget")) or type_of(slot.get("type")) in WIDGET_TYPES:
            widgets.append(widget(str(slot.get("name")), type_of(slot.get("type"))))
    return widgets


def _proxies(host: Node, raw: dict[str, Any]) -> dict[str, dict[str, object]]:
    """Values that `proxyWidgets` of a subgraph's node sets: on its own inputs ("-1"), or on inner widgets.

    They follow the order of the node's saved values, not of its inputs; so values read by input are dropped.
    """
    proxies = dict_of(raw.get("properties")).get("proxyWidgets")
    saved = raw.get("widgets_values")
    promoted: dict[str, dict[str, object]] = {}
    if not isinstance(proxies, list) or not proxies or not isinstance(saved, list):
        return promoted
    outside = dict(dict_of(raw.get("widgets_values_named")))
    for proxy, value in zip(proxies, saved, strict=False):
        if isinstance(proxy, list) and len(proxy) >= 2 and value is not None:
            if id_of(proxy[0]) == "-1":
                outside[str(proxy[1])] = value
            else:
                promoted.setdefault(id_of(proxy[0]), {})[str(proxy[1])] = value
    host.values = outside
    return promoted


def _alike(old: object, new: object) -> bool:
    """Whether a value may replace another: a misaligned saved list must not put a text where a number was."""
    kinds = (bool, int | float, str)
    return old is None or any(isinstance(old, kind) and isinstance(new, kind) for kind in kinds)
