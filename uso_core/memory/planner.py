"""Decides where each group of a model lies while an image is made, from numbers alone, before anything is loaded.

Every way to place the model is a candidate; candidates are tried in order of speed (bytes streamed per step, then bytes
moved per new prompt), and the first that fits is the plan. So more memory never gives a slower plan, and no driver has
to spill. No torch.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, product

from uso_core.errors import MemoryShortage
from uso_core.memory.plan import EMBEDDED, ON_DEMAND, STAYS, STREAMS, MemoryPlan, Placement
from uso_core.memory.sizes import GB, PIXELS_PER_TOKEN, Sizes
from uso_core.messages import Bytes, Message, message

STREAMED_SLOTS, ON_DEMAND_SLOTS = 3, 2  # slots for the blocks (two copies ahead); for T5, SigLIP and the modulation

SMALL_BYTES = GB  # smaller models are never split up: the embedded one
RESERVE_BYTES, RESERVE_PART = 1_400_000_000, 16  # left free: at least this, and a sixteenth; fragments, the desktop
HOST_WASTE_PART = 14  # of weights resting in pinned RAM, whose pieces are never quite full (`memory/pinned.py`)
RAM_RESERVE_BYTES = 2 * GB  # the interpreter with its libraries, and the rest of the machine
TEXT_TOKENS, STYLE_TOKENS = 512, 192
VAE = ("vae_encoder", "vae_decoder")  # come and go together

# Ways that are worse than streaming this many bytes of blocks per step: T5 in fp8 departs from the original, a mapped
# file is read again for every new prompt. Tiles compute their overlaps twice, in the time of so many bytes over PCIe.
T5_FP8_HANDICAP, MAPPED_HANDICAP, TILES_COST = GB // 2, GB, 2 * GB

RUNGS = (8, 12, 16, 24, 32, 40, 48, 80)  # cards by their nominal size, GiB


@dataclass(frozen=True)
class Machine:
    """What there is to plan for. On "mps" memory is shared: the device's figures bound what it may take of the RAM."""

    device: str  # "cuda", "mps" or "cpu"
    name: str
    free_ram_bytes: int
    free_vram_bytes: int = 0
    total_vram_bytes: int = 0
    multiplies_fp8: bool = False
    multiplies_bfloat16: bool = True
    obstacle: str = ""  # what stops blocks from being compiled here


@dataclass(frozen=True)
class PlanOptions:
    """What the user and the chosen model ask for; sizes in pixels, the largest to fit without a new plan."""

    fp8: bool = False
    offload: bool = False
    vram_limit_bytes: int | None = None
    compile: bool | None = None
    width: int = 1024
    height: int = 1024
    content_size: int = 512
    styles: int = 2
    steps: int = 25

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def tokens(self) -> int:
        """Text, style, target and (square) content tokens of one step."""
        images = (self.pixels + self.content_size**2) // PIXELS_PER_TOKEN**2
        return images + TEXT_TOKENS + self.styles * STYLE_TOKENS


def plan(machine: Machine, sizes: Sizes, options: PlanOptions) -> MemoryPlan:
    """Returns the fastest placement of the model that fits.

    Raises `MemoryShortage` with the minimum needed, what is free and what to do.
    """
    budget = budget_of(machine, options)
    lowest: MemoryPlan | None = None  # on the device
    lightest: MemoryPlan | None = None  # in RAM, of those that fit the device
    for candidate in candidates(machine, sizes, options, budget):
        if candidate.peak_bytes <= budget:
            if machine.device != "cuda" or _ram(candidate) <= machine.free_ram_bytes:
                return _with_cpu_kernels(candidate, sizes) if machine.device == "cpu" else candidate
            if lightest is None or candidate.host_bytes < lightest.host_bytes:
                lightest = candidate
        elif lowest is None or candidate.peak_bytes < lowest.peak_bytes:
            lowest = candidate
    if lightest is not None:
        raise _ram_shortage(lightest, machine, options)
    assert lowest is not None  # there is always one way, however large
    raise _device_shortage(lowest, machine, options)


