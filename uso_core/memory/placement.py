"""Carries out a plan: places modules, streams blocks, tiles the decoder, compiles blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from uso_core.memory.offload import Offloader
from uso_core.memory.pinned import PinnedMemory
from uso_core.memory.planner import HOST_WASTE_PART, ON_DEMAND_SLOTS, STAYS, STREAMED_SLOTS, MemoryPlan
from uso_core.memory.sizes import TILE_PIXELS
from uso_core.memory.streaming import BlockStream
from uso_core.model.transformer import Modulation

# The plan's group for each pipeline component that comes and goes; the transformer never leaves as a whole.
GROUPS = {
    "text_encoder": "clip",
    "text_encoder_2": "t5",
    "image_encoder": "siglip",
    "style_projector": "projector",
    "vae": "vae_decoder",
}
LATENT_TILE = TILE_PIXELS // 8
# Compiled versions of a block that a process keeps: first sizes, any sizes, and both with strengths. Further ones run
# uncompiled: slower, but correct.
VARIANTS = 32


def place(modules: Mapping[str, Any], plan: MemoryPlan, device: torch.device) -> Offloader:
    """Places a pipeline's components as planned; the returned offloader brings those that do not stay.

    `modules` are named as in the pipeline: transformer, vae, text_encoder, text_encoder_2, image_encoder,
    style_projector.
    """
    transformer = modules["transformer"]
    modulation = [each for part in transformer.modules() if isinstance(part, Modulation) for each in part.parameters()]
    host = PinnedMemory(device, plan.host_bytes - plan.host_bytes // (HOST_WASTE_PART + 1))
    waiting = host if plan.pinned else None  # for modules on demand; streamed blocks always rest there
    held: list[torch.Tensor] = []
    if plan.where("modulation") != STAYS:
        held += modulation
        if waiting is not None:
            for each in modulation:
                each.data = waiting.keep(each.data)
    if plan.streams_blocks:
        transformer.blocks = BlockStream(
            list(transformer.blocks), device, plan.resident_blocks, STREAMED_SLOTS, modulation, host
        )
        held += transformer.blocks.carried
    on_demand = [name for name, group in GROUPS.items() if plan.where(group) != STAYS]
    streams = {}
    for name in ("text_encoder_2", "image_encoder"):
        if name in on_demand:
            stream = BlockStream(
                list(layers_of(modules[name])), device, slots=ON_DEMAND_SLOTS, host=waiting, loops=False
            ).attach()
            streams[name] = stream
            held += stream.carried

    def on_leave(name: str) -> None:
        if name in streams:
            streams[name].release()

    vae = modules["vae"]
    vae.tile_sample_min_size, vae.tile_latent_min_size = TILE_PIXELS, LATENT_TILE
    if device.type in ("cuda", "cpu"):  # 1.2 to 1.5 times as fast on a CPU; not tried on Apple's GPUs
        vae.to(memory_format=torch.channels_last)
    offloader = Offloader(device, modules, on_demand, held, on_leave, waiting)
    if plan.compile:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
        transformer.compile_repeated_blocks()
    return offloader


def layers_of(encoder: nn.Module) -> nn.ModuleList:
    """An encoder's blocks in the order of computation: its longest list of modules."""
    lists = [part for part in encoder.modules() if isinstance(part, nn.ModuleList)]
    return max(lists, key=len)
