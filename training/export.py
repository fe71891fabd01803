"""Modules -> the original files, as every loader of USO expects them: the inverse of `uso_core.loaders`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import save_file

from uso_core.loaders import keys
from uso_core.model.style_projector import StyleProjector
from uso_core.model.transformer import USOTransformer2DModel


def export_transformer(model: USOTransformer2DModel, path: Path, notes: Mapping[str, Any]) -> None:
    """flux.safetensors in bfloat16; `notes` hold what the tensors cannot tell, such as {"text_tokens": 32}."""
    _save(to_original(model.state_dict(), keys.TRANSFORMER), path, notes)


def export_lora(pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]], path: Path) -> None:
    """dit_lora.safetensors in bfloat16 from {stem: (down (r, in), up (out, r))}, stems as in `keys.LORA`."""
    tensors = {}
    for stem, (down, up) in pairs.items():
        tensors[f"{stem}.down.weight"], tensors[f"{stem}.up.weight"] = down, up
    _save(tensors, path, {})


def export_projector(model: StyleProjector, path: Path) -> None:
    """projector.safetensors in bfloat16, with the depths it reads noted."""
    tensors = {f"feature_embedder.{name}": tensor for name, tensor in model.state_dict().items()}
    _save(tensors, path, {"depths": list(model.config.depths)})


def export_vae(model: AutoencoderKL, path: Path, notes: Mapping[str, Any] | None = None) -> None:
    """ae.safetensors in bfloat16, with its constants noted."""
    tensors = to_original(model.state_dict(), keys.VAE, levels=len(model.config.block_out_channels))
    for name, tensor in tensors.items():
        if ".attn_1." in name and tensor.dim() == 2:
            tensors[name] = tensor[:, :, None, None]  # the original's attention is made of 1 x 1 convolutions
    constants = {
        "scaling_factor": model.config.scaling_factor,
        "shift_factor": model.config.shift_factor,
        "norm_groups": model.config.norm_num_groups,
    }
    _save(tensors, path, {**constants, **(notes or {})})


def to_original(
    state: Mapping[str, torch.Tensor], table: tuple[keys.Rename, ...], levels: int = 0
) -> dict[str, torch.Tensor]:
    """A diffusers state dict under the original names; parts that the original stacks are stacked."""
    original: dict[str, torch.Tensor] = {}
    for target in state:
        name = keys.original_name(target, table, levels)
        if name in original:
            continue
        row, values = keys.row_of(name, table) or (keys.Rename(name, (target,)), {})
        tensor = torch.cat([state[part] for part in row.target_names(values, levels)])
        original[name] = torch.cat(tensor.chunk(2)[::-1]) if row.halves_swapped else tensor
    return original


def _save(tensors: Mapping[str, torch.Tensor], path: Path, notes: Mapping[str, Any]) -> None:
    """Writes a file, or leaves one that says the same: safetensors notes things in any order, other bytes each time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    halves = {name: tensor.detach().to("cpu", torch.bfloat16).contiguous() for name, tensor in tensors.items()}
    metadata = {"format": "pt", **({"uso": json.dumps(dict(notes))} if notes else {})}
    if not (path.exists() and _holds(path, halves, metadata)):
        save_file(halves, path, metadata)


def _holds(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bool:
    with safe_open(path, "pt") as file:
        if file.metadata() != metadata or set(file.keys()) != set(tensors):
            return False
        return all(torch.equal(file.get_tensor(name), tensor) for name, tensor in tensors.items())
