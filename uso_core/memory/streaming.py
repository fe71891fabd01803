"""Blocks that do not all fit on the device: the first stay, the others' weights pass through a few slots.

While one block computes, the next one's weights are copied on a side stream, out of page-locked memory, and nothing
is copied back. The order is the same in every step, so the copies go on across steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from uso_core.memory.residency import pinned

ALIGNMENT = 256  # bytes: what the fastest kernels ask of a tensor's address


class BlockStream:
    """Iterates over blocks, each with its weights on `device` while it is the current one.

    The first `resident` blocks are left as they are: whoever made this places them. `copies` counts the blocks that
    were brought. Parameters in `held` are left alone (adaLN layers, which bring their own).
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        device: torch.device,
        resident: int,
        slots: int = 2,
        held: Sequence[nn.Module] = (),
    ) -> None:
        if slots < 2:
            raise ValueError("one slot cannot be filled while it is used: at least 2 are needed")
        self.blocks = list(blocks)
        self.resident = min(resident, len(self.blocks))
        self.copies = 0
        kept = {id(tensor) for module in held for tensor in (*module.parameters(), *module.buffers())}
        self._parcels = {
            index: Parcel(self.blocks[index], kept, device) for index in range(self.resident, len(self.blocks))
        }
        largest = max((parcel.host.nbytes for parcel in self._parcels.values()), default=0)
        count = min(slots, len(self._parcels))
        self._slots = [Slot(largest, device) for _ in range(count)]
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._order = sorted(self._parcels)

    def __len__(self) -> int:
        return len(self.blocks)

    def __iter__(self) -> Iterator[nn.Module]:
        self._fetch(0)
        place = 0
        for index, block in enumerate(self.blocks):
            if index < self.resident:
                yield block
                continue
            slot = next(slot for slot in self._slots if slot.holds == index)
            slot.wait_until_filled()
            self._parcels[index].unpack(slot.memory)
            yield block
            slot.used()
            place += 1
            self._fetch(place)

    def _fetch(self, place: int) -> None:
        """Starts copying what is used next, from this place in the order of the streamed blocks on, cyclically.

        Called where no slot is in use: between two blocks, and at the beginning, when an earlier iteration may have
        been broken off with its kernels still running.
        """
        order, count = self._order, len(self._slots)
        wanted = {order[(place + ahead) % len(order)] for ahead in range(count)}
        held = {slot.holds for slot in self._slots}
        for index in sorted(wanted - held):
            slot = next(slot for slot in self._slots if slot.holds not in wanted)
            if self._side is not None and place == 0:
                self._side.wait_stream(torch.cuda.current_stream(self._side.device))
            slot.fill(index, self._parcels[index].host, self._side)
            self.copies += 1


class Parcel:
    """One block's weights, one after another in one buffer on the host."""

    def __init__(self, block: nn.Module, kept: set[int], device: torch.device) -> None:
        tensors = [each for each in (*block.parameters(), *block.buffers()) if id(each) not in kept]
        self._spans: list[tuple[torch.Tensor, int, torch.Tensor]] = []  # parameter, first byte, its host view
        end = 0
        for tensor in tensors:
            end = -(-end // ALIGNMENT) * ALIGNMENT + tensor.nbytes
        self.host = pinned(torch.empty(end, dtype=torch.uint8), device)
        begin = 0
        for tensor in tensors:
            begin = -(-begin // ALIGNMENT) * ALIGNMENT
            view = _view(self.host, begin, tensor)
            view.copy_(tensor.data)
            tensor.data = view
            self._spans.append((tensor, begin, view))
            begin += tensor.nbytes

    def unpack(self, memory: torch.Tensor) -> None:
        """Points the parameters at a slot's memory."""
        for tensor, begin, view in self._spans:
            tensor.data = _view(memory, begin, view)


class Slot:
    """Memory on the device for one block, and when it may be filled and read."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.memory = torch.empty(size, dtype=torch.uint8, device=device)
        self.holds: int | None = None
        self._filled: torch.cuda.Event | None = None
        self._used: torch.cuda.Event | None = None

    def fill(self, index: int, host: torch.Tensor, side: torch.cuda.Stream | None) -> None:
        """Copies a block's weights in, behind what still reads the ones before."""
        self.holds = index
        if side is None:
            self.memory[: host.nbytes].copy_(host)
            return
        if self._used is not None:
            side.wait_event(self._used)
        with torch.cuda.stream(side):
            self.memory[: host.nbytes].copy_(host, non_blocking=True)
            self._filled = torch.cuda.Event()
            self._filled.record(side)

    def wait_until_filled(self) -> None:
        """Holds the computation, not the caller, until the copy is there."""
        if self._filled is not None:
            torch.cuda.current_stream().wait_event(self._filled)

    def used(self) -> None:
        """The computation that reads this slot has been submitted; what comes next may overwrite it after."""
        if self._filled is not None:
            self._used = torch.cuda.Event()
            self._used.record()


def _view(memory: torch.Tensor, begin: int, like: torch.Tensor) -> torch.Tensor:
    return memory[begin : begin + like.nbytes].view(like.dtype).view(like.shape)
