"""Fills an empty module: matches names strictly, then reads, fuses, casts or quantizes one tensor at a time.

So no second copy of a model builds up. Loading iterates over the fraction done; whoever stops iterating ends it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from uso_core.catalog.files import FP8, FP8_SCALES, MARKS, Checkpoint, misfit
from uso_core.errors import WeightsError
from uso_core.loaders import keys
from uso_core.loaders.lora import LoRA
from uso_core.loaders.other_lora import OtherLoRA
from uso_core.loaders.tensors import Layout, TensorReader
from uso_core.quantization.fp8 import fp8_layers, quantize

Each = TypeVar("Each")
Filling = Generator[float, None, None]  # fractions done, from 0 to 1
MARKED_FP8 = ("float8_e4m3fn", "float8_e5m2")  # in ComfyUI's marks
Place = tuple[Checkpoint, str]  # a file, and a tensor's name in it


@dataclass(frozen=True)
class Job:
    """One tensor in a file: the parameters that it fills, and what it is to be multiplied by, in any of the files."""

    file: Checkpoint
    name: str
    targets: tuple[str, ...]
    halves_swapped: bool
    scale: Place | None = None


@dataclass(frozen=True)
class Conversion:
    """How tensors in files become the weights of an empty (meta) model: matched, not yet read.

    Weights of fp8 layers are quantized after the LoRA is fused; all others are cast to `dtype`.
    """

    model: nn.Module
    jobs: list[Job]
    dtype: torch.dtype
    lora: LoRA | None
    others: tuple[OtherLoRA, ...] = ()  # in the order in which they are added

    @property
    def quantized(self) -> frozenset[str]:
        """The names of the weights that become fp8."""
        return frozenset(f"{name}.weight" for name in fp8_layers(self.model))

    def layout(self) -> Layout:
        """Name, dtype and shape of every tensor that `tensors` yields."""
        kept = self.quantized | {_scale_of(name) for name in self.quantized}
        return {
            name: (tensor.dtype if name in kept else self.dtype, tuple(tensor.shape))
            for name, tensor in self.model.state_dict().items()
        }

    def tensors(self, only: Collection[str] | None = None) -> Iterator[tuple[float, str, torch.Tensor]]:
        """The weights by their names in the model, each read on request, preceded by the fraction done.

        With `only`, no others are read than those parameters and what is stacked with them in the file.
        """
        shapes = {name: shape for name, (_, shape) in self.layout().items()}
        quantized = self.quantized
        jobs = [job for job in self.jobs if only is None or not set(only).isdisjoint(job.targets)]
        with ExitStack() as stack:
            opened = {path: stack.enter_context(TensorReader(file)) for path, file in files_of(jobs).items()}
            for done, job in enumerate(jobs):
                tensor = _read(job, opened)
                if job.halves_swapped:
                    tensor = torch.cat(tensor.chunk(2)[::-1])
                parts = tensor.split([shapes[target][0] for target in job.targets])
                for target, part in zip(job.targets, parts, strict=True):
                    if only is None or target in only:
                        for name, weight in self._finished(target, part, shapes[target], target in quantized):
                            yield done / len(jobs), name, weight
                            del weight
                del tensor, parts, part  # before the next is read

    def _finished(
        self, target: str, part: torch.Tensor, shape: tuple[int, ...], quantized: bool
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """A weight as the model holds it: LoRAs added, then quantized or cast."""
        for lora in (self.lora, *self.others):
            part = lora.fuse(target, part) if lora is not None else part
        if quantized:
            data, scale = quantize(part.reshape(shape))
            yield target, data
            yield _scale_of(target), scale
        else:
            yield target, part.reshape(shape).to(self.dtype)


def files_of(jobs: Sequence[Job]) -> dict[Path, Checkpoint]:
    """The files that jobs read, by their paths."""
    return {job.file.path: job.file for job in jobs} | {job.scale[0].path: job.scale[0] for job in jobs if job.scale}


def match(
    model: nn.Module,
    files: list[Checkpoint],
    table: tuple[keys.Rename, ...],
    dtype: torch.dtype,
    lora: LoRA | None = None,
    levels: int = 0,
    others: Sequence[tuple[Path, float]] = (),
) -> Conversion:
    """Matches tensors to parameters; raises `WeightsError` unless files, LoRAs and model fit exactly.

    With an empty table the file uses the model's own names. `others` are LoRAs beside USO's with their strengths.
    """
    shapes = shapes_of(model)
    if lora is not None:
        lora.check(shapes)
    added = tuple(OtherLoRA(path, strength, shapes) for path, strength in others)
    return Conversion(model, _match(files, table, shapes, levels), dtype, lora, added)


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of what is read into a model, by name; the scales of fp8 layers are made by quantizing."""
    made = {f"{name}.scale" for name in fp8_layers(model)}
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in made}


