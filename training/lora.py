"""USO's LoRA as matrices of its own: names and shapes are those of the published dit_lora.safetensors.

Each double block has four pairs (qkv and proj of the image stream "1" and the text stream "2"), each single block two.
One `down` serves q, k and v together; in single blocks `proj` acts on the whole second linear layer, whose input is the
attention's output beside the MLP's. Nothing is wrapped: `fused` adds up @ down to the transformer's weights, which the
forward then uses through torch.func.functional_call, and export does the same for good.
Letters: D width, r rank.
"""

from __future__ import annotations

import math

import torch
from diffusers import FluxTransformer2DModel
from torch import nn


class Pair(nn.Module):
    """W += up @ down; starts as nothing."""

    def __init__(self, wide_in: int, wide_out: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(wide_in, rank, bias=False)
        self.up = nn.Linear(rank, wide_out, bias=False)
        nn.init.normal_(self.down.weight, std=1 / math.sqrt(wide_in))
        nn.init.zeros_(self.up.weight)

    def delta(self) -> torch.Tensor:
        """(out, in)."""
        return self.up.weight @ self.down.weight


class _Processor(nn.Module):
    def __init__(self, pairs: dict[str, Pair]) -> None:
        super().__init__()
        self.processor = nn.ModuleDict(pairs)


class Lora(nn.Module):
    """The whole LoRA; its state dict has the published names."""

    def __init__(self, width: int, mlp_width: int, doubles: int, singles: int, rank: int) -> None:
        super().__init__()

        def qkv() -> Pair:
            return Pair(width, 3 * width, rank)

        self.double_blocks = nn.ModuleList(
            _Processor(
                {
                    "qkv_lora1": qkv(),
                    "proj_lora1": Pair(width, width, rank),
                    "qkv_lora2": qkv(),
                    "proj_lora2": Pair(width, width, rank),
                }
            )
            for _ in range(doubles)
        )
        self.single_blocks = nn.ModuleList(
            _Processor({"qkv_lora": qkv(), "proj_lora": Pair(width + mlp_width, width, rank)}) for _ in range(singles)
        )

    def deltas(self) -> dict[str, torch.Tensor]:
        """What is added to each weight, by its name in the diffusers transformer."""
        result: dict[str, torch.Tensor] = {}
        for number, block in enumerate(self.double_blocks):
            pairs, name = block.processor, f"transformer_blocks.{number}.attn"
            streams = (("1", ("to_q", "to_k", "to_v"), "to_out.0"),
                       ("2", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out"))  # fmt: skip
            for stream, parts, out in streams:
                for part, delta in zip(parts, pairs[f"qkv_lora{stream}"].delta().chunk(3), strict=True):
                    result[f"{name}.{part}.weight"] = delta
                result[f"{name}.{out}.weight"] = pairs[f"proj_lora{stream}"].delta()
        for number, block in enumerate(self.single_blocks):
            name = f"single_transformer_blocks.{number}"
            parts = block.processor["qkv_lora"].delta().chunk(3)
            for part, delta in zip(("to_q", "to_k", "to_v"), parts, strict=True):
                result[f"{name}.attn.{part}.weight"] = delta
            result[f"{name}.proj_out.weight"] = block.processor["proj_lora"].delta()
        return result


def fused(transformer: FluxTransformer2DModel, lora: Lora) -> dict[str, torch.Tensor]:
    """The touched weights with the LoRA added, differentiable: for functional_call or load_state_dict."""
    weights = dict(transformer.named_parameters())
    return {name: weights[name] + delta for name, delta in lora.deltas().items()}
