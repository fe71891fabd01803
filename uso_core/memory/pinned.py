"""Pinned (page-locked) memory, from which a GPU copies at full speed while it does other work.

PyTorch rounds each pinned tensor up to a power of two bytes: 537 MB for a T5 block of 386 MB. So this module requests
a few large pieces of such sizes and fills them.
"""

from __future__ import annotations

import logging

import torch

log = logging.getLogger(__name__)

ALIGNMENT = 256  # bytes: the alignment that the fastest kernels need
PIECE_BYTES = 2**30
SMALLEST_PIECE_BYTES = 2**20


class PinnedMemory:
    """Copies tensors into pinned memory in the order of arrival; without a GPU into ordinary memory.

    `expected_bytes` is about the total, so that the last piece is no larger than needed. If the system refuses to
    lock a piece, this and all later ones are ordinary memory, from which copies are slower.
    """

    def __init__(self, device: torch.device, expected_bytes: int = 0, piece_bytes: int = PIECE_BYTES) -> None:
        self._locks = device.type == "cuda"
        self._left, self._piece_bytes = expected_bytes, piece_bytes
        self._piece = torch.empty(0, dtype=torch.uint8)
        self._used = 0  # bytes used in the current piece
        self.bytes = 0  # of all pieces

    def keep(self, data: torch.Tensor) -> torch.Tensor:
        """Copies a tensor, keeping its layout. The next one follows at a multiple of `ALIGNMENT`, if it fits."""
        begin = -(-self._used // ALIGNMENT) * ALIGNMENT
        if begin + data.nbytes > self._piece.nbytes:
            begin, self._piece = 0, self._take(data.nbytes)
        self._used, self._left = begin + data.nbytes, self._left - data.nbytes
        flat = self._piece[begin : self._used].view(data.dtype)
        strides = torch.empty_like(data, device="meta").stride()
        return flat.as_strided(data.shape, strides, flat.storage_offset()).copy_(data)

    def _take(self, size: int) -> torch.Tensor:
        """Allocates a piece of at least this many bytes, and for all that is still expected if that is less than a
        whole one.
        """
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
    """Returns pinned memory that no tensor uses to the system; PyTorch would keep it for later.

    Does nothing without a GPU. The public `torch.accelerator.empty_host_cache` exists only since PyTorch 2.12.
    """
    torch._C._host_emptyCache()
