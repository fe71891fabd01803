"""Turns an untrusted workflow into a flat graph.

Reads both of ComfyUI's formats: the frontend's (version 0.4 with links as lists, 1.0 with links as objects, subgraphs
in either) and the API's ({id: {class_type, inputs}}). Nothing is trusted: a value of the wrong type counts as absent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from uso_core.comfy import group_nodes
from uso_core.comfy.computed import HELD
from uso_core.comfy.graph import BYPASSED, MUTED, Graph, Node, Origin
from uso_core.comfy.nodes import BROADCASTS, CONTROL_WORDS, PICKY_BROADCASTS, SIGNATURES, WIDGET_TYPES, Input
from uso_core.errors import RequestError

MAX_TEXT_CHARACTERS = 10 * 2**20
MAX_PARTS = 200_000  # inputs, values and links of all nodes, with subgraphs expanded
MAX_DEPTH = 24  # nested subgraphs
MAX_NAME_CHARACTERS = 255
IMAGE_NAME, IMAGE_SHA256 = "uso_image", "uso_sha256"  # our own export's words about an image that it names
SHA256 = re.compile("[0-9a-f]{64}")
MAX_WRAPPINGS, MAX_RUNS = 6, 50
WRAPPINGS = ("prompt", "output", "workflow", "extra_data", "extra_pnginfo", "queue_running", "queue_pending", "history")
INPUT_NODE, OUTPUT_NODE = "-10", "-20"  # a subgraph's own input and output nodes


def workflow_in_png_text(info: Mapping[str, Any]) -> str | None:
    """The workflow in a PNG's text as PIL returns it, for `import_workflow`; None if there is none.

    `prompt` (API) is what ran and comes first, then `workflow`, what stood on the canvas.
    """
    texts = {key: info[key] for key in ("prompt", "workflow") if _is_object(info.get(key))}
    return json.dumps(texts) if len(texts) > 1 else next(iter(texts.values()), None)


def workflow_in_exif(values: Iterable[object]) -> str | None:
    """The same from the texts of an image's EXIF tags, which ComfyUI writes into WebP files as "prompt:{...}"."""
    pairs = (value.partition(":") for value in values if isinstance(value, str))
    return workflow_in_png_text({key.strip().lower(): text for key, _, text in pairs})


def graphs(text: str | bytes) -> Iterator[Graph]:
    """The graphs in a workflow's text, likeliest first: what ran before what stood on the canvas.

    Reads also what ComfyUI's /prompt takes and /history gives, of several runs the last. Raises `RequestError` if the text is too large or holds
    no workflow.
    """
    if len(text) > MAX_TEXT_CHARACTERS:
        raise RequestError("workflow_too_large", hint="workflow")
    try:
        data = _loaded(text)
    except ValueError:
        raise RequestError("workflow_no_json", hint="workflow") from None
    some = False
    for found in _workflows(data, 0):
        some = True
        graph = _Frontend(found).graph if isinstance(found.get("nodes"), list) else _api(found)
        graph.runs = sum(isinstance(each, dict) and "prompt" in each for each in _dict(data).values())
        yield graph
    if not some:
        raise RequestError("no_workflow", hint="workflow")


def _loaded(text: str | bytes) -> Any:
    """The JSON in a text, or in bytes of any Unicode encoding; raises `ValueError`."""
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text))
    try:
        return json.loads(text.removeprefix("\ufeff"))
    except RecursionError:
        raise ValueError from None


