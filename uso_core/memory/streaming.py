"""Streams blocks that do not all fit on the device: the first ones stay, the others' weights pass through a few slots.

While one block computes, the next one's weights are copied from pinned memory on a side stream; nothing is copied
back. The order is the same in every pass, so in a loop the copies continue from one pass to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import nn

from uso_core.memory.offload import tensors_of
from uso_core.memory.pinned import ALIGNMENT, PinnedMemory


class BlockStream:
    """Blocks in the order of computation, each with its weights on `device` while it is the current one.

    Iterate over it, or `attach` it to modules that call their blocks themselves. It leaves the first `resident` blocks
    and the tensors in `held` alone: its creator places them. The slots take device memory from the first block of a
    pass until `release`. With `loops` it fetches the first blocks again while the last ones compute. The other blocks'
    weights move to `host`; without one they stay in place, so that weights in a mapped file take no extra memory.
    `copies` counts the blocks that were brought; `carried` are the tensors that it moves.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        device: torch.device,
        resident: int = 0,
        slots: int = 2,
        held: Iterable[torch.Tensor] = (),
        host: PinnedMemory | None = None,
        loops: bool = True,
    ) -> None:
        if slots < 2:
            raise ValueError("one slot cannot be filled while it is used: at least 2 are needed")
        self.blocks = list(blocks)
        self.device = device
        self.resident = min(resident, len(self.blocks))
        self.copies = 0
        self._loops = loops
        kept = {id(tensor) for tensor in held}
        self._parcels = [Parcel(block, kept, host) for block in self.blocks[self.resident :]]
        self._slots: list[Slot] = []
        self._slot_count = min(slots, len(self._parcels))
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None

    @property
    def carried(self) -> list[torch.Tensor]:
        return [tensor for parcel in self._parcels for tensor in parcel.tensors]

    @property
    def device_bytes(self) -> int:
        """Device memory that the slots use now."""
        return sum(slot.memory.nbytes for slot in self._slots)

    def __len__(self) -> int:
        return len(self.blocks)

    def __iter__(self) -> Iterator[nn.Module]:
        for index, block in enumerate(self.blocks):
            self.arrive(index)
            yield block
            self.depart(index)

    def attach(self) -> BlockStream:
        """Brings each block's weights when it is called; the blocks must be called in order."""
        for index, block in enumerate(self.blocks):
            block.register_forward_pre_hook(partial(_call, self.arrive, index))
            block.register_forward_hook(partial(_call, self.depart, index))
        return self

    def arrive(self, index: int) -> None:
        """Puts a block's weights in place; the first block also starts the copies."""
        if index == 0:
            self._fetch(0)
        place = index - self.resident
        if place >= 0:
            slot = next(slot for slot in self._slots if slot.holds == place)
            slot.wait_until_filled()
            self._parcels[place].unpack(slot.memory)

    def depart(self, index: int) -> None:
        """Passes the slot of a submitted block on to the next block that has none."""
        place = index - self.resident
        if place >= 0:
            next(slot for slot in self._slots if slot.holds == place).used()
            self._fetch(place + 1)

    def release(self) -> None:
        """Frees the slots; the weights are on the host again."""
        if self._side is not None and self._slots:  # a copy into what is freed here may still be running
            torch.cuda.current_stream(self.device).wait_stream(self._side)
        for parcel in self._parcels:
            parcel.go_home()
        self._slots.clear()

    def _fetch(self, place: int) -> None:
        """Starts copying what is used next, from this place among the streamed blocks on, cyclically.

        Called only while no slot is in use: between two blocks, and at the start, when an interrupted earlier pass may
        still have kernels running.
        """
        count = len(self._parcels)
        if not self._slots and count:
            largest = max(parcel.nbytes for parcel in self._parcels)
            self._slots = [Slot(largest, self.device) for _ in range(self._slot_count)]
        ahead = range(place, place + self._slot_count)
        wanted = {each % count for each in ahead if self._loops or each < count}
        held = {slot.holds for slot in self._slots}
        for missing in sorted(wanted - held):
            slot = next(slot for slot in self._slots if slot.holds not in wanted)
            if self._side is not None and place == 0:
                self._side.wait_stream(torch.cuda.current_stream(self.device))
            slot.fill(missing, self._parcels[missing], self._side)
            self.copies += 1


