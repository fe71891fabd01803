"""FLUX.1's transformer with USO's LoRA as the reference configuration computes it; see `reference.py`.

Its layers are named as in the original files, so that these fill it unchanged.
Letters: B batch, S target tokens, R reference tokens, T text tokens, K style tokens, L all tokens, D width, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from uso_core.catalog.files import inspect
from uso_core.loaders.build import transformer_config

EPSILON = 1e-6  # of every norm
TIME_CHANNELS, TIME_SCALE = 256, 1000
MLP_RATIO = 4
THETA = 10000


class LoRA(nn.Module):
    """A pair of small products, added to an adapted layer's output."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.down(x))


class HeadNorm(nn.Module):
    """RMS norm over a head of queries or keys, in float32."""

    def __init__(self, head: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(head))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON)
        return wide.to(x.dtype) * self.scale


class QKNorm(nn.Module):
    def __init__(self, head: int) -> None:
        super().__init__()
        self.query_norm, self.key_norm = HeadNorm(head), HeadNorm(head)


class Attention(nn.Module):
    """The layers of one stream's attention; the blocks join the streams."""

    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.qkv, self.proj, self.norm = nn.Linear(width, 3 * width), nn.Linear(width, width), QKNorm(head)


class AdaptedBlock(nn.Module):
    """Shared by double and single blocks; `processor` holds the LoRA under the published names."""

    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.width, self.heads = width, width // head

    def split(self, qkv: torch.Tensor, norm: QKNorm) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, L, 3D) -> normed queries, normed keys and values, each (B, H, L, D / H)."""
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return norm.query_norm(q), norm.key_norm(k), v

    @staticmethod
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        """(B, H, L, D / H) each -> (B, L, D)."""
        q, k = rotate(q, rotation), rotate(k, rotation)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def modulated(self, x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return (1 + scale) * F.layer_norm(x, (self.width,), eps=EPSILON) + shift


class Modulation(nn.Module):
    """Shifts, scales and gates of one stream, `count` of them, recomputed on every call: (B, 1, D) each."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.lin, self.count = nn.Linear(width, count * width), count

    def forward(self, condition: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.lin(F.silu(condition))[:, None].chunk(self.count, dim=-1)


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, MLP_RATIO * width), nn.GELU(approximate="tanh"), nn.Linear(MLP_RATIO * width, width)
    )