def _workflows(data: object, depth: int) -> Iterator[dict[str, Any]]:
    """The workflows in parsed JSON: the whole, or in the wrappings that ComfyUI and its PNGs put around them."""
    if depth > MAX_WRAPPINGS:
        return
    if isinstance(data, str) and _is_object(data):
        try:
            data = _loaded(data)
        except ValueError:
            return
    if isinstance(data, list):  # a run as the queue and the history tell it, or several of them
        whole = [part for part in data if isinstance(part, dict)]
        for part in whole or [part for part in reversed(data) if isinstance(part, list)][:MAX_RUNS]:
            yield from _workflows(part, depth + 1)
    if not isinstance(data, dict):
        return
    if isinstance(data.get("nodes"), list) or any(map(_is_api_node, data.values())):
        yield data
        return
    named = [data[key] for key in WRAPPINGS if key in data]
    for part in named or list(data.values())[: -MAX_RUNS - 1 : -1]:  # a history by ids, the last first
        yield from _workflows(part, depth + 1) if named or isinstance(part, dict) else ()


def _is_api_node(node: object) -> bool:
    return isinstance(node, dict) and isinstance(node.get("class_type"), str)


def _is_object(text: object) -> bool:
    return isinstance(text, str) and text.lstrip().startswith("{")


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
        node.hash = _hash(_dict(raw.get("_meta")))
        graph.add(node)
    return graph


def _hash(holder: dict[str, Any]) -> tuple[str, str] | None:
    """The file name and sha256 of an image that our own export noted."""
    name, sha256 = holder.get(IMAGE_NAME), holder.get(IMAGE_SHA256)
    return (name, sha256) if isinstance(name, str) and isinstance(sha256, str) and SHA256.fullmatch(sha256) else None


class _Frontend:
    """Expands a frontend workflow into a flat graph, subgraph by subgraph."""

    def __init__(self, data: dict[str, Any]) -> None:
        subgraphs = _dict(data.get("definitions")).get("subgraphs")
        self.definitions = {_id(one.get("id")): one for one in _dicts(subgraphs)}
        self.groups = _dict(_dict(data.get("extra")).get("groupNodes"))
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
        for raw in _dicts(scope.get("nodes")):
            self._count(raw, "inputs", "outputs", "widgets_values")
            inner_id, kind = _id(raw.get("id")), _id(raw.get("type"))
            definition = self.definitions.get(kind) if kind else None
            group = group_nodes.group_of(kind, self.groups)
            if definition is None and group is not None:
                self._count(group, "nodes", "links", "external")
                definition = group_nodes.opened(group, raw)
                self._opened.append(definition)
            node = Node(prefix + inner_id, kind, _whole(raw.get("mode")))
            for slot in _dicts(raw.get("inputs")):
                name = str(slot.get("name"))
                node.types[name] = _type(slot.get("type"))
                origin = origins.get(_id(slot.get("link")))
                if origin is not None:
                    node.links[name] = origin
            node.outputs = tuple(_type(slot.get("type")) for slot in _dicts(raw.get("outputs")))
            node.hash = _hash(_dict(raw.get("properties")))
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
        widgets = self._hosts[node.kind] if definition is not None else _widgets(node.kind, raw)
        values = _values(raw, widgets, definition is not None or node.kind in SIGNATURES)
        node.values, node.unread = values or {}, values is None

    def _broadcast(self, scope: dict[str, Any], prefix: str) -> None:
        """Links without a wire: as saved in `extra.ue_links` (cg-use-everywhere), else as far as they are certain."""
        raws = {_id(raw.get("id")): raw for raw in _dicts(scope.get("nodes"))}
        saved = _dicts(_dict(scope.get("extra")).get("ue_links"))
        for link in saved:
            slots = _dicts(_dict(raws.get(_id(link.get("downstream")))).get("inputs"))
            place = _whole(link.get("downstream_slot"))
            target = self.graph.nodes.get(prefix + _id(link.get("downstream")))
            if target is not None and 0 <= place < len(slots):
                origin = Origin(prefix + _id(link.get("upstream")), _whole(link.get("upstream_slot")))
                target.links.setdefault(str(slots[place].get("name")), origin)
        here = [self.graph.nodes[prefix + key] for key in raws if prefix + key in self.graph.nodes]
        active = [node for node in here if node.mode not in (MUTED, BYPASSED)]
        if not saved:
            self.graph.broadcasts += [node for node in active if node.kind in PICKY_BROADCASTS]
            self._spread([node for node in active if node.kind in BROADCASTS], here, raws, prefix)

    def _spread(self, broadcasts: list[Node], here: list[Node], raws: dict[str, Any], prefix: str) -> None:
        """Feeds open inputs from broadcasting nodes: by type, or the prompts by name; none that two would feed."""
        offers: dict[str, list[tuple[Node, Origin]]] = {}
        for node in broadcasts:
            for place, name in enumerate(node.types):
                origin = node.links.get(name)
                if origin is None:
                    continue
                raw = raws.get(origin.key.removeprefix(prefix)) or {}
                outputs = _dicts(raw.get("outputs"))
                kind = _type(outputs[origin.slot].get("type")) if 0 <= origin.slot < len(outputs) else ""
                wanted = ("positive", "negative")[place % 2] if node.kind == "Prompts Everywhere" else kind
                offers.setdefault(wanted, []).append((node, origin))
        for wanted, given in offers.items():
            if len(given) > 1:
                self.graph.broadcasts += [node for node, _ in given]
                continue
            for node in here:
                self._count(raws[node.key.removeprefix(prefix)], "inputs")
                for slot in _dicts(raws[node.key.removeprefix(prefix)].get("inputs")):
                    name = str(slot.get("name"))
                    by_name = wanted in ("positive", "negative") and name == wanted
                    open_to = node.kind not in BROADCASTS and not slot.get("widget") and slot.get("link") is None
                    if open_to and (by_name or _type(slot.get("type")) == wanted):
                        node.links.setdefault(name, given[0][1])

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


