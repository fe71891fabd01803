"""Pinned (page-locked) memory, from which a GPU copies at full speed and beside its other work.

PyTorch takes each page-locked tensor's bytes rounded up to a power of two: 537 MB for a block of T5 that has 386. So it
is asked for a few large pieces of such sizes here, and those are filled.
"""

from __future__ import annotations

import logging

import torch

log = logging.getLogger(__name__)

ALIGNMENT = 256  # bytes: what the fastest kernels ask of a tensor's address
PIECE_BYTES = 2**30
SMALLEST_PIECE_BYTES = 2**20


class PinnedMemory:
    """Copies of tensors in page-locked memory, in the order in which they come; without a GPU in ordinary memory.

    `expected_bytes` is about what will come, so that the last piece is no larger than it needs to be. Where the system
    refuses to lock a piece, this and all others are ordinary memory, from which copies are slower.
    """

    def __init__(self, device: torch.device, expected_bytes: int = 0, piece_bytes: int = PIECE_BYTES) -> None:
        self._locks = device.type == "cuda"
        self._left, self._piece_bytes = expected_bytes, piece_bytes
        self._piece = torch.empty(0, dtype=torch.uint8)
        self._used = 0  # bytes of the piece
        self.bytes = 0  # of all pieces

    def keep(self, data: torch.Tensor) -> torch.Tensor:
        """A copy of a tensor, laid out as it is. The next one follows at a multiple of `ALIGNMENT`, if it fits."""
        begin = -(-self._used // ALIGNMENT) * ALIGNMENT
        if begin + data.nbytes > self._piece.nbytes:
            begin, self._piece = 0, self._take(data.nbytes)
        self._used, self._left = begin + data.nbytes, self._left - data.nbytes
        flat = self._piece[begin : self._used].view(data.dtype)
        strides = torch.empty_like(data, device="meta").stride()
        return flat.as_strided(data.shape, strides, flat.storage_offset()).copy_(data)

    def _take(self, size: int) -> torch.Tensor:
        """A new piece for so many bytes at least, and for what is still expected if that is less than a whole one."""
        wanted = max(size, min(self._left, self._piece_bytes), 1)
        rounded = max(1 << (wanted - 1).bit_length(), min(SMALLEST_PIECE_BYTES, self._piece_bytes))
        self.bytes += rounded
        try:
            return self._empty(rounded, self._locks)
        except RuntimeError as error:  # the system's limit on locked memory
            first = str(error).split("\n")[0]
            log.warning("Host memory cannot be page-locked (%s): copies to the GPU will be slower.", first)
            self._locks = False
            return self._empty(rounded, False)

    def _empty(self, size: int, locked: bool) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=locked)


def empty_cache() -> None:
    """Gives page-locked memory that no tensor uses any more back to the system; PyTorch would keep it for later.

    Only where there is a GPU. `torch.accelerator.empty_host_cache` is public, but PyTorch has it since 2.12 alone.
    """
    torch._C._host_emptyCache()
