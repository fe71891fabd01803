"""A memory plan as a value: where each group of a model lies, as numbers, a sentence and a table. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from uso_core.memory.sizes import TILE_PIXELS
from uso_core.messages import Bytes, Message, message

EMBEDDED = "Embedded model"  # the tier of a small model

STAYS = "stays"  # on the device from loading to the end
ON_DEMAND = "on demand"  # comes to the device whole when used, then leaves; nothing that stays makes room for it
STREAMS = "streams"  # passes through a few slots on the device, piece by piece, while it is computed


@dataclass(frozen=True)
class Placement:
    """Where one group lies, its total bytes, and how many of them are on the device while it is used."""

    group: str
    where: str
    bytes: int
    device_bytes: int


@dataclass(frozen=True)
class MemoryPlan:
    """Where everything goes. Device bytes are estimates per stage; `order` sorts plans by speed, fastest first."""

    device: str
    tier: str
    fp8: bool  # the matrices of the transformer's blocks
    t5_fp8: bool
    placements: tuple[Placement, ...]
    resident_blocks: int
    blocks: int
    slots: int  # on the device, for blocks that do not stay; 0 if all stay
    tiled_decode: bool
    compile: bool
    pinned: bool  # groups on demand rest in pinned RAM, else in mapped files. Streamed blocks always rest in RAM
    host_bytes: int  # RAM for weights that rest off the device
    budget_bytes: int
    stages: dict[str, int]
    order: tuple[int, ...]
    notes: tuple[Message, ...] = ()
    dtype: str = "bf16"
    cpu_kernels: bool = False  # the blocks compute from copies of their weights in a CPU's own layout
    decode_bytes: tuple[int, int] = (0, 0)  # (resident during decoding, decoder's bytes per pixel untiled)

    @property
    def peak_bytes(self) -> int:
        return max(self.stages.values())

    @property
    def peak_stage(self) -> str:
        return max(self.stages, key=lambda stage: self.stages[stage])

    @property
    def moves(self) -> bool:
        """Whether anything moves to and from the device while images are made."""
        return any(placement.where != STAYS for placement in self.placements)

    @property
    def streams_blocks(self) -> bool:
        return self.resident_blocks < self.blocks

    def where(self, group: str) -> str:
        """STAYS, ON_DEMAND or STREAMS for a group: blocks, modulation, ends, t5, clip, siglip, projector, vae_*."""
        return next(placement.where for placement in self.placements if placement.group == group)

    @property
    def untiled_pixels(self) -> int:
        """Images with more pixels are decoded in tiles: as planned, or because they would not fit otherwise."""
        resident, per_pixel = self.decode_bytes
        fitting = (self.budget_bytes - resident) // per_pixel if per_pixel else self.budget_bytes
        return TILE_PIXELS**2 if self.tiled_decode else max(TILE_PIXELS**2, fitting)

    @property
    def summary(self) -> Message:
        """The plan in a sentence: "12 GB: fp8 blocks stay, T5 on demand, decoder in tiles; peak about 10.3 GB." """
        return message("plan_summary", tier=self._tier(), parts=tuple(self._parts()), peak=Bytes(self.peak_bytes))

    def lines(self) -> list[tuple[Message, Message, Bytes]]:
        """A table for people: group, where it lies, size."""
        keys = {STAYS: "place_device", ON_DEMAND: "place_on_demand", STREAMS: "place_streamed"}
        if self.device != "cuda":
            keys[STAYS] = "place_memory"
        elif not self.pinned:
            keys |= {ON_DEMAND: "place_disk", STREAMS: "place_disk_streamed"}
        rows = []
        for each in self.placements:
            where = message(keys[each.where])
            if each.group == "blocks" and self.streams_blocks:
                where = message("place_some_blocks", resident=self.resident_blocks, blocks=self.blocks)
            rows.append((self._title(each.group), where, Bytes(each.bytes)))
        for stage, size in self.stages.items():
            peak = message("plan_peak", stage=message(f"stage_{stage}"))
            rows.append((peak, message("plan_estimate"), Bytes(size)))
        if self.device == "cuda":
            rows.append((message("plan_ram"), message("plan_pinned"), Bytes(self.host_bytes)))
        return rows

    def _tier(self) -> Message:
        names = {EMBEDDED: "tier_embedded", "CPU": "tier_cpu", "Apple GPU": "tier_apple"}
        if self.tier in names:
            return message(names[self.tier])
        card = self.tier.removeprefix("Over ").removesuffix(" fast")
        fast, over = self.tier.endswith(" fast"), self.tier.startswith("Over ")
        return message("tier_fast" if fast else "tier_over" if over else "tier_card", card=card)

    def _parts(self) -> Iterator[Message]:
        kind = _format(self.fp8, self.dtype)
        if not self.moves:
            yield message("plan_all_stay" if self.device != "cuda" else "plan_all_stay_gpu")
            yield message("plan_blocks_kernels" if self.cpu_kernels else "plan_blocks", format=kind)
        else:
            if self.streams_blocks:
                yield message("plan_blocks_stream", resident=self.resident_blocks, blocks=self.blocks, format=kind)
            else:
                yield message("plan_blocks_stay", format=kind)
            away = [group for group in _MOVABLE if self.where(group) != STAYS]
            if len(away) == len(_MOVABLE):
                yield message("plan_rest_on_demand")
            else:
                yield from (message(f"plan_{group}_on_demand") for group in away)
        if self.t5_fp8:
            yield message("plan_t5_fp8")
        if self.tiled_decode:
            yield message("plan_tiles")
        if not self.pinned:
            yield message("plan_from_disk")

    def _title(self, group: str) -> Message:
        quantized = {"blocks": self.fp8, "t5": self.t5_fp8}.get(group)
        title = message(f"group_{group}")
        if quantized is None:
            return title
        return message("group_format", group=title, format=_format(quantized, self.dtype))


_MOVABLE = ("t5", "modulation", "clip")  # groups that the summary names if they are on demand


def _format(fp8: bool, dtype: str) -> str:
    return "fp8" if fp8 else dtype
