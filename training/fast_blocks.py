"""A faster forward of the transformer's blocks for training on a CPU: the same arithmetic, parameters and checkpoints.

What costs most there is replaced: separate q, k, v products (one product), chains of small elementwise operations
(compiled), ATen's attention backward (written out: the sequences are short) and the backward of the vision tower's
patch convolution (a matrix product). Rotary pairs are brought
from neighbours to halves by reordering the rows of the q and k weights, which leaves attention as it is.
Letters: B batch, N tokens, D width, h head size.
"""

from __future__ import annotations

import types

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from torch import nn
from transformers import SiglipVisionModel

_EPS = 1e-6
Rotary = tuple[torch.Tensor, torch.Tensor]


def _modulate(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """LayerNorm without weights, then scale and shift (B, D)."""
    normal = F.layer_norm(x.float(), (x.shape[-1],), eps=_EPS)
    return (normal * (1 + scale.float()[:, None]) + shift.float()[:, None]).to(x.dtype)


def _gated(x: torch.Tensor, gate: torch.Tensor, branch: torch.Tensor) -> torch.Tensor:
    return x + gate[:, None] * branch


def _rotate(x: torch.Tensor, weight: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RMSNorm over the head and rotation; x (B, N, heads, h) with its pairs in halves, cos and sin (N, h / 2)."""
    normal = x.float()
    normal = normal * torch.rsqrt(normal.square().mean(-1, keepdim=True) + _EPS) * weight
    half = normal.shape[-1] // 2
    a, b = normal[..., :half], normal[..., half:]
    c, s = cos[None, :, None], sin[None, :, None]
    return torch.cat([a * c - b * s, b * c + a * s], -1).to(x.dtype)


_COMPILED = {
    "modulate": torch.compile(_modulate, dynamic=True),
    "gated": torch.compile(_gated, dynamic=True),
    "rotate": torch.compile(_rotate, dynamic=True),
}


def _halves(size: int, head: int) -> torch.Tensor:
    """Order of rows that puts the even channels of each head before the odd ones."""
    rows = torch.arange(size).view(-1, head)
    return torch.cat([rows[:, 0::2], rows[:, 1::2]], 1).reshape(-1)


def _heads(
    x: torch.Tensor, layers: tuple[nn.Linear, nn.Linear, nn.Linear], norms: tuple[nn.Module, nn.Module], rotary: Rotary
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v (B, N, heads, h), q and k normalised and rotated."""
    q, k, v = layers
    head = norms[0].weight.shape[0]
    rows, within = _halves(q.weight.shape[0], head), _halves(head, head)
    weight = torch.cat([q.weight[rows], k.weight[rows], v.weight])
    bias = torch.cat([q.bias[rows], k.bias[rows], v.bias])
    b, n, _ = x.shape
    query, key, value = F.linear(x, weight, bias).view(b, n, 3, -1, head).unbind(2)
    cos, sin = rotary[0][:, 0::2], rotary[1][:, 0::2]
    rotate = _COMPILED["rotate"]
    return rotate(query, norms[0].weight[within], cos, sin), rotate(key, norms[1].weight[within], cos, sin), value


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """(B, N, heads, h) each -> (B, N, D)."""
    with torch.autocast(q.device.type, enabled=False):
        q, k, v = (q * q.shape[-1] ** -0.5).transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2).to(q.dtype)
        out = torch.softmax(q @ k.mT, -1) @ v
    return out.transpose(1, 2).flatten(2)


def _double(
    self: nn.Module,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    temb: torch.Tensor,
    image_rotary_emb: Rotary,
    joint_attention_kwargs: None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """FluxTransformerBlock.forward."""
    image, text, attention = hidden_states, encoder_hidden_states, self.attn
    modulate, gated = _COMPILED["modulate"], _COMPILED["gated"]
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.norm1.linear(temb).chunk(6, 1)
    t_shift, t_scale, t_gate, t_mlp_shift, t_mlp_scale, t_mlp_gate = self.norm1_context.linear(temb).chunk(6, 1)
    (cos, sin), n = image_rotary_emb, text.shape[1]
    q, k, v = _heads(
        modulate(image, scale, shift), (attention.to_q, attention.to_k, attention.to_v),
        (attention.norm_q, attention.norm_k), (cos[n:], sin[n:]),
    )  # fmt: skip
    tq, tk, tv = _heads(
        modulate(text, t_scale, t_shift), (attention.add_q_proj, attention.add_k_proj, attention.add_v_proj),
        (attention.norm_added_q, attention.norm_added_k), (cos[:n], sin[:n]),
    )  # fmt: skip
    out = _attend(torch.cat([tq, q], 1), torch.cat([tk, k], 1), torch.cat([tv, v], 1))
    image = gated(image, gate, attention.to_out[0](out[:, n:]))
    text = gated(text, t_gate, attention.to_add_out(out[:, :n]))
    image = gated(image, mlp_gate, self.ff(modulate(image, mlp_scale, mlp_shift)))
    text = gated(text, t_mlp_gate, self.ff_context(modulate(text, t_mlp_scale, t_mlp_shift)))
    return text, image


def _single(
    self: nn.Module,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    temb: torch.Tensor,
    image_rotary_emb: Rotary,
    joint_attention_kwargs: None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """FluxSingleTransformerBlock.forward."""
    n, attention = encoder_hidden_states.shape[1], self.attn
    x = torch.cat([encoder_hidden_states, hidden_states], 1)
    shift, scale, gate = self.norm.linear(temb).chunk(3, 1)
    normal = _COMPILED["modulate"](x, scale, shift)
    q, k, v = _heads(
        normal, (attention.to_q, attention.to_k, attention.to_v), (attention.norm_q, attention.norm_k), image_rotary_emb
    )
    branches = torch.cat([_attend(q, k, v), F.gelu(self.proj_mlp(normal), approximate="tanh")], 2)
    x = _COMPILED["gated"](x, gate, self.proj_out(branches))
    return x[:, :n], x[:, n:]


def _patches(self: nn.Conv2d, pixels: torch.Tensor) -> torch.Tensor:
    """Conv2d.forward where kernel and stride are equal."""
    b, c, height, width = pixels.shape
    size = self.kernel_size[0]
    rows, columns = height // size, width // size
    x = pixels.reshape(b, c, rows, size, columns, size).permute(0, 2, 4, 1, 3, 5).reshape(b, rows * columns, -1)
    out = F.linear(x, self.weight.flatten(1), self.bias)  # (B, N, D)
    return out.transpose(1, 2).reshape(b, -1, rows, columns)


def use_fast_blocks(transformer: FluxTransformer2DModel, siglip: SiglipVisionModel) -> None:
    """Swap the forward methods in place."""
    for module in siglip.modules():
        if isinstance(module, nn.Conv2d):
            module.forward = types.MethodType(_patches, module)
    for block in transformer.transformer_blocks:
        block.forward = types.MethodType(_double, block)
    for block in transformer.single_transformer_blocks:
        block.forward = types.MethodType(_single, block)
