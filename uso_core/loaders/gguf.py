"""Decodes GGUF's blocks of quantized numbers to float32, by ggml's own library, imported when a file needs it."""

from __future__ import annotations

import math

import numpy as np
import torch


def dequantize(data: torch.Tensor, kind: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor's bytes (uint8) as float32 (shape).

    Raises KeyError for a type unknown to ggml, NotImplementedError for one that its library cannot read, ValueError if
    bytes and shape do not fit.
    """
    import gguf

    blocks = data.numpy().reshape(math.prod(shape[:-1]), -1)
    with np.errstate(all="ignore"):  # the file may be damaged
        return torch.from_numpy(gguf.dequantize(blocks, gguf.GGMLQuantizationType[kind]).reshape(shape))
