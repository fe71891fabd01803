"""Saving and resuming a run: plain tensors only, written beside and moved into place, so a crash leaves the last one.

A run's chance depends on (seed, step) alone, so a resumed run repeats what an uninterrupted one would have done.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file


def save_state(path: Path, state: dict[str, Any]) -> None:
    """A nested dict of tensors and numbers, readable with weights_only=True."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    torch.save(state, beside)
    os.replace(beside, path)


def load_state(path: Path) -> dict[str, Any] | None:
    """What `save_state` wrote, on the CPU, or None where nothing is.

    Models and optimizers bring it to their device, all but AdamW's counts of steps: on a GPU each would be waited for.
    """
    if not path.exists():
        return None
    return torch.load(path, map_location="cpu", weights_only=True)


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, Any] | None = None) -> None:
    """safetensors with a JSON value under the metadata key "training"."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, beside, metadata={"training": json.dumps(metadata or {})})
    os.replace(beside, path)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file."""
    return load_file(path)


def append_log(path: Path, entry: dict[str, Any]) -> None:
    """One JSON line."""
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")


def chance(seed: int, step: int) -> np.random.Generator:
    """The random numbers of one step of a run; also seeds torch."""
    torch.manual_seed(seed * 1_000_003 + step)
    return np.random.default_rng([seed, step])


def read_facts(path: Path) -> dict[str, Any]:
    """The JSON value that `save_tensors` put into the metadata."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["training"])
