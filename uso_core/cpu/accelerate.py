"""Entry point to the CPU kernels: faster forwards of a pipeline's transformer and VAE, and the undo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from uso_core.cpu.transformer import accelerate_transformer, has_kernels
from uso_core.cpu.vae import accelerate_vae


def accelerate_again(pipeline: Any) -> None:
    """Renews the copies that the transformer's kernels have of its weights, if it has any, after these changed."""
    kernels = pipeline.transformer.kernels
    if kernels is not None:
        accelerate_transformer(pipeline.transformer, kernels.rows)


def accelerate(pipeline: Any, tokens: int, transformer: bool = True) -> Callable[[], None]:
    """Makes a pipeline compute with CPU kernels, with the same numbers up to rounding; returns the undo function.

    `tokens` is the usual number per step. The transformer's kernels copy its weights, which takes as many bytes again;
    without `transformer`, or if this build of PyTorch has no kernels for its dtype, it stays unchanged.
    """
    undo_vae = accelerate_vae(pipeline.vae)
    if transformer and has_kernels(pipeline.transformer.dtype):
        accelerate_transformer(pipeline.transformer, tokens)

    def undo() -> None:
        undo_vae()
        pipeline.transformer.kernels = None

    return undo
