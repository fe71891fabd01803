"""The transformer's step on a CPU: the same numbers up to rounding, with weights reordered by oneDNN.

`nn.Linear` gives float32 products to MKL, which uses AVX512 only on Intel's CPUs, and bfloat16 ones to oneDNN, which
reorders the weight on every call. Here the weights are reordered once, q, k and v are one product, GELU is part of the
product before it or written out, and rotary positions are one multiplication of complex numbers. Half of a small
model's step would otherwise be bookkeeping, so this is written for one sample, without a batch dimension, in as few
operations as possible; the last block computes only what is read of it.
Letters: N tokens (T of text, then S of the target and R of references), H heads, C head size, D width, P one for q and
one for k.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from uso_core.model.step_cache import StepCache
from uso_core.model.transformer import Fixed, USOTransformer2DModel, modulations

TIMESTEPS = 16  # about as many are requested at once
WRITTEN_OUT = 512  # up to this many tokens attention is faster as two products with a softmax between them
Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # q, scaled (H, M, C), k and v (H, N, C)


class Product:
    """x -> x times the weights of one or more linear layers, concatenated, plus their biases.

    The weights are a copy, with `by_onednn` in oneDNN's own layout, chosen for about `rows` rows. With `gelu` the
    result goes through GELU's tanh form.
    """

    def __init__(self, *layers: nn.Linear, rows: int, gelu: bool = False) -> None:
        weight, bias = (torch.cat([getattr(layer, name) for layer in layers]).detach() for name in ("weight", "bias"))
        if by_onednn(weight.dtype):
            reordered = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
            activation: tuple[str, list[float], str] = ("gelu", [], "tanh") if gelu else ("none", [], "")
            multiply = torch.ops.mkldnn._linear_pointwise.default
            self._call = lambda x: multiply(x, reordered, bias, *activation)
        elif gelu:
            self._call = lambda x: gelu_(F.linear(x, weight, bias))
        else:
            self._call = lambda x: F.linear(x, weight, bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out of all layers)."""
        return self._call(x)

    def __deepcopy__(self, memo: dict[int, object]) -> Product:
        return self  # it never changes, and PyTorch cannot copy the layout


def by_onednn(dtype: torch.dtype) -> bool:
    """Whether products use oneDNN here instead of PyTorch's default.

    With only AVX2, MKL is near the CPU's limit in float32 (90 GFLOP/s on a core of an AMD EPYC, where oneDNN reaches
    80), and oneDNN's GELU takes as long as the product before it.
    """
    return dtype != torch.float32 or torch.backends.cpu.get_cpu_capability() != "AVX2"


def gelu_(x: torch.Tensor) -> torch.Tensor:
    """GELU's tanh form in float32, overwriting x: uses the logistic function, whose kernel is four times as fast."""
    slope = 2 * math.sqrt(2 / math.pi)
    inner = torch.addcmul(_number(slope), x, x, value=slope * 0.044715).mul_(x)  # tanh's argument, doubled
    return x.mul_(inner.sigmoid_())


class Attention:
    """What a request's blocks and steps share for attention: positions, and the term added to its logits."""

    def __init__(self, fixed: Fixed) -> None:
        cosines, sines = fixed.rotary  # (N, C), each angle twice since neighbouring channels rotate together
        self.turns = torch.complex(cosines[:, ::2], sines[:, ::2])[:, None, None]  # (N, 1, 1, C / 2)
        bias = fixed.attention.get("attention_mask")  # (1, 1, 1, N)
        self.bias = None if bias is None else bias[0, 0]  # (1, N)

    def attend(self, heads: Heads) -> torch.Tensor:
        """Attention of the M queries: (H, M, C)."""
        query, key, value = heads
        if value.shape[1] > WRITTEN_OUT:
            bias = None if self.bias is None else self.bias[None, None]
            return F.scaled_dot_product_attention(query[None], key[None], value[None], attn_mask=bias, scale=1.0)[0]
        scores = torch.bmm(query, key.mT) if self.bias is None else torch.bmm(query, key.mT) + self.bias
        return torch.bmm(torch.softmax(scores, -1, dtype=torch.float32).to(value.dtype), value)


