"""The measured models: the embedded one with its own weights, and any size with random ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import torch
from torch import nn
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from benchmarks.counts import card, full_counts, full_size
from benchmarks.random_weights import materialize
from benchmarks.reference import ReferencePipeline, WholeModuleMoves
from benchmarks.reference_transformer import ReferenceTransformer, store_fp8
from uso_core.catalog.models import EMBEDDED, EMBEDDED_FILES, get_model
from uso_core.loaders import build, encoders
from uso_core.memory.machine import look_at
from uso_core.memory.offload import Offloader
from uso_core.memory.placement import place
from uso_core.memory.planner import STAYS, Machine, MemoryPlan, PlanOptions, plan
from uso_core.memory.sizes import Sizes
from uso_core.model.pipeline import USOPipeline
from uso_core.quantization.fp8 import use_fp8
from uso_core.quantization.matrices import T5_MATRICES, TRANSFORMER_MATRICES
from uso_core.runtime.load import assemble
from uso_core.settings import ROOT, Settings

PATHS = {role: ROOT / "weights" / EMBEDDED / name for role, name in EMBEDDED_FILES.items()}
# The pipeline's components that are modules, by their weights' role.
ROLES = {
    "transformer": "transformer",
    "vae": "vae",
    "text_encoder": "clip",
    "text_encoder_2": "t5",
    "image_encoder": "siglip",
    "style_projector": "projector",
}
CONTEXT_BYTES = 600_000_000  # of a card's memory that PyTorch's allocator does not count: CUDA itself


@dataclass(frozen=True)
class Shape:
    """A model size, with the image size in pixels and everything that depends on it."""

    name: str
    modules: Callable[[], dict[str, nn.Module]]  # on the meta device, by role
    size: int
    content_size: int
    steps: int
    text_tokens: int
    rank: int  # of the LoRA
    backend: str  # of torch.compile


@dataclass(frozen=True)
class Contender:
    """One way to make images at full size. `against` names the contender it is compared with, if any."""

    name: str
    against: str = ""
    reference: bool = False
    fp8: bool = False
    offload: bool = False
    compile: bool = False
    gibibytes: int | None = None  # of the card whose memory plan and limit apply; None: this one


CONTENDERS = (
    Contender("reference", reference=True),
    Contender("reference fp8", "reference", reference=True, fp8=True),
    Contender("eager", "reference"),
    Contender("compiled", "reference", compile=True),
    Contender("fp8 eager", "reference", fp8=True),
    Contender("fp8 compiled", "reference", fp8=True, compile=True),
    Contender("tier 24 GB", "reference", compile=True, gibibytes=24),
    Contender("tier 24 GB fast", "reference", fp8=True, compile=True, gibibytes=24),
    Contender("tier 16 GB", "reference", fp8=True, compile=True, gibibytes=16),
    Contender("tier 12 GB", "reference", fp8=True, compile=True, gibibytes=12),
    Contender("tier 8 GB", "reference", fp8=True, compile=True, gibibytes=8),
    Contender("reference fp8 offload", reference=True, fp8=True, offload=True),
    Contender("fp8 offload", "reference fp8 offload", fp8=True, offload=True, compile=True),
)


def embedded(dtype: torch.dtype) -> dict[str, USOPipeline]:
    """The embedded model on the CPU, as users run it and in the reference's way; they share all but VAE and blocks."""
    settings = Settings(device="cpu", dtype=str(dtype).removeprefix("torch."))
    ours = assemble(PATHS, settings, get_model(EMBEDDED))[0]
    apart = ReferenceTransformer.from_files(PATHS["transformer"], PATHS["lora"], dtype)
    parts = {**ours.components, "transformer": cast(Any, apart), "vae": build.build_vae(PATHS["vae"], dtype)}
    reference = ReferencePipeline(**parts, **ours.constants)
    modules = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    reference.offloader = Offloader(ours.compute_device, modules)
    return {"reference": reference, "ours": ours}


@cache
def _tokenizers() -> tuple[Any, Any]:
    """The tokenizers of CLIP and T5, from the embedded model."""
    clip, t5 = encoders.build_clip(PATHS["clip"], torch.float32), encoders.build_t5(PATHS["t5"], torch.float32)
    return clip[1], t5[1]


