"""Ranks PyTorch's attention kernels by measured speed on this machine; the order differs between GPUs.

They compute the same, up to the rounding of the dtype. On a Hopper GPU cuDNN's kernel is said to be well ahead of
PyTorch's default; on others it is slower or missing.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

CUDNN = SDPBackend.CUDNN_ATTENTION
KERNELS = (SDPBackend.FLASH_ATTENTION, CUDNN, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
ROUNDS = 5


def by_speed(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device, kernels: Sequence[SDPBackend] = KERNELS
) -> list[SDPBackend]:
    """Kernels that take q, k and v of this shape (B, heads, tokens, head size), fastest first, then the others.

    The math kernel is never timed: it takes any input but much memory, so it stays last.
    """
    query, key, value = (torch.randn(shape, dtype=dtype, device=device) for _ in range(3))
    seconds: dict[SDPBackend, float] = {}
    for kernel in kernels:
        if kernel == SDPBackend.MATH:
            continue
        with contextlib.suppress(RuntimeError), warnings.catch_warnings():  # this kernel does not support these tensors
            warnings.simplefilter("ignore")  # PyTorch warns with each reason
            seconds[kernel] = _time(kernel, query, key, value)
    return sorted(kernels, key=lambda kernel: (kernel == SDPBackend.MATH, seconds.get(kernel, float("inf"))))


@contextlib.contextmanager
def sdpa_backends(kernels: Sequence[SDPBackend] | None, biased: bool = False) -> Iterator[None]:
    """Makes attention use the first of these kernels that can; without any, PyTorch chooses.

    `biased` attention adds a term to its logits and skips cuDNN: cuDNN was timed without a bias, and is known to
    refuse shapes only at run time (pytorch issue 140930).
    """
    if not kernels:
        yield
        return
    with sdpa_kernel([each for each in kernels if not biased or each != CUDNN], set_priority=True):
        yield


def _time(kernel: SDPBackend, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> float:
    """The shortest of a few calls, in seconds, after one warm-up call."""
    best = float("inf")
    with sdpa_kernel(kernel):
        for attempt in range(ROUNDS + 1):
            _wait(query.device)
            began = time.perf_counter()
            F.scaled_dot_product_attention(query, key, value)
            _wait(query.device)
            if attempt:
                best = min(best, time.perf_counter() - began)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