def _call(act: Callable[[int], None], index: int, *_: object) -> None:
    act(index)


class Parcel:
    """One block's weights, with a place for each of them in a slot on the device."""

    def __init__(self, block: nn.Module, kept: set[int], host: PinnedMemory | None) -> None:
        self.tensors = [each for each in tensors_of(block) if id(each) not in kept]
        self.nbytes = 0  # in a slot
        self._spans: list[tuple[torch.Tensor, int, torch.Tensor]] = []  # parameter, first byte there, host's weights
        for tensor in self.tensors:
            begin = -(-self.nbytes // ALIGNMENT) * ALIGNMENT
            data = tensor.data.contiguous()
            tensor.data = data if host is None else host.keep(data)
            self._spans.append((tensor, begin, tensor.data))
            self.nbytes = begin + tensor.nbytes
        self._runs = list(_runs([(begin, view) for _, begin, view in self._spans]))

    def copy_to(self, memory: torch.Tensor, non_blocking: bool = False) -> None:
        """Copies all weights into memory; adjacent ones in a single copy."""
        for begin, run in self._runs:
            memory[begin : begin + run.nbytes].copy_(run, non_blocking=non_blocking)

    def unpack(self, memory: torch.Tensor) -> None:
        """Points the parameters at memory filled by `copy_to`."""
        for tensor, begin, view in self._spans:
            tensor.data = _view(memory, begin, view)

    def go_home(self) -> None:
        """Points the parameters at the host's weights."""
        for tensor, _, view in self._spans:
            tensor.data = view


class Slot:
    """Device memory for one block, with the events that say when it may be filled and read."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.memory = torch.empty(size, dtype=torch.uint8, device=device)
        self.holds: int | None = None
        self._filled: torch.cuda.Event | None = None
        self._used: torch.cuda.Event | None = None

    def fill(self, index: int, parcel: Parcel, side: torch.cuda.Stream | None) -> None:
        """Copies a block's weights in, after all reads of the previous ones."""
        self.holds = index
        if side is None:
            parcel.copy_to(self.memory)
            return
        if self._used is not None:
            side.wait_event(self._used)
        with torch.cuda.stream(side):
            parcel.copy_to(self.memory, non_blocking=True)
            self._filled = torch.cuda.Event()
            self._filled.record(side)

    def wait_until_filled(self) -> None:
        """Makes the computation, not the caller, wait until the copy has arrived."""
        if self._filled is not None:
            torch.cuda.current_stream().wait_event(self._filled)

    def used(self) -> None:
        """Marks that the computation reading this slot has been submitted; the next copy waits for it."""
        if self._filled is not None:
            self._used = torch.cuda.Event()
            self._used.record()


def _runs(places: Sequence[tuple[int, torch.Tensor]]) -> Iterator[tuple[int, torch.Tensor]]:
    """(first byte in a slot, bytes to copy there): tensors spaced on the host as in the slot form one run.

    `places` are (first byte in the slot, contiguous tensor), in their order.
    """
    first: tuple[int, torch.Tensor] | None = None  # of the current run
    end = 0  # of that run, in the slot
    for begin, data in places:
        if first is not None and not _together(*first, begin, data):
            yield first[0], _bytes(first[1], end - first[0])
            first = None
        first, end = first or (begin, data), begin + data.nbytes
    if first is not None:
        yield first[0], _bytes(first[1], end - first[0])


def _together(begin: int, data: torch.Tensor, other_begin: int, other: torch.Tensor) -> bool:
    same = data.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
    return same and other.data_ptr() - data.data_ptr() == other_begin - begin


def _bytes(data: torch.Tensor, count: int) -> torch.Tensor:
    """This many bytes of a tensor's storage, starting at its first one."""
    start = data.storage_offset() * data.itemsize
    return torch.empty(0, dtype=torch.uint8).set_(data.untyped_storage(), start, (count,), (1,))


def _view(memory: torch.Tensor, begin: int, like: torch.Tensor) -> torch.Tensor:
    return memory[begin : begin + like.nbytes].view(like.dtype).view(like.shape)
