"""Linear layers with fp8 weights: quantized by optimum-quanto, multiplied by us.

quanto's own linear is never used: on NVIDIA GPUs it would call a Marlin kernel that drops the bias (0.2.7) and is
compiled on first use. Letters: M rows of the activation, K inputs, N outputs.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

log = logging.getLogger(__name__)

FP8_CAPABILITY = (8, 9)  # the first NVIDIA generation that multiplies fp8 (Ada)
FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max  # 448
SMALLEST_SCALE = torch.finfo(torch.float32).tiny  # a row of zeros has no scale of its own
ELEMENTS_AT_ONCE = 2**20  # quantized together: fits in a CPU's cache
FP8_ALIGNMENT = 16  # the fp8 product needs inputs and outputs in multiples of this
_INTEGERS = {"weight": torch.int8, "scale": torch.int32}  # as wide as the buffers' own dtypes


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """quanto's qfloat8 of a matrix (N, K): its data in float8_e4m3fn (N, K) and its scale in float32 (N, 1).

    `data * scale` restores the matrix, each number within 1/16 of itself or, near zero, 1/1024 of its row's scale.
    Rows are independent: doing some at a time takes little extra memory and gives the same numbers.
    """
    from optimum.quanto import AbsmaxOptimizer, qfloat8, quantize_weight

    data = torch.empty(weight.shape, dtype=FP8, device=weight.device)
    scale = torch.empty(len(weight), 1, dtype=torch.float32, device=weight.device)
    rows = max(ELEMENTS_AT_ONCE // max(weight.shape[1], 1), 1)
    for some in (slice(start, start + rows) for start in range(0, len(weight), rows)):
        part = weight[some].float()
        pair = part if len(part) > 1 else part.expand(2, -1)  # quanto treats a lone row as a tensor with one scale
        steps = AbsmaxOptimizer()(pair, qtype=qfloat8, axis=0).clamp_min(SMALLEST_SCALE)
        quantized = quantize_weight(pair, qtype=qfloat8, axis=0, scale=steps, optimized=False)
        data[some], scale[some] = quantized._data[: len(part)], steps[: len(part)]
    return data, scale


class Float8Linear(nn.Module):
    """A linear layer with its weight in fp8, in the buffers `weight` (N, K) and `scale` (N, 1).

    Being buffers, they leave a model's dtype that of its parameters, and changing the dtype does not affect them.
    """

    weight: torch.Tensor
    scale: torch.Tensor
    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True, device: Any = None, dtype: Any = None):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("weight", torch.empty(out_features, in_features, device=device, dtype=FP8))
        self.register_buffer("scale", torch.empty(out_features, 1, device=device, dtype=torch.float32))
        empty = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", empty)

    @classmethod
    def of(cls, linear: nn.Linear) -> Float8Linear:
        """The quantized layer; a layer on the meta device gives one that is also still without weights."""
        weight, bias = linear.weight, linear.bias
        made = cls(linear.in_features, linear.out_features, False, "meta", weight.dtype)
        made.bias = bias
        if not weight.is_meta:
            made.weight, made.scale = quantize(weight.detach())
        return made

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., K) -> (..., N), in the dtype of `x`."""
        fits = not (self.in_features % FP8_ALIGNMENT or self.out_features % FP8_ALIGNMENT)
        way = fp8_way(x.device) if fits and x.dtype == torch.bfloat16 else None
        if way is None:
            return dequantized_product(x, self.weight, self.scale, self.bias)
        return fp8_product(x, self.weight, self.scale, self.bias, way)

    def dequantized(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weight that the layer represents (N, K)."""
        return (self.weight.float() * self.scale).to(dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Float8Linear:
        """Moves and copies like any module, but as integers: `.to(dtype)` converts every floating buffer."""
        kept = {name: getattr(self, name).dtype for name in _INTEGERS}
        try:
            for name, integers in _INTEGERS.items():
                self._buffers[name] = getattr(self, name).view(integers)
            return super()._apply(fn, recurse)
        finally:
            for name, dtype in kept.items():
                self._buffers[name] = getattr(self, name).view(dtype)


ROW_WISE = "row-wise"  # the product takes a scale for each row and each output
AFTERWARDS = "afterwards"  # it takes no scale; its result is scaled
WAYS = (ROW_WISE, AFTERWARDS)  # faster one first


@torch.compiler.assume_constant_result
def fp8_way(device: torch.device) -> str | None:
    """How a device multiplies e4m3fn matrices with this build of PyTorch: the first of `WAYS` that works, or None.

    Found by trying, once, since a GPU's generation does not tell: PyTorch's row-wise product is not built for Windows,
    nor for every GPU with fp8 (pytorch issues 192707 and 194606), and AMD's GPUs use another fp8. CPUs cannot.
    """
    if device.type != "cuda":
        return None
    return _first_way(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache  # run while the model is placed: a compiler that asks must not start computing
def _first_way(index: int) -> str | None:
    device = torch.device("cuda", index)
    if torch.version.hip is not None or torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        return None
    return next((way for way in WAYS if multiplies(device, way)), None)


def multiplies(device: torch.device, way: str) -> bool:
    """Whether a small fp8 product works this way and is correct."""
    x, weight = (torch.linspace(-3, 2, rows * 32, device=device).view(rows, 32) for rows in (48, 16))
    scale = weight.abs().amax(1, keepdim=True) / FP8_MAX
    bias = torch.linspace(-5, 5, 16, device=device)
    expected = F.linear(x, weight, bias)
    try:
        product = fp8_product(x.bfloat16(), (weight / scale).to(FP8), scale, bias, way)
        return bool((product - expected).norm() < 0.05 * expected.norm())
    except RuntimeError as error:
        log.info("%s does not multiply fp8 %s: %s", device, way, str(error).split("\n")[0])
        return False


def fp8_product(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, way: str = ROW_WISE
) -> torch.Tensor:
    """The linear layer as a product of fp8 matrices, each row of the activation quantized by its own largest value.

    Differs from `dequantized_product` by about 2.6 % of the norm for random activations, since they are rounded to a
    3-bit mantissa. `way` is one of `WAYS`; the second also rounds the result to bfloat16.
    """
    rows = x.reshape(-1, x.shape[-1]).contiguous()  # (M, K), row-major as the product needs it
    x_scale = (rows.abs().amax(-1, keepdim=True).float() / FP8_MAX).clamp_min(SMALLEST_SCALE)  # (M, 1)
    x_data = (rows / x_scale).clamp_(-FP8_MAX, FP8_MAX).to(FP8)  # via float32, in place: it is the largest tensor
    multiply = functools.partial(torch._scaled_mm, x_data, weight.t(), out_dtype=x.dtype, use_fast_accum=True)
    if way == ROW_WISE:
        offset = None if bias is None else bias.to(x.dtype)
        product = multiply(scale_a=x_scale, scale_b=scale.t(), bias=offset)
    else:
        one = torch.ones((), device=x.device)
        product = multiply(scale_a=one, scale_b=one).float().mul_(x_scale).mul_(scale.t())  # (M, N)
        product = (product if bias is None else product.add_(bias)).to(x.dtype)
    return product.reshape(*x.shape[:-1], weight.shape[0])


def dequantized_product(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """The linear layer in the dtype of `x`, bfloat16 or float32: both hold e4m3fn exactly, and the scale comes last.

    So a dequantized weight is never rounded again. float16 would overflow before the scale is applied.
    """
    product = F.linear(x, widened(weight, x)) * scale.squeeze(1)  # float32 (..., N)
    return (product if bias is None else product.add_(bias)).to(x.dtype)


@torch.library.custom_op("uso::widened", mutates_args=(), schema="(Tensor weight, Tensor like) -> Tensor")
def widened(weight: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """An fp8 matrix in the dtype of `like`.

    A custom operator, so that a compiler leaves it to PyTorch: Triton has no e4m3fn on the GPUs that need this
    (pytorch issue 167082).
    """
    return weight.to(like.dtype)


@widened.register_fake
def _(weight: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return weight.new_empty(weight.shape, dtype=like.dtype)


def use_fp8(model: nn.Module, names: re.Pattern[str]) -> list[str]:
    """Replaces each `nn.Linear` whose full name matches by a `Float8Linear`; returns their names.

    In an empty (meta) model the new layers have no weights yet; in a filled one they are quantized one at a time, each
    original being freed before the next.
    """
    found = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and names.fullmatch(name)]
    for name in found:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        model.set_submodule(name, Float8Linear.of(linear).train(linear.training))
        del linear
    return found


def fp8_layers(model: nn.Module) -> dict[str, Float8Linear]:
    """A model's fp8 layers by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Float8Linear)}
