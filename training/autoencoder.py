"""The VAE of the embedded model: the original FLUX autoencoder's architecture at small width, and what it is fed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from . import checkpoint

WIDTHS = (32, 64, 96, 128)
# The original has 32 groups of 4 channels at its narrowest level. 32 groups here would hold one channel each, and the
# last normalisation would wipe out what every channel says about a picture's colour; so groups of 4 again.
GROUPS = 8
LATENT_CHANNELS = 16


def build_vae(widths: tuple[int, ...] = WIDTHS, scaling: float = 1.0, shift: float = 0.0) -> AutoencoderKL:
    """The original layout: no quant convolutions, attention in the middle, 16 latent channels at 1/8 resolution."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=GROUPS,
        sample_size=128,
        scaling_factor=scaling,
        shift_factor=shift,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=True,
    )


def load_vae(run: Path) -> AutoencoderKL:
    """The trained VAE of a run, with its constants."""
    if not (run / "vae.json").is_file():
        raise FileNotFoundError(f"{run / 'vae.json'}: no VAE yet; run training.vae and training.vae --encode first")
    constants = json.loads((run / "vae.json").read_text())
    vae = build_vae(tuple(constants["block_out_channels"]), constants["scaling_factor"], constants["shift_factor"])
    vae.load_state_dict(checkpoint.load_tensors(run / "vae.safetensors"))
    return vae.eval()


def to_pixels(pictures: np.ndarray, device: str = "cpu") -> torch.Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in [-1, 1], channels last in memory."""
    tensor = torch.from_numpy(np.array(pictures)).to(device).permute(0, 3, 1, 2)
    return (tensor.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
