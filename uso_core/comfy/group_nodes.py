"""Group nodes, which came before subgraphs: one node on the canvas, its inner nodes in `extra.groupNodes`.

A group becomes the definition of a subgraph. Its inner nodes are numbered; links are [from, output, to, input, ...];
inner inputs and outputs left open are the outer node's, in order. Facts from Comfy-Org/ComfyUI_frontend
(src/extensions/core/groupNode.ts).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uso_core.comfy.parts import dicts

PREFIXES = ("workflow/", "workflow>")  # of the outer node's type
INPUT_NODE, OUTPUT_NODE = -10, -20
Raw = dict[str, Any]


def group_of(kind: str, groups: Mapping[str, Any]) -> Raw | None:
    """The group that a node's type names."""
    name = next((kind[len(prefix) :] for prefix in PREFIXES if kind.startswith(prefix)), None)
    group = groups.get(name) if name is not None else None
    return group if isinstance(group, dict) else None


def opened(group: Raw, outer: Raw) -> Raw | None:
    """The group as a subgraph's definition, with the outer node's values; None if the outer node does not fit it."""
    nodes = [{**node, "id": place} for place, node in enumerate(dicts(group.get("nodes")))]
    for node in nodes:
        node["inputs"] = [{**each, "link": None} for each in dicts(node.get("inputs"))]
        node["outputs"] = dicts(node.get("outputs"))
    links = [link for link in _list(group.get("links")) if _is_link(link, nodes)]
    fed = {(link[2], link[3]) for link in links}
    used = {(link[0], link[1]) for link in links}
    external = {tuple(each[:2]) for each in _list(group.get("external")) if _is_whole(each, 2)}
    entries = [
        (place, slot)
        for place, node in enumerate(nodes)
        for slot, each in enumerate(node["inputs"])
        if (place, slot) not in fed and not each.get("widget")
    ]
    exits = [
        (place, slot)
        for place, node in enumerate(nodes)
        for slot, _ in enumerate(node["outputs"])
        if (place, slot) not in used or (place, slot) in external
    ]
    inputs = [each for each in dicts(outer.get("inputs")) if not each.get("widget")]
    types = [nodes[place]["inputs"][slot].get("type") for place, slot in entries]
    given = [nodes[place]["outputs"][slot].get("type") for place, slot in exits]
    if types != [each.get("type") for each in inputs] or given != [
        each.get("type") for each in dicts(outer.get("outputs"))
    ]:
        return None
    inner = [[number, link[0], link[1], link[2], link[3]] for number, link in enumerate(links)]
    inner += [[len(links) + each, INPUT_NODE, each, *entry] for each, entry in enumerate(entries)]
    inner += [[len(links) + len(entries) + each, *leaving, OUTPUT_NODE, each] for each, leaving in enumerate(exits)]
    for number, _, _, place, slot in inner:
        if place != OUTPUT_NODE:
            nodes[place]["inputs"][slot]["link"] = number
    return {"nodes": _with_values(nodes, outer.get("widgets_values")), "links": inner, "inputs": inputs}


def _with_values(nodes: list[Raw], saved: object) -> list[Raw]:
    """The inner nodes with the outer node's values, which are theirs one after the other; without any if the counts
    differ."""
    values = list(saved) if isinstance(saved, list) else []
    counts = [len(node["widgets_values"]) if isinstance(node.get("widgets_values"), list) else 0 for node in nodes]
    if sum(counts) != len(values):
        return [{**node, "widgets_values": "unknown"} for node in nodes]
    starts = [sum(counts[:place]) for place in range(len(nodes))]
    return [
        {**node, "widgets_values": values[start : start + count]}
        for node, start, count in zip(nodes, starts, counts, strict=True)
    ]


def _is_link(link: object, nodes: list[Raw]) -> bool:
    if not _is_whole(link, 4):
        return False
    origin, _, target, slot = link[:4]  # type: ignore[index]
    return origin < len(nodes) and target < len(nodes) and slot < len(nodes[target]["inputs"])


def _is_whole(values: object, count: int) -> bool:
    """Whether a list begins with so many whole numbers."""
    if not isinstance(values, list) or len(values) < count:
        return False
    return all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in values[:count])


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
