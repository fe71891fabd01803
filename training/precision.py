"""Mixed precision where it pays: bfloat16 on NVIDIA GPUs and on processors that multiply it fast, elsewhere float32."""

from __future__ import annotations

import functools

import torch

from uso_core.runtime.load import choose_dtype


@functools.cache
def fast_dtype(kind: str) -> torch.dtype:
    """What products are computed in on a kind of device ("cpu", "cuda").

    Without bfloat16 instructions that would take five times as long as float32 (the VAE's encoder, AVX2 alone).
    """
    return choose_dtype("auto", torch.device(kind))


def autocast(device: str) -> torch.autocast:
    """The context in which a stage computes; where float32 is as fast it changes nothing."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=fast_dtype(kind) == torch.bfloat16)
