"""Reads what a ComfyUI workflow means for the form: backwards from the sampler that reaches an output."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from uso_core.comfy.chains import Reader
from uso_core.comfy.formats import graphs
from uso_core.comfy.graph import BYPASSED, MUTED, Found, Graph, Node
from uso_core.comfy.loras import LoRA
from uso_core.comfy.nodes import LATENTS, QUIET_AFTER_SAMPLING, SAMPLERS, SAVERS
from uso_core.comfy.values import as_number, label, shortened
from uso_core.errors import RequestError
from uso_core.messages import Message


@dataclass(frozen=True)
class ComfyImport:
    """The form's values in a workflow; None where it says nothing. Images are bare file names, never opened.

    `keep_size` is True if the size follows the content image, `fast` if steps are skipped. `loras` are those besides
    USO's, by file name, `lora_folders` the folders that the workflow names before each. `model_file` is the name of the
    transformer or checkpoint. The sha256 of an image, which our own export
    notes, is "" if it is not known; `styles_sha256` has one for each style. Each of `notes` describes something that
    was not read, or has no counterpart here. Values are within the ranges of `request.py`; sizes need not be multiples
    of 16.
    """

    prompt: str | None = None
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    width: int | None = None
    height: int | None = None
    content_size: int | None = None
    content: str | None = None
    styles: tuple[str, ...] = ()
    notes: tuple[Message, ...] = ()
    schedule: str | None = None
    sampler: str | None = None
    images: int | None = None
    keep_size: bool | None = None
    fast: bool | None = None
    loras: tuple[LoRA, ...] = ()
    lora_folders: tuple[str, ...] = ()
    content_sha256: str = ""
    styles_sha256: tuple[str, ...] = ()
    model_file: str | None = None


def import_workflow(text: str | bytes) -> ComfyImport:
    """Reads a workflow in the frontend's or the API's format, bare or as ComfyUI's history and images hold it.

    Bytes may be in any Unicode encoding. Raises `RequestError` if there is no workflow to read.
    """
    refused: RequestError | None = None
    for graph in graphs(text):
        try:
            return _read(graph)
        except RequestError as error:
            refused = refused or error
    assert refused is not None  # `graphs` raises if it has none
    raise refused


def _read(graph: Graph) -> ComfyImport:
    reader = Reader(graph)
    sampler, after, several = _choose(graph)
    if graph.runs > 1:
        reader.note("several_runs", count=graph.runs)
    if several:
        reader.note("several_images")
    first = _first_pass(graph, sampler)
    if first is not sampler:
        reader.note("several_passes")
    model, positive, negative = reader.read_sampling(first)
    reader.read_positive(*positive)
    reader.read_model(*model)
    reader.read_latent(first)
    reader.read_schedule(*model)
    reader.read_negative(*negative)
    for node in after:
        if node.kind not in QUIET_AFTER_SAMPLING:
            reader.note("after_sampling", node=label(node))
    reader.note_gaps()
    return ComfyImport(**reader.found, notes=tuple(reader.notes))


def _is_sampler(node: Node) -> bool:
    inputs = node.links.keys() | node.types.keys()
    prompted = "model" in inputs and not inputs.isdisjoint(("positive", "conditioning"))
    return node.kind in SAMPLERS or (prompted and not inputs.isdisjoint(LATENTS))


def _reach(graph: Graph, ends: Iterable[Node]) -> tuple[list[Node], dict[str, Node | None]]:
    """The samplers behind some nodes, nearest first, and for each node passed the node that it feeds."""
    parents: dict[str, Node | None] = {}
    reached: list[Node] = []
    for end in ends:
        queue = [] if end.key in parents else [end]
        parents.setdefault(end.key, None)
        for node in queue:  # grows during the walk: breadth first
            if _is_sampler(node) and parents[node.key] is not None:
                reached.append(node)
                continue
            for name in LATENTS if _is_sampler(node) else node.links:
                found = graph.feed(node, name)
                if found is not None and found.slot >= 0 and found.node.key not in parents:
                    parents[found.node.key] = node
                    queue.append(found.node)
    return reached, parents


def _choose(graph: Graph) -> tuple[Node, list[Node], bool]:
    """The sampler to read, the nodes between it and its output, and whether other samplers reach outputs too."""
    active = [node for node in graph.nodes.values() if node.mode not in (MUTED, BYPASSED) and node.exits is None]
    feeding = {origin.key for node in graph.nodes.values() for origin in node.links.values()}
    ends = sorted((node for node in active if node.kind in SAVERS), key=lambda node: SAVERS.index(node.kind))
    ends += [node for node in active if node.kind not in SAVERS and node.key not in feeding and not _is_sampler(node)]
    reached, parents = _reach(graph, ends)
    if not reached:
        raise _refusal(graph, active)
    chosen = next((node for node in reached if _uses_uso(graph, node)), reached[0])
    after: list[Node] = []
    step = parents[chosen.key]
    while step is not None and parents[step.key] is not None:  # the output itself says nothing
        after.append(step)
        step = parents[step.key]
    return chosen, after, len(reached) > 1


def _refusal(graph: Graph, active: list[Node]) -> RequestError:
    """Why a workflow without a sampler that can be read is refused."""
    if graph.closed:
        return RequestError("workflow_closed_group", hint="ungroup", name=shortened(graph.closed[0]))
    unknown = {label(node): None for node in active if "sampler" in node.kind.lower() and not _is_sampler(node)}
    unknown.pop("KSamplerSelect", None)
    if unknown:
        return RequestError("workflow_other_sampler", hint="other_sampler", names=", ".join(list(unknown)[:5]))
    return RequestError("workflow_no_sampler", hint="workflow")


def _first_pass(graph: Graph, sampler: Node) -> Node:
    """The sampler that starts from pure noise, if this one refines another's result.

    One that adds all noise anew starts from it itself, whatever its latent held before: of that only the size matters.
    """
    seen = {sampler.key}
    while _refines(graph, sampler):
        before = next((node for node in _reach(graph, [sampler])[0] if node.key not in seen), None)
        if before is None or (_uses_uso(graph, sampler) and not _uses_uso(graph, before)):
            return sampler
        seen.add(before.key)
        sampler = before
    return sampler


def _refines(graph: Graph, sampler: Node) -> bool:
    """Whether a sampler keeps something of its latent: denoises in part, from a later step, or adds no noise."""
    noise = graph.feed(sampler, "noise")
    if noise is not None and noise.node.kind == "DisableNoise":
        return True
    if graph.value(sampler, "add_noise") in ("disable", False):
        return True
    sigmas = list(graph.chain(sampler, "sigmas", "SIGMAS"))
    if not sigmas and not sampler.unread and not {*sampler.values, *sampler.links} & {"steps", "sigmas"}:
        return True  # a sampler that goes on where another stopped
    if any(found.node.kind.startswith("SplitSigmas") and found.slot == 1 for found in sigmas):
        return True
    values = [graph.value(node, "denoise") for node in (sampler, *(found.node for found in sigmas))]
    partial = [isinstance(value, Found) or (as_number(value) not in (None, 1)) for value in values]
    start = graph.value(sampler, "start_at_step")
    return any(partial) or isinstance(start, Found) or bool(as_number(start))


def _uses_uso(graph: Graph, sampler: Node) -> bool:
    guider = graph.feed(sampler, "guider")
    node = guider.node if guider else sampler
    positive = "conditioning" if "conditioning" in node.links else "positive"
    return any(found.node.kind == "USOStyleReference" for found in graph.chain(node, "model", "MODEL")) or any(
        found.node.kind == "ReferenceLatent" for found in graph.chain(node, positive, "CONDITIONING")
    )
