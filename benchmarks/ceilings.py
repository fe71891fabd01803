"""The most this machine can do: its matrix rate at the model's shapes, and its copies to the device.

Letters: M rows of the activation, K inputs, N outputs, D the transformer's width.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.timing import Clock
from uso_core.quantization.fp8 import AFTERWARDS, FP8, fp8_way

BATCHES = 5  # the best one counts


def ceilings(
    device: torch.device, dtype: torch.dtype, rows: int, width: int, copy_bytes: int = 2**28, seconds: float = 0.2
) -> dict[str, Any]:
    """TFLOP/s of products of random matrices, in `dtype` and, if the device supports it, row-wise fp8; GB/s of copies.

    `seconds` is how long each batch of calls lasts; the best batch counts.
    """
    clock = Clock(device)
    shapes = {"D to D": (width, width), "D to 4D": (width, 4 * width), "4D to D": (4 * width, width),
              "5D to D": (5 * width, width)}  # fmt: skip
    rates: dict[str, Any] = {}
    kinds: dict[str, Callable[..., Callable[[], Any]]] = {str(dtype).removeprefix("torch."): plain}
    way = fp8_way(device)
    if way is not None:
        kinds["fp8"] = partial(scaled, way)
    for kind, make in kinds.items():
        each = {}
        for name, (inputs, outputs) in shapes.items():
            call = make(rows, inputs, outputs, device, dtype)
            each[name] = round(2 * rows * inputs * outputs / best_seconds(call, clock, seconds) / 1e12, 4)
        rates[kind] = {**each, "best": max(each.values())}
    return {"tflops": rates, "copies": copies(device, clock, copy_bytes, seconds), "rows": rows}


def plain(rows: int, inputs: int, outputs: int, device: torch.device, dtype: torch.dtype) -> Callable[[], Any]:
    x, weight = (torch.randn(size, inputs, device=device, dtype=dtype) for size in (rows, outputs))
    return lambda: torch.nn.functional.linear(x, weight)


def scaled(
    way: str, rows: int, inputs: int, outputs: int, device: torch.device, dtype: torch.dtype
) -> Callable[[], Any]:
    x, weight = (torch.randn(size, inputs, device=device).to(FP8) for size in (rows, outputs))
    of_rows, of_outputs = torch.ones(rows, 1, device=device), torch.ones(1, outputs, device=device)
    if way == AFTERWARDS:
        of_rows = of_outputs = torch.ones((), device=device)
    return lambda: torch._scaled_mm(
        x, weight.t(), scale_a=of_rows, scale_b=of_outputs, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def copies(device: torch.device, clock: Clock, size: int, seconds: float) -> dict[str, float]:
    """GB/s between host and device; without a GPU there is no pinned memory, and these are copies within RAM."""
    there = torch.empty(size, dtype=torch.uint8, device=device)
    pageable = torch.ones(size, dtype=torch.uint8)
    ways: dict[str, Callable[[], Any]] = {
        "pageable to device": lambda: there.copy_(pageable),
        "device to pageable": lambda: pageable.copy_(there),
    }
    if device.type == "cuda":
        locked = torch.ones(size, dtype=torch.uint8).pin_memory()
        ways["pinned to device"] = lambda: there.copy_(locked, non_blocking=True)
    return {name: round(size / best_seconds(call, clock, seconds) / 1e9, 3) for name, call in ways.items()}


def best_seconds(call: Callable[[], Any], clock: Clock, seconds: float) -> float:
    """Seconds of one call, in the best of some batches that last a while."""

    def batch(count: int) -> float:
        clock.wait()
        start = clock.mark()
        for _ in range(count):
            call()
        end = clock.mark()
        clock.wait()
        return clock.between(start, end) / count

    batch(1)
    count = max(int(seconds / max(statistics.median(batch(1) for _ in range(3)), 1e-7)), 1)
    return min(batch(count) for _ in range(BATCHES))
