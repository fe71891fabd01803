"""Caches encodings by their input, so that the same prompt or image is not encoded twice."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from PIL import Image

MAX_BYTES = 64 * 2**20  # at FLUX.1's size a prompt takes 4.2 MB, a style image 1.2 MB, a content image 0.3 MB


class Encodings:
    """Tensors by key, evicted least recently used first; `hits` and `misses` count the lookups."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self.hits = self.misses = 0
        self._kept: OrderedDict[Hashable, tuple[torch.Tensor, ...]] = OrderedDict()

    @property
    def bytes(self) -> int:
        """Bytes kept."""
        return sum(tensor.nbytes for tensors in self._kept.values() for tensor in tensors)

    def get(self, key: Hashable, make: Callable[[], tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
        """Returns the tensors under the key, or makes and keeps them; too large a result is returned but not kept."""
        if key in self._kept:
            self.hits += 1
            self._kept.move_to_end(key)
            return self._kept[key]
        self.misses += 1
        self._kept[key] = made = make()
        while self.bytes > self.max_bytes:
            self._kept.popitem(last=False)
        return made

    def clear(self) -> None:
        """Forgets everything."""
        self._kept.clear()


def image_key(image: Image.Image) -> Hashable:
    """Equal exactly for equal pixels in RGB, which is what the model sees."""
    return image.size, hashlib.sha256(image.convert("RGB").tobytes()).digest()
