"""Weight files for tests: where the golden ones are, how to write others, and the modules that they become."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import nn

from tests.conftest import GOLDEN
from uso_core.loaders import build
from uso_core.model.style_projector import StyleProjector
from uso_core.model.transformer import USOTransformer2DModel
from uso_core.settings import ROOT

EMBEDDED = ROOT / "weights" / "uso-tiny"
FLUX, AE, LORA, PROJECTOR = (GOLDEN / f"{name}.safetensors" for name in ("flux", "ae", "dit_lora", "projector"))
COMFY = "model.diffusion_model."
Tensors = dict[str, torch.Tensor]


def raw(header: bytes | Mapping[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file written byte by byte, so that it can be wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(begin: Any, end: Any, shape: Any = (1,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def named(path: Path, *names: str) -> Path:
    """A file whose header lists tensors with these names."""
    return write(path, {name: torch.zeros(1) for name in names})


def same(ours: nn.Module, theirs: nn.Module) -> None:
    """The same parameters, bit for bit."""
    one, other = ours.state_dict(), theirs.state_dict()
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def transformer(path: Path, lora: Path | None = None) -> USOTransformer2DModel:
    return build.build_transformer(path, lora, torch.float32)


def vae(path: Path) -> AutoencoderKL:
    return build.build_vae(path, torch.float32)


def projector(path: Path) -> StyleProjector:
    return build.build_projector(path, torch.float32)
