"""Finds the workflows in an untrusted text, and makes flat graphs of them.

They may be in the frontend's format (`canvas.py`) or in the API's ({id: {class_type, inputs}}), bare or as ComfyUI's
history, queue and images hold them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from uso_core.comfy.canvas import Canvas
from uso_core.comfy.graph import Graph, Node, Origin
from uso_core.comfy.image_names import noted_hash
from uso_core.comfy.parts import dict_of, whole_of
from uso_core.errors import RequestError
from uso_core.text_files import decoded, told

MAX_TEXT_CHARACTERS = 10 * 2**20
MAX_WRAPPINGS, MAX_RUNS = 6, 50
WRAPPINGS = ("prompt", "output", "workflow", "extra_data", "extra_pnginfo", "queue_running", "queue_pending", "history")


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

    Reads also what ComfyUI's /prompt takes and /history gives, of several runs the last. Raises `RequestError` if the
    text is too large or holds no workflow.
    """
    if len(text) > MAX_TEXT_CHARACTERS:
        raise RequestError("workflow_too_large", hint="workflow")
    try:
        data = _loaded(text)
    except json.JSONDecodeError as error:
        reason, line, column = told(error)
        raise RequestError("workflow_json_wrong", hint="workflow", line=line, column=column, reason=reason) from None
    except ValueError:
        raise RequestError("workflow_no_json", hint="workflow") from None
    some = False
    for found in _workflows(data, 0):
        some = True
        graph = Canvas(found).graph if isinstance(found.get("nodes"), list) else _api(found)
        graph.runs = sum(isinstance(each, dict) and "prompt" in each for each in dict_of(data).values())
        yield graph
    if not some:
        raise RequestError("no_workflow", hint="workflow")


def _loaded(text: str | bytes) -> Any:
    """The JSON in a text, or in bytes of any Unicode encoding; raises `ValueError`."""
    text = decoded(text) if isinstance(text, bytes) else text.removeprefix("\ufeff")
    try:
        return json.loads(text)
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


def _api(data: dict[str, Any]) -> Graph:
    graph = Graph()
    for key, raw in data.items():
        if not isinstance(raw, dict) or not isinstance(raw.get("class_type"), str):
            continue
        node = Node(str(key), raw["class_type"])
        for name, value in dict_of(raw.get("inputs")).items():
            if isinstance(value, dict) and "__value__" in value:  # how a list that is not a link is written
                value = value["__value__"]
            elif isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int):
                node.types[name] = ""
                node.links[name] = Origin(str(value[0]), whole_of(value[1]))
                continue
            node.values[name] = value
        node.hash = noted_hash(dict_of(raw.get("_meta")))
        graph.add(node)
    return graph
