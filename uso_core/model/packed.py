"""The transformer's blocks on a processor: the same numbers up to rounding, with weights that oneDNN has packed.

`nn.Linear` gives float32 products to MKL, which is slow on processors that Intel did not make, and bfloat16 ones to
oneDNN, which rearranges the weight at every call. Here the weights are rearranged once, q, k and v are one product,
GELU is part of the product before it, and rotary positions are one multiplication of complex numbers. A small model's
step is otherwise half bookkeeping, so each block is one function with as few operations as it takes; the last one
computes what is read of it.
Letters: B batch, N tokens, T text tokens, H heads, C head size, D width, P one for q and one for k.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from uso_core.model.transformer import Fixed, USOTransformer2DModel

WRITTEN_OUT = 512  # tokens up to which attention is faster as two products with a softmax between them
Rotary = tuple[torch.Tensor, torch.Tensor]
Streams = tuple[torch.Tensor, torch.Tensor]


class Product:
    """x -> x times the weights of some linear layers, one behind the other, plus their biases.

    The weights are a copy in oneDNN's own layout, chosen for about `rows` rows. With `gelu` the result goes through
    GELU's tanh form.
    """

    def __init__(self, *layers: nn.Linear, rows: int, gelu: bool = False) -> None:
        weight, bias = (torch.cat([getattr(layer, name) for layer in layers]).detach() for name in ("weight", "bias"))
        self._weight, self._bias = torch.ops.mkldnn._reorder_linear_weight(weight, rows), bias
        self._activation: tuple[str, list[float], str] = ("gelu", [], "tanh") if gelu else ("none", [], "")

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out of all layers)."""
        return torch.ops.mkldnn._linear_pointwise.default(x, self._weight, self._bias, *self._activation)

    def __deepcopy__(self, memo: dict[int, object]) -> Product:
        return self  # nothing changes it, and PyTorch cannot copy the layout


class Turns:
    """The rotary positions of a request as complex numbers, computed once for all blocks and steps."""

    def __init__(self) -> None:
        self._tables: Rotary | None = None
        self._turns = torch.empty(0)

    def __call__(self, tables: Rotary) -> torch.Tensor:
        """Cosines and sines (N, C), each angle twice since neighbouring channels turn together -> (N, 1, 1, C / 2)."""
        if tables is not self._tables:
            self._turns = torch.complex(tables[0][:, ::2], tables[1][:, ::2])[:, None, None]
            self._tables = tables
        return self._turns


