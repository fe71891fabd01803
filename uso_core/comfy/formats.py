"""Turns an untrusted workflow into a flat graph.

Reads both of ComfyUI's formats: the frontend's (version 0.4 with links as lists, 1.0 with links as objects, subgraphs
in either) and the API's ({id: {class_type, inputs}}). Nothing is trusted: a value of the wrong type counts as absent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from uso_core.comfy.graph import BYPASSED, MUTED, Graph, Node, Origin
from uso_core.comfy.nodes import CONTROL, CONTROL_WORDS, SIGNATURES, WIDGET_TYPES
from uso_core.errors import RequestError

MAX_TEXT_CHARACTERS = 10 * 2**20
MAX_PARTS = 200_000  # inputs, values and links of all nodes, with subgraphs expanded
MAX_DEPTH = 24  # nested subgraphs
MAX_NAME_CHARACTERS = 255
INPUT_NODE, OUTPUT_NODE = "-10", "-20"  # a subgraph's own input and output nodes


def workflow_in_png_text(info: Mapping[str, Any]) -> str | None:
    """The workflow in a PNG's text as PIL returns it: `workflow` (frontend), else `prompt` (API), else None."""
    for key in ("workflow", "prompt"):
        text = info.get(key)
        if isinstance(text, str) and text.lstrip().startswith("{"):
            return text
    return None


def parse(text: str) -> Graph:
    """Parses a workflow's text; raises `RequestError` if it is too large or holds no workflow."""
    if len(text) > MAX_TEXT_CHARACTERS:
        raise RequestError("workflow_too_large", hint="workflow")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):  # ValueError also for a number with thousands of digits
        raise RequestError("workflow_no_json", hint="workflow") from None
    for _ in range(3):  # unwraps replies of /prompt and /history, also saved ones
        if not isinstance(data, dict):
            break
        if isinstance(data.get("nodes"), list):
            return _Frontend(data).graph
        if any(isinstance(node, dict) and isinstance(node.get("class_type"), str) for node in data.values()):
            return _api(data)
        data = next((data[key] for key in ("workflow", "prompt", "output") if isinstance(data.get(key), dict)), None)
    raise RequestError("no_workflow", hint="workflow")


def file_name(text: str) -> str | None:
    """The last component of a file name, without the "[output]" that ComfyUI may append; None if there is none."""
    name = re.split(r"[\\/]", text[-4096:].strip())[-1]
    for folder in ("input", "output", "temp"):
        name = name.removesuffix(f"[{folder}]")
    name = "".join(c for c in name if c.isprintable()).strip()
    return name if name not in ("", ".", "..") and len(name) <= MAX_NAME_CHARACTERS else None


def _api(data: dict[str, Any]) -> Graph:
    graph = Graph()
    for key, raw in data.items():
        if not isinstance(raw, dict) or not isinstance(raw.get("class_type"), str):
            continue
        node = Node(str(key), raw["class_type"])
        for name, value in _dict(raw.get("inputs")).items():
            if isinstance(value, dict) and "__value__" in value:  # how a list that is not a link is written
                value = value["__value__"]
            elif isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int):
                node.types[name] = ""
                node.links[name] = Origin(str(value[0]), _whole(value[1]))
                continue
            node.values[name] = value
        graph.add(node)
    return graph


class _Frontend:
    """Expands a frontend workflow into a flat graph, subgraph by subgraph."""

    def __init__(self, data: dict[str, Any]) -> None:
        subgraphs = _dict(data.get("definitions")).get("subgraphs")
        self.definitions = {_id(one.get("id")): one for one in _dicts(subgraphs)}
        self.graph = Graph()
        self._parts = 0
        self._links_of: dict[int, list[_Link]] = {}
        self._hosts: dict[str, list[str]] = {}
        self._open(data, "", {}, 0)

    def _open(self, scope: dict[str, Any], prefix: str, promoted: dict[str, dict[str, object]], depth: int) -> None:
        """Adds a scope's nodes; `promoted` holds values that its outer node sets on inner widgets."""
        if depth > MAX_DEPTH:
            raise RequestError("workflow_too_deep", hint="workflow", most=MAX_DEPTH)
        self._count(scope, "nodes", "links", "inputs")
        origins = self._origins(scope, prefix)
        for raw in _dicts(scope.get("nodes")):
            self._count(raw, "inputs", "outputs", "widgets_values")
            inner_id, kind = _id(raw.get("id")), _id(raw.get("type"))
            definition = self.definitions.get(kind) if kind else None
            node = Node(prefix + inner_id, kind, _whole(raw.get("mode")))
            for slot in _dicts(raw.get("inputs")):
                name = str(slot.get("name"))
                node.types[name] = _type(slot.get("type"))
                origin = origins.get(_id(slot.get("link")))
                if origin is not None:
                    node.links[name] = origin
            node.outputs = tuple(_type(slot.get("type")) for slot in _dicts(raw.get("outputs")))
            if definition is not None and kind not in self._hosts:
                self._hosts[kind] = _host_widgets(definition)
            node.values = _values(raw, self._hosts[kind] if definition is not None else _widgets(kind, raw))
            for name, value in promoted.get(inner_id, {}).items():
                if _alike(node.values.get(name), value):
                    node.values[name] = value
            self.graph.add(node)
            if definition is not None:
                self._enter(node, raw, definition, depth)

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
        entries = [str(slot.get("name")) for slot in _dicts(scope.get("inputs"))] if prefix else []
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
        if isinstance(link, list) and len(link) >= 5 and _id(link[0]):
            yield _Link(_id(link[0]), _id(link[1]), _whole(link[2]), _id(link[3]), _whole(link[4]))


