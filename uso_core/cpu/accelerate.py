"""The one door to the CPU kernels: faster forwards of a pipeline's transformer and VAE, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from uso_core.cpu.transformer import accelerate_transformer, has_kernels
from uso_core.cpu.vae import accelerate_vae


def accelerate(pipeline: Any, tokens: int, transformer: bool = True) -> Callable[[], None]:
    """Lets a pipeline compute with CPU kernels, to the same numbers up to rounding; returns what undoes it.

    `tokens` is the usual number of a step. The transformer's kernels take copies of its weights, as many bytes again;
    without `transformer`, or where this build of PyTorch has none for its dtype, it is left as it is.
    """
    undo_vae = accelerate_vae(pipeline.vae)
    if transformer and has_kernels(pipeline.transformer.dtype):
        accelerate_transformer(pipeline.transformer, tokens)

    def undo() -> None:
        undo_vae()
        pipeline.transformer.kernels = None

    return undo