def compiles(machine: Machine, sizes: Sizes, options: PlanOptions) -> bool:
    """Whether blocks should be compiled if possible: as asked, else on an NVIDIA GPU.

    The embedded model makes its images faster than it compiles.
    """
    if options.compile is not None:
        return options.compile
    return machine.device == "cuda" and sizes.total() > SMALL_BYTES


def budget_of(machine: Machine, options: PlanOptions) -> int:
    """Device bytes that a plan may use: what is free or allowed, less the reserve; never below 0."""
    if machine.device == "cpu":
        return max(machine.free_ram_bytes - RAM_RESERVE_BYTES, 0)
    free = _free(machine)
    if options.vram_limit_bytes is not None:
        free = min(free, options.vram_limit_bytes)
    return max(free - reserve(free), 0)


def _free(machine: Machine) -> int:
    """Free bytes where the model is computed; on an Apple GPU no more than the free RAM."""
    if machine.device == "cuda":
        return machine.free_vram_bytes
    return min(machine.free_vram_bytes or machine.free_ram_bytes, machine.free_ram_bytes)


def reserve(free: int) -> int:
    """Bytes of this much free memory that a plan leaves alone."""
    return max(RESERVE_BYTES, free // RESERVE_PART)


def candidates(machine: Machine, sizes: Sizes, options: PlanOptions, budget: int) -> Iterator[MemoryPlan]:
    """Every way to place the model, fastest first (with offload: lowest peak first)."""
    small = sizes.total() <= SMALL_BYTES
    fp8 = options.fp8 and not small and machine.device != "mps"
    together = small or machine.device != "cuda"
    blocks = len(sizes.counts.blocks)
    held = (0, *accumulate(sizes.blocks(fp8)))
    counts = [count for count in range(blocks, -1, -1) if count == 0 or held[count] <= budget]

    def kind(t5_fp8: bool, pinned: bool) -> Iterator[MemoryPlan]:
        """Candidates of one kind; within it, fewer resident blocks are always slower, so few need to be built."""
        for resident in (blocks,) if together else counts:
            ways = _ways(t5_fp8, pinned, together, options.offload)
            built = [_build(machine, sizes, options, budget, fp8, way, resident) for way in ways]
            yield from sorted(built, key=lambda each: each.order)

    kinds = [(False, True), *([(True, True)] if fp8 else []), *([] if together else [(False, False)])]
    yield from heapq.merge(*(kind(*each) for each in kinds), key=lambda each: each.order)


@dataclass(frozen=True)
class Way:
    """One combination of choices."""

    t5_fp8: bool
    t5: str
    modulation: str
    light: str
    tiled: bool
    pinned: bool


def _ways(t5_fp8: bool, pinned: bool, together: bool, offload: bool) -> Iterator[Way]:
    heavy = (STAYS,) if together else (STREAMS,) if offload else (STAYS, STREAMS)
    light = (STAYS,) if together else (ON_DEMAND,) if offload else (STAYS, ON_DEMAND)
    for t5, modulation, small, tiled in product(heavy, heavy, light, (False, True)):
        yield Way(t5_fp8, t5, modulation, small, tiled, pinned)


def _build(
    machine: Machine, sizes: Sizes, options: PlanOptions, budget: int, fp8: bool, way: Way, resident: int
) -> MemoryPlan:
    """Builds the plan of one way in numbers: where each group lies, the peak of each stage, what it moves."""
    placements = _placements(sizes, fp8, way, resident)
    by_group = {placement.group: placement for placement in placements}
    stays = sum(each.device_bytes for each in placements if each.where == STAYS or each.group == "blocks")
    stages = _stages(sizes, options, fp8, way, by_group, stays)
    block_sizes = sizes.blocks(fp8)
    streamed = sum(block_sizes[resident:])
    waiting = sum(each.bytes for each in placements if each.where != STAYS and each.group != "blocks")
    locked = streamed + (waiting if way.pinned else 0)
    handicap = T5_FP8_HANDICAP * way.t5_fp8 + MAPPED_HANDICAP * (not way.pinned)
    cost, peak = waiting + TILES_COST * way.tiled, max(stages.values())
    lowest_first = options.offload and way.t5 != STAYS  # if nothing can leave, offload changes nothing
    order = (streamed + handicap, *((peak, cost) if lowest_first else (cost, peak)))
    compiled = compiles(machine, sizes, options) and not machine.obstacle
    on_demand = sum(by_group[half].device_bytes for half in VAE) if way.light != STAYS else 0
    return MemoryPlan(
        device=machine.device,
        tier=_tier(machine, sizes, fp8, peak),
        fp8=fp8,
        t5_fp8=way.t5_fp8,
        placements=placements,
        resident_blocks=resident,
        blocks=len(block_sizes),
        slots=min(STREAMED_SLOTS, len(block_sizes) - resident),
        tiled_decode=way.tiled,
        compile=compiled,
        pinned=way.pinned,
        host_bytes=locked + locked // HOST_WASTE_PART,
        budget_bytes=budget,
        stages=stages,
        order=order,
        notes=tuple(_notes(machine, sizes, options, fp8, way, streamed)),
        dtype="bf16" if sizes.dtype_bytes == 2 else "float32",
        decode_bytes=(stays + on_demand, -(-sizes.decode(options.pixels, False) // options.pixels)),
    )


def _placements(sizes: Sizes, fp8: bool, way: Way, resident: int) -> tuple[Placement, ...]:
    def place(group: str, where: str, pieces: tuple[int, ...], whole: int = 0) -> Placement:
        """`whole` is on the device while the group is used, however its pieces come."""
        size = sum(pieces) + whole
        in_slots = sum(sorted(pieces)[-ON_DEMAND_SLOTS:]) + whole
        return Placement(group, where, size, in_slots if where == STREAMS else size)

    blocks = sizes.blocks(fp8)
    slots = min(STREAMED_SLOTS, len(blocks) - resident) * max(blocks[resident:], default=0)
    where = STREAMS if resident < len(blocks) else STAYS
    return (
        Placement("blocks", where, sum(blocks), sum(blocks[:resident]) + slots),
        place("modulation", way.modulation, sizes.modulation),
        place("ends", STAYS, (sizes.ends,)),
        place("t5", way.t5, sizes.t5_blocks(way.t5_fp8), sizes.t5_rest),
        place("siglip", STREAMS if way.light == ON_DEMAND else STAYS, sizes.siglip_layers, sizes.siglip_rest),
        *(place(group, way.light, (size,)) for group, size in sizes.light.items()),
    )


def _stages(
    sizes: Sizes, options: PlanOptions, fp8: bool, way: Way, groups: dict[str, Placement], stays: int
) -> dict[str, int]:
    """Maximum device bytes in each stage: what stays, what is in use, and the activations."""

    def turn(*names: str) -> int:
        return stays + sum(groups[name].device_bytes for name in names if groups[name].where != STAYS)

    table = sizes.modulation_table(options.steps)
    small = max(turn("clip"), turn("siglip", "projector")) + sizes.encoder(groups["siglip"].bytes)
    return {
        "text": turn("t5") + sizes.encoder(groups["t5"].bytes) + sizes.workspace,
        "images": max(small, turn(*VAE) + sizes.encode(options.content_size**2)) + sizes.workspace,
        "modulation": turn("modulation") + table + sizes.workspace,
        "steps": stays + table + sizes.step(options.tokens, fp8) + sizes.workspace,
        "decoding": turn(*VAE) + sizes.decode(options.pixels, way.tiled) + sizes.workspace,
    }


def _with_cpu_kernels(candidate: MemoryPlan, sizes: Sizes) -> MemoryPlan:
    """The same plan with the CPU kernels' copies of the transformer's weights, if they fit and can be used."""
    copies = sum(sizes.blocks(False)) + sum(sizes.modulation)
    if candidate.fp8 or candidate.compile or candidate.peak_bytes + copies > candidate.budget_bytes:
        return candidate
    return replace(
        candidate,
        cpu_kernels=True,
        placements=(*candidate.placements, Placement("cpu_kernels", STAYS, copies, copies)),
        stages={stage: size + copies for stage, size in candidate.stages.items()},
        decode_bytes=(candidate.decode_bytes[0] + copies, candidate.decode_bytes[1]),
    )


def _ram(candidate: MemoryPlan) -> int:
    """RAM that a candidate takes in addition to the GPU."""
    return candidate.host_bytes + RAM_RESERVE_BYTES if candidate.host_bytes else 0


def _ram_shortage(lightest: MemoryPlan, machine: Machine, options: PlanOptions) -> MemoryShortage:
    needed, free = Bytes(_ram(lightest)), Bytes(machine.free_ram_bytes)
    remedies = _remedies(lightest, machine, options)
    return MemoryShortage("ram_shortage", hint="memory_shortage", needed=needed, free=free, remedies=remedies)


def _device_shortage(lowest: MemoryPlan, machine: Machine, options: PlanOptions) -> MemoryShortage:
    """Names the limit that binds: the one that was set, or what is free."""
    free = _free(machine)
    limit = options.vram_limit_bytes if machine.device != "cpu" else None
    limited = limit is not None and limit <= free
    size = limit if limit is not None and limited else free
    kept = RAM_RESERVE_BYTES if machine.device == "cpu" else reserve(size)
    return MemoryShortage(
        "memory_shortage",
        needed=Bytes(lowest.peak_bytes),
        where=message("where_gpu_memory" if machine.device == "cuda" else "where_memory"),
        stage=message(f"stage_{lowest.peak_stage}"),
        limit=message("limit_set" if limited else "limit_free", size=Bytes(size)),
        kept=Bytes(kept),
        remedies=_remedies(lowest, machine, options, limited),
    )


def _remedies(
    candidate: MemoryPlan, machine: Machine, options: PlanOptions, limited: bool = False
) -> tuple[Message, ...]:
    """Remedies for a shortage, one sentence each."""
    large = candidate.tier != EMBEDDED
    keys = ["vram_limit"] if limited else []
    if large and not options.fp8 and machine.device != "mps":
        keys.append("fp8")
    elif large and candidate.dtype == "float32":
        keys.append("bfloat16")
    keys += ["programs", "tiny" if large else "smaller"]
    return tuple(message(f"remedy_{key}") for key in keys)


def _tier(machine: Machine, sizes: Sizes, fp8: bool, peak: int) -> str:
    """The smallest card that holds the plan, or the device used instead of a card."""
    if sizes.total() <= SMALL_BYTES:
        return EMBEDDED
    if machine.device != "cuda":
        return {"cpu": "CPU", "mps": "Apple GPU"}[machine.device]
    for rung in RUNGS:
        total = rung * 2**30
        if peak <= total - reserve(total):
            return f"{rung} GB fast" if fp8 and rung == 24 else f"{rung} GB"
    return f"Over {RUNGS[-1]} GB"


def _notes(
    machine: Machine, sizes: Sizes, options: PlanOptions, fp8: bool, way: Way, streamed: int
) -> Iterator[Message]:
    """What the user should know besides the plan, one sentence each."""
    large = sizes.total() > SMALL_BYTES
    if large and not machine.multiplies_bfloat16:
        yield message("plan_note_no_bfloat16", gpu=machine.name)
    if options.fp8 and not fp8 and large:
        yield message("plan_note_no_fp8")
    if fp8 and machine.device == "cuda" and not machine.multiplies_fp8:
        yield message("plan_note_fp8_is_slow", gpu=machine.name)
    if streamed and not fp8:
        yield message("plan_note_streamed", size=Bytes(streamed))
    if compiles(machine, sizes, options) and machine.obstacle:
        yield message("plan_note_not_compiled", obstacle=machine.obstacle)
    if not way.pinned:
        yield message("plan_note_from_disk")
