"""The hooks of accelerate and diffusers, which move a module's weights around its `forward`, for our other methods."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def enter(module: nn.Module) -> None:
    """Does what the module's hooks do before its `forward`: brings its weights, and sends those of another away."""
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(module)
    registry = getattr(module, "_diffusers_hook", None)
    grouped = registry.get_hook("group_offloading") if registry is not None else None
    if grouped is not None:
        grouped.pre_forward(module)


def is_hooked(module: nn.Module) -> bool:
    """Whether its weights may lie elsewhere than they compute."""
    return hasattr(module, "_hf_hook") or hasattr(module, "_diffusers_hook")


def execution_device(module: nn.Module) -> torch.device | None:
    """Where accelerate's hooks compute; None if they do not say."""
    for part in module.modules():
        device: Any = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return None