def _widgets(kind: str, raw: dict[str, Any]) -> list[Input]:
    """The widgets that a node's list of values belongs to, as far as they are known."""
    if kind in SIGNATURES:
        return [one for one in SIGNATURES[kind].inputs if one.widget]
    slots = [slot for slot in _dicts(raw.get("inputs")) if _dict(slot.get("widget"))]
    listed = [_widget(str(slot["widget"].get("name")), _type(slot.get("type"))) for slot in slots]
    return [Input(name, "ANY", control=True) for name in HELD[kind]] if kind in HELD and not listed else listed


def _widget(name: str, kind: str) -> Input:
    return Input(name, kind if kind in WIDGET_TYPES else "ANY", control=kind == "INT")


def _host_widgets(definition: dict[str, Any]) -> list[Input]:
    """The same for a subgraph's node: its inputs that lead to an inner widget, in order."""
    ends = {(link.origin, link.slot): link for link in _links(definition)}
    nodes = {_id(node.get("id")): _dicts(node.get("inputs")) for node in _dicts(definition.get("nodes"))}
    widgets = []
    for place, slot in enumerate(_dicts(definition.get("inputs"))):
        link = ends.get((INPUT_NODE, place))
        inside = nodes.get(link.target, []) if link else []
        target = inside[link.target_slot] if link and 0 <= link.target_slot < len(inside) else {}
        if _dict(target.get("widget")) or _type(slot.get("type")) in WIDGET_TYPES:
            widgets.append(_widget(str(slot.get("name")), _type(slot.get("type"))))
    return widgets


def _values(raw: dict[str, Any], widgets: list[Input], certain: bool) -> dict[str, object] | None:
    """A node's widget values by name, in whichever form they are saved; None if they cannot be matched to names.

    `certain` says that the widgets are all those that the node has, in order.
    """
    saved, named = raw.get("widgets_values"), _dict(raw.get("widgets_values_named"))
    if isinstance(saved, dict):
        return {**saved, **named}
    if not isinstance(saved, list) or not saved or named:
        return named if isinstance(saved, list) or saved is None or named else None
    rows = {f"lora_{number}": row for number, row in enumerate(saved, 1) if isinstance(row, dict) and "lora" in row}
    linked = {str(slot.get("name")) for slot in _dicts(raw.get("inputs")) if slot.get("link") is not None}
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
