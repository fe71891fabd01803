"""Builds a pipeline from a model's files: plans memory, reads every part, checks that they fit, places them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from uso_core.catalog import fused_files
from uso_core.catalog.models import Model
from uso_core.cpu.accelerate import accelerate
from uso_core.errors import MemoryShortage, SettingsError, WeightsError
from uso_core.events import Loading
from uso_core.loaders import build, encoders, fused_cache
from uso_core.loaders.convert import finished
from uso_core.memory.machine import cpu_flags, fast_bfloat16, look_at, obstacle_to_compiling, threads
from uso_core.memory.placement import place
from uso_core.memory.planner import MemoryPlan, PlanOptions, compiles, plan
from uso_core.memory.sizes import GB, Sizes, counts_of
from uso_core.messages import message
from uso_core.model.attention import by_speed
from uso_core.model.pipeline import USOPipeline
from uso_core.quantization.fp8 import use_fp8
from uso_core.quantization.matrices import T5_MATRICES
from uso_core.runtime.loras import Added, files
from uso_core.settings import Settings, keep_compiled

Reading = Generator[Loading, None, tuple[USOPipeline, MemoryPlan]]


def assemble(
    paths: dict[str, Path], settings: Settings, model: Model, parts: dict[str, Any] | None = None, added: Added = ()
) -> tuple[USOPipeline, MemoryPlan]:
    """`load` without progress."""
    return finished(load(paths, settings, model, parts, added))


def load(
    paths: dict[str, Path], settings: Settings, model: Model, parts: dict[str, Any] | None = None, added: Added = ()
) -> Reading:
    """Builds the pipeline from each role's files, on its device, and returns it with the plan used.

    `added` are LoRAs beside USO's, fused in this order. Yields its progress; whoever stops iterating ends it. `parts`
    keeps what has been read, by role, so that a stopped loading resumes where it was. Raises `MemoryShortage` before
    anything is read if the model does not fit, `WeightsError` for files that are not what they should be.
    """
    parts = {} if parts is None else parts
    device = choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # for this thread, which computes: streams and events belong to its device
    torch.set_num_threads(min(torch.get_num_threads(), threads()))
    yield Loading(0.0, message("loading_planning"))
    memory = plan_memory(paths, settings, model, device, dtype)
    yield from read(paths, settings, memory, dtype, parts, added)
    check_fit(parts, paths)
    yield Loading(1.0, message("loading_placing", device=str(device)))
    (clip, clip_tokenizer), (t5, t5_tokenizer) = parts["clip"], parts["t5"]
    siglip, processor = parts["siglip"]
    pipeline = USOPipeline(
        parts["transformer"], parts["vae"], clip, clip_tokenizer, t5, t5_tokenizer, siglip, processor,
        parts["projector"], build.build_scheduler(), build.text_tokens(paths["transformer"]),
        build.preview_factors(paths["vae"]), build.reference_columns(paths["transformer"]),
    )  # fmt: skip
    modules = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    offloader = place(modules, memory, device)
    pipeline.offloader = offloader if memory.moves else None
    pipeline.untiled_pixels = memory.untiled_pixels
    tokens = PlanOptions(width=model.size, height=model.size).tokens
    if device.type == "cpu":
        accelerate(pipeline, tokens, memory.cpu_kernels)
    if device.type == "cuda" and torch.cuda.is_initialized():  # else it is emulated: nothing there can be timed
        config = pipeline.transformer.config
        shape = (1, config.num_attention_heads, tokens, config.attention_head_dim)
        pipeline.sdpa_backends = by_speed(shape, dtype, device)
    if memory.compile:
        yield Loading(1.0, message("loading_compiling"))
        pipeline.warm_up(model.size, model.size, model.content_size)
    return pipeline, memory


def plan_memory(
    paths: dict[str, Path], settings: Settings, model: Model, device: torch.device, dtype: torch.dtype
) -> MemoryPlan:
    """Decides where each part will lie, from the files' headers alone.

    Raises `MemoryShortage`, `WeightsError`, or `SettingsError` if compiling was requested but is not possible.
    """
    described = {
        "transformer": build.empty_transformer(paths["transformer"]),
        "vae": build.empty_vae(paths["vae"]),
        "projector": build.build_projector(paths["projector"], torch.float32),
        **encoders.empty_encoders(paths["t5"], paths["clip"], paths["siglip"]),
    }
    options = PlanOptions(
        fp8=model.quantize == "fp8",
        offload=settings.offload,
        vram_limit_bytes=None if settings.vram_limit is None else round(settings.vram_limit * GB),
        compile={"auto": None, "on": True, "off": False}[settings.compile],
        width=model.size,
        height=model.size,
        content_size=model.content_size,
        steps=model.steps,
    )
    machine, sizes = look_at(device), Sizes(counts_of(described), dtype.itemsize)
    if compiles(machine, sizes, options):
        keep_compiled(settings)
        machine = replace(machine, obstacle=obstacle_to_compiling(device, dtype))
    if machine.obstacle and options.compile:
        raise SettingsError("cannot_compile", obstacle=machine.obstacle)
    try:
        return plan(machine, sizes, options)
    except MemoryShortage as error:
        if device.type == "cpu" and overlooks_gpu():
            raise MemoryShortage(error.key, hint="gpu_build", **error.values) from None
        raise


def read(
    paths: dict[str, Path],
    settings: Settings,
    memory: MemoryPlan,
    dtype: torch.dtype,
    parts: dict[str, Any],
    added: Added = (),
) -> Iterator[Loading]:
    """Reads into `parts` each role that it lacks."""
    large = _bytes(paths["transformer"]) >= fused_cache.WORTH_KEEPING
    cache = fused_files.folder_in(settings.weights_folder) if large and settings.fused_cache else None

    def t5() -> Any:
        encoder, tokenizer = encoders.build_t5(paths["t5"], dtype, paths.get("t5_tokenizer"))
        if memory.t5_fp8:
            use_fp8(encoder, T5_MATRICES)
        return encoder, tokenizer

    readers: dict[str, Callable[[], Generator[float, None, Any]]] = {
        "projector": lambda: _at_once(lambda: build.build_projector(paths["projector"], torch.float32)),
        "vae": lambda: build.load_vae(paths["vae"], dtype),
        "clip": lambda: _at_once(lambda: encoders.build_clip(paths["clip"], dtype, paths.get("clip_tokenizer"))),
        "siglip": lambda: _at_once(lambda: encoders.build_siglip(paths["siglip"], torch.float32)),
        "transformer": lambda: build.load_transformer(
            paths["transformer"], paths["lora"], dtype, memory.fp8, cache, files(added)
        ),
        "t5": lambda: _at_once(t5),
    }
    sizes = {role: _bytes(paths[role]) for role in readers}
    total, done = sum(sizes.values()), 0
    for role, reader in readers.items():
        if role not in parts:
            reading = reader()
            while True:
                try:
                    fraction = next(reading)
                except StopIteration as end:
                    parts[role] = end.value
                    break
                said = message("loading_reading", role=role, percent=round(100 * fraction))
                yield Loading((done + fraction * sizes[role]) / total, said)
        done += sizes[role]


def _at_once(make: Callable[[], Any]) -> Generator[float, None, Any]:
    """A part that a library reads in one go."""
    yield 0.0
    return make()


def check_fit(parts: dict[str, Any], paths: dict[str, Path]) -> None:
    """Raises `WeightsError` naming two files if one does not feed the other: parts of different models."""
    transformer, projector = parts["transformer"].config, parts["projector"].config
    (clip, _), (t5, _), (siglip, processor) = parts["clip"], parts["t5"], parts["siglip"]
    width = transformer.num_attention_heads * transformer.attention_head_dim
    vision_tokens = (siglip.config.image_size // siglip.config.patch_size) ** 2
    for one, other, what, given, needed in (
        ("t5", "transformer", "measure_text_width", t5.config.d_model, transformer.joint_attention_dim),
        ("clip", "transformer", "measure_pooled_width", clip.config.hidden_size, transformer.pooled_projection_dim),
        (
            "vae",
            "transformer",
            "measure_token_channels",
            parts["vae"].config.latent_channels * 4,
            transformer.in_channels,
        ),
        ("projector", "transformer", "measure_width", projector.width, width),
        ("siglip", "projector", "measure_vision_width", siglip.config.hidden_size, projector.vision_width),
        ("siglip", "projector", "measure_vision_tokens", vision_tokens, projector.tokens_in),
        ("siglip", "siglip", "measure_image_side", processor.size["height"], siglip.config.image_size),
    ):
        if given != needed:
            raise WeightsError(
                "parts_misfit",
                hint="same_model",
                path=paths[one],
                what=message(what),
                given=given,
                other=paths[other],
                needed=needed,
            )
    layers = siglip.config.num_hidden_layers
    if not all(-layers - 1 <= depth <= layers for depth in projector.depths):
        raise WeightsError(
            "siglip_depths",
            hint="same_model",
            siglip=paths["siglip"],
            layers=layers,
            projector=paths["projector"],
            depths=list(projector.depths),
        )


def choose_device(name: str) -> torch.device:
    """The named device, or for "auto" the best available; raises `SettingsError` if it is not available."""
    if name == "auto":
        found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(found)
    hint = "devices"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SettingsError("no_such_device", hint=hint, name=name) from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        hint = "gpu_build" if overlooks_gpu() else hint
        raise SettingsError("device_missing", hint=hint, name=name, count=count)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise SettingsError("no_apple_gpu", hint=hint)
    if device.type not in ("cpu", "cuda", "mps"):
        raise SettingsError("device_unsupported", hint=hint, name=name)
    return device


def overlooks_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU, according to its driver's tool, that this build of PyTorch cannot use."""
    return torch.version.cuda is None and torch.version.hip is None and shutil.which("nvidia-smi") is not None


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The named dtype, or for "auto" bfloat16 if it is fast: on NVIDIA GPUs, and CPUs that multiply it."""
    if name == "auto":
        fast = device.type == "cuda" or (device.type == "cpu" and fast_bfloat16(cpu_flags()))
        return torch.bfloat16 if fast else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def _bytes(path: Path) -> int:
    """Bytes of a file, or of the weights in a folder; at least 1."""
    files = path.glob("*.safetensors") if path.is_dir() else [path]
    return max(sum(file.stat().st_size for file in files), 1)