class Heads:
    """One stream's way to some of q, k and v: first those with a norm of their own, then the others."""

    def __init__(self, attention: Any, names: str, rows: int, added: bool = False) -> None:
        layers, norms, scales = [], [], []
        for name in names:
            layers.append(getattr(attention, f"add_{name}_proj" if added else f"to_{name}"))
            if name != "v":
                norms.append(getattr(attention, f"norm_added_{name}" if added else f"norm_{name}"))
                scales.append(norms[-1].weight.shape[0] ** -0.5 if name == "q" else 1.0)  # attention's, with q's norm
        self.product = Product(*layers, rows=rows)
        self.parts, self.size = len(layers), norms[0].weight.shape[0]
        weights = [norm.weight.detach().float() * scale for norm, scale in zip(norms, scales, strict=True)]
        self.weights = torch.stack(weights)[:, None]  # (P, 1, C)
        self.eps = torch.tensor(norms[0].eps)

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, N, D) -> the P of q and k, normalised, float32 (B, N, P, H, C), and the others (B, N, 3 - P, H, C)."""
        parts = self.product(x).view(*x.shape[:2], self.parts, -1, self.size)
        normed, others = parts.split((len(self.weights), self.parts - len(self.weights)), dim=2)
        normed = normed.float()
        norms = torch.linalg.vector_norm(normed, dim=-1, keepdim=True)  # (B, N, P, H, 1)
        inverse = torch.addcmul(self.eps, norms, norms, value=1 / self.size).rsqrt_()
        return normed.mul_(self.weights).mul_(inverse), others  # the product's own result: nobody else has it


class DoubleBlock:
    """`FluxTransformerBlock`: text and image with weights of their own, one attention."""

    def __init__(self, block: Any, rows: int, turns: Turns) -> None:
        attention, self.turns = block.attn, turns
        self.image, self.text = Heads(attention, "qkv", rows), Heads(attention, "qkv", rows, added=True)
        self.image_out = Product(attention.to_out[0], rows=rows)
        self.text_out = Product(attention.to_add_out, rows=rows)
        self.image_mlp, self.text_mlp = (
            (Product(net[0].proj, rows=rows, gelu=True), Product(net[2], rows=rows))
            for net in (block.ff.net, block.ff_context.net)
        )

    def __call__(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        image_rotary_emb: Rotary,
        joint_attention_kwargs: dict[str, torch.Tensor],
    ) -> Streams:
        """Image (B, N - T, D) and text (B, T, D), the block's row of the table (B, 12 D) -> text and image."""
        image, text, parts = hidden_states, encoder_hidden_states, temb[:, None].chunk(12, dim=-1)
        pairs, value = self.image(_modulated(image, *parts[:2]))
        text_pairs, text_value = self.text(_modulated(text, *parts[6:8]))
        pairs, value = torch.cat([text_pairs, pairs], dim=1), torch.cat([text_value, value], dim=1)
        query, key = _turned(pairs, self.turns(image_rotary_emb), value.dtype)
        out = _attend(query, key, value, **joint_attention_kwargs)  # (B, N, D)
        tokens = text.shape[1]
        image = torch.addcmul(image, parts[2], self.image_out(out[:, tokens:]))
        text = torch.addcmul(text, parts[8], self.text_out(out[:, :tokens]))
        for_image, for_text = _modulated(image, *parts[3:5]), _modulated(text, *parts[9:11])
        image = torch.addcmul(image, parts[5], self.image_mlp[1](self.image_mlp[0](for_image)))
        text = torch.addcmul(text, parts[11], self.text_mlp[1](self.text_mlp[0](for_text)))
        return text, image