@cache
def _embedded_modules() -> dict[str, nn.Module]:
    parts: dict[str, nn.Module] = {
        "transformer": build.empty_transformer(PATHS["transformer"]).bfloat16(),
        "vae": build.empty_vae(PATHS["vae"]).bfloat16(),
        "projector": build.build_projector(PATHS["projector"], torch.float32).to("meta"),
        **encoders.empty_encoders(PATHS["t5"], PATHS["clip"], PATHS["siglip"]),
    }
    for role in ("t5", "clip"):
        parts[role].bfloat16()
    return parts


FULL = Shape("full size", full_size, 1024, 512, 25, 512, 128, "inductor")
SMALL = Shape("small", _embedded_modules, 64, 64, 8, 32, 8, "eager")


def random_pipeline(contender: Contender, shape: Shape, device: torch.device) -> tuple[USOPipeline, MemoryPlan | None]:
    """A pipeline with random weights, and the plan used to place it if it is ours.

    Raises `MemoryShortage` if no plan fits, and torch's own error if the reference does not fit.
    """
    parts = {role: copy.deepcopy(module) for role, module in shape.modules().items()}
    if contender.reference:
        return _reference(contender, shape, parts, device), None
    memory = _plan(contender, shape, device, len(list(parts["transformer"].blocks)))  # type: ignore[arg-type]
    if memory.fp8:
        use_fp8(parts["transformer"], TRANSFORMER_MATRICES)
    if memory.t5_fp8:
        use_fp8(parts["t5"], T5_MATRICES)
    stays = not memory.streams_blocks and all(each.where == STAYS for each in memory.placements)
    for role, module in parts.items():
        materialize(module, device, device if stays else torch.device("cpu"), seed=len(role))
    pipeline = USOPipeline(*_components(parts, shape))
    pipeline.offloader = place({name: parts[role] for name, role in ROLES.items()}, memory, device)
    pipeline.untiled_pixels = memory.untiled_pixels
    if contender.compile:
        pipeline.transformer.compile_repeated_blocks(fullgraph=True, backend=shape.backend)
    return pipeline, memory


def _reference(
    contender: Contender, shape: Shape, parts: dict[str, nn.Module], device: torch.device
) -> ReferencePipeline:
    ours: Any = parts["transformer"]
    with torch.device("meta"):
        transformer = ReferenceTransformer(dict(ours.config), shape.rank)
    transformer.to(ours.dtype)
    if contender.fp8:
        store_fp8(transformer)
    parts["transformer"] = transformer
    for role, module in parts.items():
        materialize(module, device, torch.device("cpu") if contender.offload else device, seed=len(role))
    pipeline = ReferencePipeline(*_components(parts, shape))
    modules = {name: parts[role] for name, role in ROLES.items()}
    pipeline.offloader = WholeModuleMoves(device, modules) if contender.offload else Offloader(device, modules)  # type: ignore[assignment]
    return pipeline


def _components(parts: dict[str, nn.Module], shape: Shape) -> tuple[Any, ...]:
    """The pipeline's arguments. Tokens are the embedded model's: any numbers below the vocabulary's size will do."""
    vision: Any = parts["siglip"].config
    short, long = _tokenizers()
    side = {"height": vision.image_size, "width": vision.image_size}
    return (
        parts["transformer"], parts["vae"], parts["clip"], short, parts["t5"], long, parts["siglip"],
        SiglipImageProcessorPil(size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3), parts["projector"],
        build.build_scheduler(), shape.text_tokens,
    )  # fmt: skip


def _plan(contender: Contender, shape: Shape, device: torch.device, blocks: int) -> MemoryPlan:
    """The full-size model's plan on the contender's card; a smaller model is placed by the same plan."""
    options = PlanOptions(fp8=contender.fp8, offload=contender.offload, compile=contender.compile)
    made = plan(planned_card(contender, device), Sizes(full_counts()), options)
    resident = blocks
    if made.streams_blocks:
        resident = min(round(made.resident_blocks * blocks / made.blocks), blocks - 1)
    return replace(made, blocks=blocks, resident_blocks=resident, compile=False)  # compiled by the caller


def planned_card(contender: Contender, device: torch.device) -> Machine:
    """The machine that the contender is planned for; without a GPU, a card of 80 GiB is assumed."""
    if device.type != "cuda":
        return card(contender.gibibytes or 80)
    found = look_at(device)
    if contender.gibibytes is None:
        return found
    supposed = card(contender.gibibytes, found.name, found.multiplies_fp8, found.free_ram_bytes)
    return replace(supposed, free_vram_bytes=supposed.free_vram_bytes - CONTEXT_BYTES)