def _widgets(kind: str, raw: dict[str, Any]) -> list[str]:
    """The names that a node's list of widget values belongs to."""
    if kind in SIGNATURES:
        return list(SIGNATURES[kind].widgets)
    slots = [slot for slot in _dicts(raw.get("inputs")) if _dict(slot.get("widget"))]
    names = [name for slot in slots for name in _with_control(str(slot["widget"].get("name")), slot)]
    return names or ["value", CONTROL]


def _with_control(name: str, slot: dict[str, Any]) -> list[str]:
    return [name, CONTROL] if slot.get("type") == "INT" else [name]


def _host_widgets(definition: dict[str, Any]) -> list[str]:
    """The same for a subgraph's node: its inputs that lead to an inner widget, in order."""
    ends = {(link.origin, link.slot): link for link in _links(definition)}
    nodes = {_id(node.get("id")): _dicts(node.get("inputs")) for node in _dicts(definition.get("nodes"))}
    names = []
    for place, slot in enumerate(_dicts(definition.get("inputs"))):
        link = ends.get((INPUT_NODE, place))
        inside = nodes.get(link.target, []) if link else []
        target = inside[link.target_slot] if link and 0 <= link.target_slot < len(inside) else {}
        if _dict(target.get("widget")) or _type(slot.get("type")) in WIDGET_TYPES:
            names += _with_control(str(slot.get("name")), slot)
    return names


def _values(raw: dict[str, Any], names: list[str]) -> dict[str, object]:
    """A node's widget values by name, in whichever form they are saved."""
    saved, named = raw.get("widgets_values"), _dict(raw.get("widgets_values_named"))
    values: dict[str, object] = {}
    if isinstance(saved, dict):
        values = dict(saved)
    elif isinstance(saved, list):
        places = iter(names)
        for value in saved:
            name = next(places, None)
            if name == CONTROL and not (isinstance(value, str) and value in CONTROL_WORDS):
                name = next(places, None)  # saved without that widget
            if name is None:
                break
            if name != CONTROL and value is not None:
                values[name] = value
    return {**values, **named}


def _proxies(host: Node, raw: dict[str, Any]) -> dict[str, dict[str, object]]:
    """Values that `proxyWidgets` of a subgraph's node sets: on its own inputs ("-1"), or on inner widgets.

    They follow the order of the node's saved values, not of its inputs; so values read by input are dropped.
    """
    proxies = _dict(raw.get("properties")).get("proxyWidgets")
    saved = raw.get("widgets_values")
    promoted: dict[str, dict[str, object]] = {}
    if not isinstance(proxies, list) or not proxies or not isinstance(saved, list):
        return promoted
    outside = dict(_dict(raw.get("widgets_values_named")))
    for proxy, value in zip(proxies, saved, strict=False):
        if isinstance(proxy, list) and len(proxy) >= 2 and value is not None:
            if _id(proxy[0]) == "-1":
                outside[str(proxy[1])] = value
            else:
                promoted.setdefault(_id(proxy[0]), {})[str(proxy[1])] = value
    host.values = outside
    return promoted


def _alike(old: object, new: object) -> bool:
    """Whether a value may replace another: a misaligned saved list must not put a text where a number was."""
    kinds = (bool, int | float, str)
    return old is None or any(isinstance(old, kind) and isinstance(new, kind) for kind in kinds)


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _dicts(value: object) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _id(value: object) -> str:
    return str(value) if isinstance(value, str | int) else ""


def _type(value: object) -> str:
    return value if isinstance(value, str) else "COMBO" if isinstance(value, list) else "*" if value == 0 else ""


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
