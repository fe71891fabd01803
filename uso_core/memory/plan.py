"""A memory plan as a value: where each group of a model lies, in numbers, in one sentence and in a table. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from uso_core.memory.sizes import GB, TILE_PIXELS

STAYS = "stays"  # on the device from loading to the end
ON_DEMAND = "on demand"  # comes to the device whole when its turn is, and leaves; nothing that stays makes room for it
STREAMS = "streams"  # passes through a few slots on the device, piece by piece, as it is computed


@dataclass(frozen=True)
class Placement:
    """Where one group lies: how, its bytes in all, and how many of them are on the device at its turn."""

    group: str
    where: str
    bytes: int
    device_bytes: int


@dataclass(frozen=True)
class MemoryPlan:
    """What goes where. Bytes on the device are estimates, by stage; `order` sorts plans by speed, the fastest first."""

    device: str
    tier: str
    fp8: bool  # the matrices of the transformer's blocks
    t5_fp8: bool
    placements: tuple[Placement, ...]
    resident_blocks: int
    blocks: int
    slots: int  # on the device for the blocks that do not stay; 0 where all stay
    tiled_decode: bool
    compile: bool
    pinned: bool  # groups on demand wait in pinned RAM; else in mapped files. Streamed blocks always wait in RAM
    host_bytes: int  # RAM that waiting takes
    budget_bytes: int
    stages: dict[str, int]
    order: tuple[int, ...]
    notes: tuple[str, ...] = ()
    dtype: str = "bf16"
    cpu_kernels: bool = False  # the blocks compute from copies of their weights in a CPU's own layout
    decode_bytes: tuple[int, int] = (0, 0)  # (resident at decoding, decoder's bytes per pixel untiled)

    @property
    def peak_bytes(self) -> int:
        return max(self.stages.values())

    @property
    def peak_stage(self) -> str:
        return max(self.stages, key=lambda stage: self.stages[stage])

    @property
    def streams_blocks(self) -> bool:
        return self.resident_blocks < self.blocks

    def where(self, group: str) -> str:
        """STAYS, ON_DEMAND or STREAMS for a group: blocks, modulation, ends, t5, clip, siglip, projector, vae_*."""
        return next(placement.where for placement in self.placements if placement.group == group)

    def decodes_in_tiles(self, width: int, height: int) -> bool:
        """Whether an image of this size is decoded in tiles: as planned, and any that would not fit otherwise."""
        resident, per_pixel = self.decode_bytes
        large = resident + per_pixel * width * height > self.budget_bytes
        return width * height > TILE_PIXELS**2 and (self.tiled_decode or large)

    @property
    def sentence(self) -> str:
        """The plan in words: "12 GB: fp8 blocks stay, T5 on demand, decoder in tiles; peak about 10.3 GB." """
        peak = f"peak about {gigabytes(self.peak_bytes)}"
        return f"{self.tier}: {', '.join(self._words())}; {peak}."

    def lines(self) -> list[tuple[str, str, str]]:
        """A table for people: group, where it lies, size."""
        words = {STAYS: "stays on the device", ON_DEMAND: "comes when needed", STREAMS: "passes through in pieces"}
        if self.device != "cuda":
            words[STAYS] = "stays in memory"
        elif not self.pinned:
            words |= {ON_DEMAND: "is read from disk when needed", STREAMS: "is read from disk in pieces"}
        rows = []
        for each in self.placements:
            where = words[each.where]
            if each.group == "blocks" and self.streams_blocks:
                where = f"{self.resident_blocks} of {self.blocks} stay, the others stream in every step"
            rows.append((_title(each.group, self), where, gigabytes(each.bytes)))
        stages = [(f"at most while: {name}", "estimate", gigabytes(size)) for name, size in self.stages.items()]
        if self.device == "cuda":
            stages.append(("RAM for what waits", "pinned", gigabytes(self.host_bytes)))
        return [*rows, *stages]

    def _words(self) -> Iterator[str]:
        if all(placement.where == STAYS for placement in self.placements):
            yield "everything stays in memory" if self.device != "cuda" else "everything stays on the GPU"
            yield f"blocks in {_format(self.fp8, self.dtype)}{' with CPU kernels' if self.cpu_kernels else ''}"
        else:
            kind = _format(self.fp8, self.dtype)
            stay = f"{self.resident_blocks} of {self.blocks} {kind} blocks stay and the others stream"
            yield stay if self.streams_blocks else f"{kind} blocks stay"
            away = [name for name, group in _PARTS.items() if self.where(group) != STAYS]
            if len(away) == len(_PARTS):
                yield "the rest on demand"
            elif away:
                yield f"{' and '.join(away)} on demand"
        if self.t5_fp8:
            yield "T5 in fp8"
        if self.tiled_decode:
            yield "decoder in tiles"
        if not self.pinned:
            yield "what is on demand is read from disk"


_PARTS = {"T5": "t5", "modulation": "modulation", "small encoders": "clip"}  # names in the sentence


def _format(fp8: bool, dtype: str) -> str:
    return "fp8" if fp8 else dtype


def _title(group: str, plan: MemoryPlan) -> str:
    quantized = {"blocks": plan.fp8, "t5": plan.t5_fp8}.get(group)
    titles = {
        "blocks": "transformer blocks",
        "cpu_kernels": "copies of the transformer for CPU kernels",
        "modulation": "transformer modulation",
        "ends": "transformer embedders and output",
        "t5": "T5",
        "clip": "CLIP",
        "siglip": "SigLIP",
        "projector": "style projector",
        "vae_encoder": "VAE encoder",
        "vae_decoder": "VAE decoder",
    }
    return titles[group] if quantized is None else f"{titles[group]}, {_format(quantized, plan.dtype)}"


def gigabytes(size: int) -> str:
    """Bytes for people: "10.3 GB", below a tenth in megabytes."""
    return f"{size / GB:.1f} GB" if size >= GB / 10 else f"{max(round(size / 10**6), 1)} MB"