def fill(conversion: Conversion) -> Filling:
    """Loads the weights into the empty model, in memory."""
    weights: dict[str, torch.Tensor] = {}
    for fraction, name, tensor in conversion.tensors():
        yield fraction
        weights[name] = tensor
    assign(conversion.model, weights.items())
    yield 1.0


def finished(work: Generator[Any, None, Each]) -> Each:
    """Iterates to the end and returns the iterator's result, without progress."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def assign(model: nn.Module, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Sets all of the model's weights and makes it ready to predict."""
    model.load_state_dict(dict(weights), strict=True, assign=True)
    model.eval().requires_grad_(False)


def _match(
    files: list[Checkpoint], table: tuple[keys.Rename, ...], shapes: dict[str, tuple[int, ...]], levels: int
) -> list[Job]:
    """Matches tensors to parameters; this is where loading is strict."""
    jobs: list[Job] = []
    unknown: list[str] = []
    misshapen: list[str] = []
    filled: set[str] = set()
    scales = {
        name.removesuffix(suffix): (file, name)
        for suffix in FP8_SCALES for file in files for name in file.tensors if name.endswith(suffix)
    }  # fmt: skip
    scaled = {_of_any_block(stem) for stem in scales}
    for file in files:
        check_marks(file)
        for name, info in file.tensors.items():
            if name.endswith((*FP8_SCALES, *MARKS)):
                continue
            found = keys.row_of(name, table) if table else (keys.Rename(name, (name,)), {})
            targets = found[0].target_names(found[1], levels) if found else ()
            if not found or any(target not in shapes for target in targets):
                unknown.append(name)
                continue
            needed = (sum(shapes[target][0] for target in targets), *shapes[targets[0]][1:])
            if info.shape != needed and info.shape != (*needed, 1, 1):  # 1 x 1 convolutions are linear layers here
                misshapen.append(f"{name} is {list(info.shape)}, {list(needed)} is needed")
            filled.update(targets)
            stem = name.removesuffix(".weight")
            if info.dtype in FP8 and stem not in scales and stem != name and _of_any_block(stem) in scaled:
                raise WeightsError("scale_missing", hint="download_again", path=file.path, name=name)
            scale = scales.get(stem) if stem != name else None
            jobs.append(Job(file, name, targets, found[0].halves_swapped, scale))
    missing = sorted({keys.original_name(name, table, levels) for name in shapes if name not in filled})
    if missing or unknown or misshapen:
        raise misfit(files[0].path, "fit_own_tensors", missing, unknown, misshapen)
    return jobs


def _of_any_block(stem: str) -> str:
    """A matrix' name without the numbers of blocks: where one block's has a scale, all blocks' have."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "N", stem)


def _read(job: Job, opened: Mapping[Path, TensorReader]) -> torch.Tensor:
    """One tensor as floating point; fp8 and what is scaled become float32."""
    tensor = opened[job.file.path].read(job.name)
    if job.scale is None:
        return tensor.float() if job.file.tensors[job.name].dtype in FP8 else tensor
    tensor, factor = tensor.float(), opened[job.scale[0].path].read(job.scale[1]).float()
    return tensor * (factor.reshape(-1, *[1] * (tensor.dim() - 1)) if factor.numel() > 1 else factor.reshape(()))


def _scale_of(weight: str) -> str:
    return weight.removesuffix("weight") + "scale"


def check_marks(file: Checkpoint) -> None:
    """Raises `WeightsError` if ComfyUI's mark beside a matrix names a format other than fp8 with one or more scales."""
    marks = [name for name in file.tensors if name.endswith(".comfy_quant")]
    if not marks:
        return
    with TensorReader(file) as opened:
        for name in marks:
            try:
                said = json.loads(opened.text(name))["format"]
            except (ValueError, KeyError, TypeError, RecursionError):
                said = "?"
            if said not in MARKED_FP8:
                raise WeightsError("quantization_foreign", path=file.path, quantization=said)