class Norms:
    """RMS norms of q, of k or of both, with attention's scale folded into q's."""

    def __init__(self, attention: Any, names: str, added: bool = False) -> None:
        norms = [getattr(attention, f"norm_added_{name}" if added else f"norm_{name}") for name in names]
        self.size = norms[0].weight.shape[0]
        scales = [self.size**-0.5 if name == "q" else 1.0 for name in names]
        weights = [norm.weight.detach().float() * scale for norm, scale in zip(norms, scales, strict=True)]
        self.weights = torch.stack(weights)[:, None]  # (P, 1, C)
        self.eps = torch.tensor(norms[0].eps)

    def __call__(self, parts: torch.Tensor, turns: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """A product's result (N, P, H, C), which is overwritten -> normalised and rotated, each (H, N, C)."""
        pairs = parts.float()
        inverse = self.inverse(pairs)
        return turned(pairs.mul_(self.weights).mul_(inverse), turns, parts.dtype)

    def inverse(self, pairs: torch.Tensor) -> torch.Tensor:
        """float32 (N, P, H, C) -> the reciprocal of each root mean square (N, P, H, 1)."""
        norms = torch.linalg.vector_norm(pairs, dim=-1, keepdim=True)
        return torch.addcmul(self.eps, norms, norms, value=1 / self.size).rsqrt_()


class DoubleBlock:
    """`FluxTransformerBlock`: separate weights for text and image, one attention."""

    def __init__(self, block: Any, rows: int) -> None:
        attention = block.attn
        image, text = ([getattr(attention, like.format(n)) for n in "qkv"] for like in ("to_{}", "add_{}_proj"))
        self.image_heads, self.text_heads = Product(*image, rows=rows), Product(*text, rows=rows)
        self.image_norms, self.text_norms = Norms(attention, "qk"), Norms(attention, "qk", added=True)
        self.image_out = Product(attention.to_out[0], rows=rows)
        self.text_out = Product(attention.to_add_out, rows=rows)
        self.image_mlp, self.text_mlp = (
            (Product(net[0].proj, rows=rows, gelu=True), Product(net[2], rows=rows))
            for net in (block.ff.net, block.ff_context.net)
        )

    def __call__(
        self, text: torch.Tensor, image: torch.Tensor, row: torch.Tensor, attention: Attention
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Text (T, D), image (N - T, D) and the block's row of the table (12 D) -> text and image."""
        parts, tokens = row.view(12, -1).unbind(), len(text)
        streams = [self.text_heads(_modulated(text, *parts[6:8])), self.image_heads(_modulated(image, *parts[:2]))]
        joint = torch.cat(streams).view(len(text) + len(image), 3, -1, self.image_norms.size)  # (N, 3, H, C)
        pairs = joint[:, :2].float()  # (N, P, H, C)
        inverse = self.image_norms.inverse(pairs)
        pairs[:tokens].mul_(self.text_norms.weights)
        pairs[tokens:].mul_(self.image_norms.weights)
        query, key = turned(pairs.mul_(inverse), attention.turns, joint.dtype)
        out = attention.attend((query, key, joint[:, 2].transpose(0, 1))).transpose(0, 1).flatten(1)  # (N, D)
        image = torch.addcmul(image, parts[2], self.image_out(out[tokens:]))
        text = torch.addcmul(text, parts[8], self.text_out(out[:tokens]))
        for_image, for_text = _modulated(image, *parts[3:5]), _modulated(text, *parts[9:11])
        image = torch.addcmul(image, parts[5], self.image_mlp[1](self.image_mlp[0](for_image)))
        text = torch.addcmul(text, parts[11], self.text_mlp[1](self.text_mlp[0](for_text)))
        return text, image


class _Single:
    """Shared by both kinds of single blocks: attention runs beside the MLP, and one product takes both results."""

    def __init__(self, block: Any, rows: int) -> None:
        self.mlp, self.product = Product(block.proj_mlp, rows=rows, gelu=True), Product(block.proj_out, rows=rows)

    def out(self, x: torch.Tensor, gate: torch.Tensor, normal: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
        """x and normal (M, D), gate (D), attention's output (H, M, C) -> (M, D)."""
        beside = self.mlp(normal).view(len(x), -1, found.shape[-1])
        joint = torch.cat([found.transpose(0, 1), beside], dim=1).view(len(x), -1)
        return torch.addcmul(x, gate, self.product(joint))


class SingleBlock(_Single):
    """`FluxSingleTransformerBlock`: one stream, attention beside the MLP."""

    def __init__(self, block: Any, rows: int) -> None:
        super().__init__(block, rows)
        self.norms = Norms(block.attn, "qk")
        self.heads = Product(block.attn.to_q, block.attn.to_k, block.attn.to_v, rows=rows)

    def __call__(self, x: torch.Tensor, row: torch.Tensor, attention: Attention) -> torch.Tensor:
        """Text and image (N, D) and the block's row of the table (3 D) -> text and image."""
        shift, scale, gate = row.view(3, -1).unbind()
        normal = _modulated(x, shift, scale)
        joint = self.heads(normal).view(len(x), 3, -1, self.norms.size)  # (N, 3, H, C)
        query, key = self.norms(joint[:, :2], attention.turns)
        return self.out(x, gate, normal, attention.attend((query, key, joint[:, 2].transpose(0, 1))))


class LastBlock(_Single):
    """The last single block: only the target's tokens are read, the others serve only as keys."""

    def __init__(self, block: Any, rows: int) -> None:
        super().__init__(block, rows)
        self.query_norm, self.key_norm = Norms(block.attn, "q"), Norms(block.attn, "k")
        self.queries = Product(block.attn.to_q, rows=rows)
        self.keys = Product(block.attn.to_k, block.attn.to_v, rows=rows)

    def __call__(self, x: torch.Tensor, row: torch.Tensor, attention: Attention, wanted: slice) -> torch.Tensor:
        """Text and image (N, D), the block's row of the table (3 D) and the wanted tokens -> those (M, D)."""
        shift, scale, gate = row.view(3, -1).unbind()
        normal = _modulated(x, shift, scale)
        asking = normal[wanted]
        joint = self.keys(normal).view(len(x), 2, -1, self.key_norm.size)  # (N, 2, H, C)
        (key,) = self.key_norm(joint[:, :1], attention.turns)
        queries = self.queries(asking).view(len(asking), 1, -1, self.key_norm.size)
        (query,) = self.query_norm(queries, attention.turns[wanted])
        return self.out(x[wanted], gate, asking, attention.attend((query, key, joint[:, 1].transpose(0, 1))))


class CpuStep:
    """`USOTransformer2DModel.step` for one sample."""

    def __init__(self, transformer: USOTransformer2DModel, rows: int) -> None:
        *singles, last = transformer.single_transformer_blocks
        self.rows = rows
        self.doubles = [DoubleBlock(block, rows) for block in transformer.transformer_blocks]
        self.singles, self.last = [SingleBlock(block, rows) for block in singles], LastBlock(last, rows)
        self.into, self.out = Product(transformer.x_embedder, rows=rows), Product(transformer.proj_out, rows=rows)
        layers = modulations(transformer)
        self._tables = Product(*itertools.chain(*layers), rows=TIMESTEPS)
        self._columns = [sum(layer.out_features for layer in each) for each in layers]
        self._fixed: Fixed | None = None
        self._attention: Attention | None = None

    def __call__(
        self, latents: torch.Tensor, fixed: Fixed, rows: tuple[torch.Tensor, ...], cache: StepCache | None = None
    ) -> torch.Tensor:
        """Takes and returns the same as `step`."""
        image, text, attention = self.into(latents[0]), fixed.text[0], self.attention(fixed)
        target, tokens = len(image), len(text)
        before = image[None]
        if fixed.references is not None:
            image = torch.cat([image, fixed.references[0]])  # (S + R, D)
        parts = iter(rows)
        for number, block in enumerate(self.doubles):
            text, image = block(text, image, next(parts), attention)
            if number == 0 and cache is not None and cache.hit(image[None, :target], before):
                image = cache.reuse()[0]
                break
        else:
            x = torch.cat([text, image])  # (N, D)
            for single in self.singles:
                x = single(x, next(parts), attention)
            image = self.last(x, next(parts), attention, slice(tokens, tokens + target))
        if cache is not None:
            cache.keep(image[None])
        scale, shift = rows[-1].view(2, -1).unbind()
        return self.out(_modulated(image, shift, scale))[None]  # (1, S, 4C)

    def tables(self, condition: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The layers' part of `USOTransformer2DModel.modulation`, in one product, from (N, D)."""
        return self._tables(condition).split(self._columns, dim=1)

    def attention(self, fixed: Fixed) -> Attention:
        """The request's attention, computed once for all its steps."""
        if self._attention is None or fixed is not self._fixed:
            self._fixed, self._attention = fixed, Attention(fixed)
        return self._attention


def accelerate_transformer(transformer: USOTransformer2DModel, rows: int) -> None:
    """Makes the transformer compute with CPU kernels on copies of its weights; its modules stay unchanged.

    The copies take as many bytes again and do not follow later changes of the weights. `rows` is the usual number of
    tokens. A transformer with products other than plain `nn.Linear` (fp8 ones) stays unchanged.
    """
    if all(_is_plain(block) for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks)):
        transformer.kernels = CpuStep(transformer, rows)


def has_kernels(dtype: torch.dtype) -> bool:
    """Whether this build of PyTorch has kernels for weights of this dtype on this CPU, and they multiply correctly."""
    layer = nn.Linear(48, 32).to(dtype)
    x = torch.linspace(-1, 1, 7 * 48).view(1, 7, 48).to(dtype)
    try:
        reordered = Product(layer, rows=7, gelu=True)(x)
    except (AttributeError, NotImplementedError, RuntimeError):  # without oneDNN, or for a dtype it does not know
        return False
    expected = F.gelu(F.linear(x.float(), layer.weight.float(), layer.bias.float()), approximate="tanh")
    return bool(torch.allclose(reordered.float(), expected, atol=4 * torch.finfo(dtype).eps, rtol=0.02))


def turned(pairs: torch.Tensor, turns: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Rotates q, k or both (N, P, H, C), overwriting them, to their positions (N, 1, 1, C / 2) -> each (H, N, C)."""
    torch.view_as_complex(pairs.view(*pairs.shape[:3], -1, 2)).mul_(turns)
    return pairs.permute(1, 2, 0, 3).to(dtype, memory_format=torch.contiguous_format).unbind()


def _is_plain(block: nn.Module) -> bool:
    """Whether all products after the modulation, whose tables are computed elsewhere, are plain."""
    products = (part for name, part in block.named_modules() if "norm" not in name and hasattr(part, "in_features"))
    return all(type(part) is nn.Linear for part in products)


@functools.cache
def _number(value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A number as a tensor, for additions: a Python number is converted each time, which doubles their time."""
    return torch.tensor(value, dtype=dtype)


def _modulated(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """(N, D); shift and scale are (D)."""
    return torch.layer_norm(x, scale.shape, scale + _number(1.0, scale.dtype), shift, 1e-6)