class DoubleBlock(AdaptedBlock):
    def __init__(self, width: int, head: int, rank: int) -> None:
        super().__init__(width, head)
        self.img_mod, self.txt_mod = Modulation(width, 6), Modulation(width, 6)
        self.img_attn, self.txt_attn = Attention(width, head), Attention(width, head)
        self.img_mlp, self.txt_mlp = mlp(width), mlp(width)
        pairs = {"qkv_lora1": 3, "proj_lora1": 1, "qkv_lora2": 3, "proj_lora2": 1}
        self.processor = nn.ModuleDict({name: LoRA(width, times * width, rank) for name, times in pairs.items()})

    def forward(
        self, image: torch.Tensor, text: torch.Tensor, condition: torch.Tensor, rotation: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Image (B, S + R, D) and text stream (B, K + T, D), both updated."""
        image_mod, text_mod = self.img_mod(condition), self.txt_mod(condition)
        both = []
        for x, mod, attention, lora in (
            (text, text_mod, self.txt_attn, self.processor["qkv_lora2"]),
            (image, image_mod, self.img_attn, self.processor["qkv_lora1"]),
        ):
            normed = self.modulated(x, mod[0], mod[1])
            both.append(self.split(attention.qkv(normed) + lora(normed), attention.norm))
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(*both, strict=True))
        attended = self.attend(q, k, v, rotation)
        of_text, of_image = attended.split([text.shape[1], image.shape[1]], dim=1)
        text = text + text_mod[2] * (self.txt_attn.proj(of_text) + self.processor["proj_lora2"](of_text))
        image = image + image_mod[2] * (self.img_attn.proj(of_image) + self.processor["proj_lora1"](of_image))
        text = text + text_mod[5] * self.txt_mlp(self.modulated(text, text_mod[3], text_mod[4]))
        image = image + image_mod[5] * self.img_mlp(self.modulated(image, image_mod[3], image_mod[4]))
        return image, text


class SingleBlock(AdaptedBlock):
    def __init__(self, width: int, head: int, rank: int) -> None:
        super().__init__(width, head)
        wide = MLP_RATIO * width
        self.modulation, self.norm = Modulation(width, 3), QKNorm(head)
        self.linear1, self.linear2 = nn.Linear(width, 3 * width + wide), nn.Linear(width + wide, width)
        self.processor = nn.ModuleDict(
            {"qkv_lora": LoRA(width, 3 * width, rank), "proj_lora": LoRA(width + wide, width, rank)}
        )

    def forward(self, x: torch.Tensor, condition: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        shift, scale, gate = self.modulation(condition)
        normed = self.modulated(x, shift, scale)
        qkv, hidden = self.linear1(normed).split([3 * self.width, MLP_RATIO * self.width], dim=-1)
        attended = self.attend(*self.split(qkv + self.processor["qkv_lora"](normed), self.norm), rotation)
        joined = torch.cat([attended, F.gelu(hidden, approximate="tanh")], dim=-1)  # (B, L, 5D)
        return x + gate * (self.linear2(joined) + self.processor["proj_lora"](joined))


class Embedder(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.in_layer, self.out_layer = nn.Linear(inputs, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out_layer(F.silu(self.in_layer(x)))


class FinalLayer(nn.Module):
    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        shift, scale = self.adaLN_modulation(condition)[:, None].chunk(2, dim=-1)
        return self.linear((1 + scale) * F.layer_norm(x, x.shape[-1:], eps=EPSILON) + shift)


class ReferenceTransformer(nn.Module):
    """FLUX.1's transformer under the names of its original file, with the LoRA under those of its own.

    `config` is what `USOTransformer2DModel` takes.
    """

    def __init__(self, config: dict[str, Any], rank: int) -> None:
        super().__init__()
        head = config["attention_head_dim"]
        width, channels = config["num_attention_heads"] * head, config["in_channels"]
        self.in_channels, self.axes = channels, tuple(config["axes_dims_rope"])
        self.img_in, self.txt_in = nn.Linear(channels, width), nn.Linear(config["joint_attention_dim"], width)
        self.time_in = Embedder(TIME_CHANNELS, width)
        self.vector_in = Embedder(config["pooled_projection_dim"], width)
        self.guidance_in = Embedder(TIME_CHANNELS, width) if config["guidance_embeds"] else None
        self.double_blocks = nn.ModuleList(DoubleBlock(width, head, rank) for _ in range(config["num_layers"]))
        self.single_blocks = nn.ModuleList(SingleBlock(width, head, rank) for _ in range(config["num_single_layers"]))
        self.final_layer = FinalLayer(width, channels)

    @classmethod
    def from_files(cls, transformer: Path, lora: Path, dtype: torch.dtype) -> ReferenceTransformer:
        """Loads the original files unchanged, nothing fused."""
        pairs = load_file(lora)
        rank = next(len(tensor) for name, tensor in pairs.items() if name.endswith(".down.weight"))
        with torch.device("meta"):
            model = cls(transformer_config(inspect(transformer)), rank)
        weights = {name: tensor.to(dtype) for name, tensor in (load_file(transformer) | pairs).items()}
        model.load_state_dict(weights, strict=True, assign=True)
        return model.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.img_in.bias.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype it computes in, however its weights are stored."""
        return self.img_in.bias.dtype

    def forward(
        self,
        image: torch.Tensor,
        target: int,
        text: torch.Tensor,
        style: torch.Tensor | None,
        pooled: torch.Tensor,
        sigma: torch.Tensor,
        guidance: torch.Tensor,
        ids: torch.Tensor,
    ) -> torch.Tensor:
        """The velocity of the first `target` of the packed image tokens (B, S + R, 4C), from T5's states (B, T, ...),
        style tokens (B, K, D), CLIP's output (B, ...), sigma and guidance (B,), and positions (L, 3)."""
        image = self.img_in(image)  # (B, S + R, D)
        condition = self.time_in(sinusoids(sigma, image.dtype)) + self.vector_in(pooled)
        if self.guidance_in is not None:
            condition = condition + self.guidance_in(sinusoids(guidance, image.dtype))
        text = self.txt_in(text)
        if style is not None:
            text = torch.cat([style.to(text.dtype), text], dim=1)  # (B, K + T, D)
        rotation = rotations(ids, self.axes)
        for block in self.double_blocks:
            image, text = block(image, text, condition, rotation)
        x = torch.cat([text, image], dim=1)  # (B, L, D)
        for block in self.single_blocks:
            x = block(x, condition, rotation)
        return self.final_layer(x[:, text.shape[1] : text.shape[1] + target], condition)


def sinusoids(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(B,) -> (B, TIME_CHANNELS): cosines, then sines."""
    half = TIME_CHANNELS // 2
    frequencies = torch.exp(-math.log(THETA) * torch.arange(half, device=value.device) / half)
    angles = (value.to(dtype) * TIME_SCALE).float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype)


def rotations(ids: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    """A 2 x 2 rotation for each pair of a head's channels and each position: (L, 3) -> (L, D / H / 2, 2, 2)."""
    angles = []
    for axis, size in enumerate(axes):
        exponents = torch.arange(0, size, 2, dtype=torch.float64, device=ids.device) / size
        angles.append(ids[:, axis, None].double() * THETA**-exponents)
    angle = torch.cat(angles, dim=-1)  # (L, D / H / 2)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2)).float()


def rotate(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Each pair of channels times its matrix, in float32: (B, H, L, D / H), the same."""
    pairs = x.float().unflatten(-1, (-1, 1, 2))  # (B, H, L, D / H / 2, 1, 2)
    turned = rotation[..., 0] * pairs[..., 0] + rotation[..., 1] * pairs[..., 1]
    return turned.flatten(-2).to(x.dtype)


class CastLinear(nn.Module):
    """A linear layer with its weight in fp8, without a scale, cast for every product."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias)


def store_fp8(transformer: ReferenceTransformer) -> None:
    """Stores every matrix except the LoRA's in fp8, one after another."""
    for name, module in list(transformer.named_modules()):
        if isinstance(module, nn.Linear) and ".processor." not in name:
            transformer.set_submodule(name, CastLinear(module))