class _Single:
    """What both kinds of single blocks share: behind the attention beside the MLP, one product takes both results."""

    def __init__(self, block: Any, rows: int, turns: Turns) -> None:
        self.turns = turns
        self.mlp, self.product = Product(block.proj_mlp, rows=rows, gelu=True), Product(block.proj_out, rows=rows)

    def out(self, x: torch.Tensor, gate: torch.Tensor, normal: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """All (B, N, D) but gate (B, 1, D)."""
        return torch.addcmul(x, gate, self.product(torch.cat([attended, self.mlp(normal)], dim=2)))


class SingleBlock(_Single):
    """`FluxSingleTransformerBlock`: one stream, attention beside the MLP."""

    def __init__(self, block: Any, rows: int, turns: Turns) -> None:
        super().__init__(block, rows, turns)
        self.heads = Heads(block.attn, "qkv", rows)

    def __call__(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        image_rotary_emb: Rotary,
        joint_attention_kwargs: dict[str, torch.Tensor],
    ) -> Streams:
        """Image (B, N - T, D) and text (B, T, D), the block's row of the table (B, 3 D) -> text and image."""
        x = torch.cat([encoder_hidden_states, hidden_states], dim=1)  # (B, N, D)
        shift, scale, gate = temb[:, None].chunk(3, dim=-1)
        normal = _modulated(x, shift, scale)
        pairs, value = self.heads(normal)
        query, key = _turned(pairs, self.turns(image_rotary_emb), value.dtype)
        x = self.out(x, gate, normal, _attend(query, key, value, **joint_attention_kwargs))
        tokens = encoder_hidden_states.shape[1]
        return x[:, :tokens], x[:, tokens:]


class LastBlock(_Single):
    """The last single block, of which only the target's tokens are read: the others are no more than keys."""

    def __init__(self, block: Any, rows: int, turns: Turns) -> None:
        super().__init__(block, rows, turns)
        self.queries, self.keys = Heads(block.attn, "q", rows), Heads(block.attn, "kv", rows)

    def __call__(
        self, text: torch.Tensor, image: torch.Tensor, row: torch.Tensor, fixed: Fixed, target: int
    ) -> torch.Tensor:
        """Text (B, T, D), image (B, N - T, D) and the block's row of the table (B, 3 D) -> (B, target, D)."""
        shift, scale, gate = row[:, None].chunk(3, dim=-1)
        normal = _modulated(torch.cat([text, image], dim=1), shift, scale)
        wanted, turns = slice(text.shape[1], text.shape[1] + target), self.turns(fixed.rotary)
        (pairs, value), (query, _) = self.keys(normal), self.queries(normal[:, wanted])
        key = _turned(pairs, turns, value.dtype)[0]
        query = _turned(query, turns[wanted], value.dtype)[0]
        return self.out(image[:, :target], gate, normal[:, wanted], _attend(query, key, value, **fixed.attention))


def pack(transformer: USOTransformer2DModel, rows: int) -> None:
    """Lets the transformer compute with packed copies of its blocks' weights; its modules stay as they are.

    The copies take as many bytes again, and do not follow later changes of the weights. `rows` is the usual number of
    tokens. Blocks with a product that is no plain `nn.Linear` (fp8 ones) are left as they are.
    """
    turns, (*singles, last) = Turns(), transformer.single_transformer_blocks
    transformer.last = LastBlock(last, rows, turns) if _is_plain(last) else None
    kinds = (
        (DoubleBlock, transformer.transformer_blocks),
        (SingleBlock, singles if transformer.last else [*singles, last]),
    )
    blocks = [(kind(block, rows, turns) if _is_plain(block) else block) for kind, each in kinds for block in each]
    transformer.blocks = tuple(blocks)


def packs(dtype: torch.dtype) -> bool:
    """Whether this build of PyTorch packs weights of a dtype for this processor, and multiplies them right."""
    layer = nn.Linear(48, 32).to(dtype)
    x = torch.linspace(-1, 1, 7 * 48).view(1, 7, 48).to(dtype)
    try:
        packed = Product(layer, rows=7, gelu=True)(x)
    except (AttributeError, NotImplementedError, RuntimeError):  # without oneDNN, or a dtype that it does not know
        return False
    expected = F.gelu(F.linear(x.float(), layer.weight.float(), layer.bias.float()), approximate="tanh")
    return bool(torch.allclose(packed.float(), expected, atol=4 * torch.finfo(dtype).eps, rtol=0.02))


def _is_plain(block: nn.Module) -> bool:
    """Whether all products behind the modulation, whose tables are computed elsewhere, are plain ones."""
    products = (part for name, part in block.named_modules() if "norm" not in name and hasattr(part, "in_features"))
    return all(type(part) is nn.Linear for part in products)


def _modulated(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    scale = 1 + scale
    if len(x) == 1:
        return F.layer_norm(x, x.shape[-1:], scale[0, 0], shift[0, 0], eps=1e-6)
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), scale)


def _turned(parts: torch.Tensor, turns: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """q or k or both (B, N, P, H, C), overwritten, at their positions (N, 1, 1, C / 2) -> (P, B, H, N, C)."""
    pairs = parts.view(*parts.shape[:4], -1, 2)  # (B, N, P, H, C / 2, 2)
    torch.view_as_complex(pairs).mul_(turns)
    return parts.permute(2, 0, 3, 1, 4).to(dtype, memory_format=torch.contiguous_format)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """q, scaled (B, H, M, C), k (B, H, N, C), v (B, N, 1, H, C) -> (B, M, D)."""
    value = value[:, :, 0].transpose(1, 2)  # (B, H, N, C)
    if value.shape[2] <= WRITTEN_OUT:
        scores = query @ key.mT if attention_mask is None else query @ key.mT + attention_mask
        out = torch.softmax(scores.float(), dim=-1).to(value.dtype) @ value
    else:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=1.0)
    return out.transpose(1, 2).flatten(2)
