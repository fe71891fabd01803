"""Latents of all records, computed once, so that training never waits for the VAE.

Writes the VAE itself (vae.safetensors), its constants (vae.json) and, per shard and kind, float16 latents that are
already normalised: (z - shift_factor) * scaling_factor.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image

from uso_core.model import preview

from . import checkpoint
from .autoencoder import build_vae, load_vae, to_pixels
from .data import LATENT_KINDS, Shard, list_shards, open_pictures
from .groupnorm import use_fast_groupnorm
from .precision import autocast

log = logging.getLogger(__name__)

VISION_SIZE = 128  # pixels, the side of the vision tower's square
BATCH = 32


def latents_path(run: Path, shard: Shard, kind: str) -> Path:
    """float16 (count, 16, H / 8, W / 8)."""
    return run / "records" / shard.name / f"latents_{kind}.npy"


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: np.ndarray, device: str) -> torch.Tensor:
    """uint8 (B, H, W, 3) -> posterior means, not normalised, float32 (B, 16, H / 8, W / 8)."""
    with autocast(device):
        return vae.encode(to_pixels(pictures, device)).latent_dist.mode().float()


def squash(pictures: np.ndarray) -> np.ndarray:
    """What the vision tower's preprocessing makes of pictures before normalising: uint8 (B, 128, 128, 3)."""
    if pictures.shape[1:3] == (VISION_SIZE, VISION_SIZE):
        return pictures
    size = (VISION_SIZE, VISION_SIZE)
    return np.stack([np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BICUBIC)) for p in pictures])


def fit_constants(vae: AutoencoderKL, run: Path, shard: Shard, device: str, count: int = 256) -> dict[str, object]:
    """Scale and shift for unit variance, and the best linear map from normalised latents to RGB in [-1, 1]."""
    latents, colours = [], []
    for kind in ("target", "content", "style"):
        pictures = open_pictures(run / "records", shard, kind)
        for start in range(0, min(count, shard.count), BATCH):
            part = pictures[start : start + BATCH]
            latents.append(encode(vae, part, device).cpu())
            colours.append(F.avg_pool2d(to_pixels(part), 8))
    z, rgb = torch.cat(latents), torch.cat(colours)
    shift, scaling = float(z.mean()), float(1 / z.std())
    normalised = (z - shift) * scaling
    *matrix, bias = preview.fit(normalised, rgb)
    spread = normalised.std((0, 2, 3))
    log.info("channel spread %s", [round(float(value), 2) for value in spread])
    return {
        "scaling_factor": scaling,
        "shift_factor": shift,
        "preview_matrix": matrix,  # 16 x 3
        "preview_bias": bias,
    }


def publish_vae(run: Path, device: str) -> tuple[AutoencoderKL, dict[str, object]]:
    """Trained weights out of the VAE's run state into vae.safetensors, with constants in vae.json.

    Both as they are where the run began at published weights, and has no such state.
    """
    state = checkpoint.load_state(run / "vae_state.pt")
    constants_path = run / "vae.json"
    if state is None and not constants_path.exists():
        raise FileNotFoundError(f"{run / 'vae_state.pt'}: train the VAE first")
    vae = load_vae(run) if state is None else build_vae()
    if state is not None:
        vae.load_state_dict(state["vae"])
    vae.to(device, memory_format=torch.channels_last).eval()
    if device == "cpu":
        use_fast_groupnorm(vae)
    if state is None:
        return vae, json.loads(constants_path.read_text())
    if constants_path.exists():
        constants = json.loads(constants_path.read_text())
        if constants["steps"] == state["step"]:
            return vae, constants  # the latents that are there already were made with these
    constants = fit_constants(vae, run, list_shards(run / "records", "train")[0], device)
    constants["block_out_channels"] = list(vae.config.block_out_channels)
    constants["norm_num_groups"] = vae.config.norm_num_groups
    constants["steps"] = state["step"]
    checkpoint.save_tensors(run / "vae.safetensors", vae.state_dict())
    constants_path.write_text(json.dumps(constants, indent=1))
    return vae, constants


def one_of_each_format_first(shards: list[Shard]) -> list[Shard]:
    """The same shards in an order in which training can begin before all are encoded."""
    seen: set[tuple[str, bool, int, int]] = set()
    early, late = [], []
    for shard in shards:
        key = (shard.split, shard.settled, shard.height, shard.width)
        (late if key in seen else early).append(shard)
        seen.add(key)
    return early + late


def encode_records(run: Path, device: str) -> None:
    """Publish the VAE and encode every record that has no latents yet (delete them after training the VAE anew)."""
    vae, constants = publish_vae(run, device)
    shift, scaling = float(constants["shift_factor"]), float(constants["scaling_factor"])  # type: ignore[arg-type]
    shards = one_of_each_format_first(list_shards(run / "records"))
    for number, shard in enumerate(shards, 1):
        for kind in LATENT_KINDS:
            path = latents_path(run, shard, kind)
            if path.exists():
                continue
            pictures = open_pictures(run / "records", shard, kind)
            parts = [encode(vae, pictures[i : i + BATCH], device).cpu() for i in range(0, shard.count, BATCH)]
            beside = path.with_suffix(".part.npy")
            np.save(beside, ((torch.cat(parts) - shift) * scaling).half().numpy())
            beside.replace(path)
        log.info("encoded %s (%d of %d)", shard.name, number, len(shards))
