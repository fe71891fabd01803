"""The VAE: the original FLUX autoencoder's architecture at small width, trained on the world's pictures.

    python -m training.vae --run FOLDER --steps N      # trains, or goes on where it was stopped
    python -m training.vae --run FOLDER --encode       # latents of all records, constants and preview matrix

Beside plain reconstruction the loss asks for latents that suit a flow model: noise on the latents makes the decoder
forgive small errors, and pooled latents must decode to pooled pictures, so that coarse structure lies in the coarse
part of the latents. Crops of 64 pixels most of the time (four times the steps), whole pictures at the end.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from . import checkpoint
from .autoencoder import build_vae, to_pixels
from .command import positive, run_command
from .data import Shard, list_shards, open_pictures
from .groupnorm import use_fast_groupnorm
from .latent_cache import encode_records
from .muon import Muon
from .precision import autocast

log = logging.getLogger(__name__)

KIND_CHANCE = {"target": 0.4, "plain": 0.1, "content": 0.1, "style": 0.32, "blend": 0.08}
LATENT_NOISE = 0.1
KL_WEIGHT = 1e-3
POOLED_CHANCE = 0.2
WHOLE_PICTURES_FROM = 0.85  # share of the steps after which whole pictures are shown
WHOLE_BATCH_SHARE = 4  # a batch of whole pictures is this many times smaller


def gradient_loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """L1 of neighbouring differences at three scales: keeps lines sharp without a perceptual network."""
    total = a.new_zeros(())
    for _ in range(3):
        total = total + F.l1_loss(a[..., 1:] - a[..., :-1], b[..., 1:] - b[..., :-1])
        total = total + F.l1_loss(a[..., 1:, :] - a[..., :-1, :], b[..., 1:, :] - b[..., :-1, :])
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return total / 3


class VaeTraining:
    """One run of VAE training."""

    def __init__(self, run: Path, steps: int, batch: int, device: str, seed: int = 0) -> None:
        self.run, self.steps, self.batch, self.device, self.seed = run, steps, batch, device, seed
        self.state_path = run / "vae_state.pt"
        torch.manual_seed(seed)
        self.vae = build_vae().to(device, memory_format=torch.channels_last)
        for name, parameter in self.vae.named_parameters():
            if name.endswith("conv2.weight"):
                torch.nn.init.zeros_(parameter)  # residual branches start as nothing
        if device == "cpu":
            use_fast_groupnorm(self.vae)
        trained = dict(self.vae.named_parameters())
        kernels = {
            name: parameter
            for name, parameter in trained.items()
            if parameter.dim() == 4 and name not in ("encoder.conv_in.weight", "decoder.conv_out.weight")
        }
        rest = [parameter for name, parameter in trained.items() if name not in kernels]
        self.rates = (6e-3, 2e-3)
        self.optimizers = (
            Muon(kernels.values(), lr=self.rates[0]),
            torch.optim.AdamW(rest, lr=self.rates[1], betas=(0.9, 0.97), weight_decay=0.0),
        )
        self.step = 0
        shards = list_shards(run / "records")
        if not shards:
            raise FileNotFoundError(f"{run / 'records'}: no records yet; run training.data first")
        self.train = [shard for shard in shards if shard.split == "train"]
        self.held_out = [shard for shard in shards if shard.split == "held_out"]
        self.pictures = {(shard.name, kind): open_pictures(run / "records", shard, kind)
                         for shard in self.train for kind in KIND_CHANCE}  # fmt: skip
        self.resume()

    def resume(self) -> None:
        """Take up the last checkpoint, if there is one."""
        state = checkpoint.load_state(self.state_path)
        if state is None:
            return
        self.vae.load_state_dict(state["vae"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = state["step"]
        log.info("resumed at step %d", self.step)

    def save(self) -> None:
        """Checkpoint everything that `resume` needs."""
        checkpoint.save_state(
            self.state_path,
            {"vae": self.vae.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers], "step": self.step},
        )

    def rate_factor(self) -> float:
        """Warm-up, a plateau, then a cosine to 2 %."""
        done = self.step / self.steps
        decay = 1.0 if done < 0.35 else 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (done - 0.35) / 0.65))
        return min(1.0, (self.step + 1) / 40) * decay

    def draw_batch(self, rng: np.random.Generator) -> torch.Tensor:
        """Pictures (B, 3, h, w): crops first, whole ones of one format at the end."""
        whole = self.step >= self.steps * WHOLE_PICTURES_FROM
        shard = self.train[int(rng.integers(len(self.train)))]
        count = max(1, self.batch // WHOLE_BATCH_SHARE) if whole else self.batch
        kinds = list(KIND_CHANCE)
        if whole:  # pictures of a batch must have one format
            kinds = [str(rng.choice(kinds, p=list(KIND_CHANCE.values())))]
            chosen = kinds * count
        else:
            chosen = [str(kind) for kind in rng.choice(kinds, size=count, p=list(KIND_CHANCE.values()))]
        pictures = []
        for kind in chosen:
            picture = self.pictures[shard.name, kind][int(rng.integers(shard.count))]
            if not whole:
                y, x = (int(rng.integers(size - 63)) for size in picture.shape[:2])
                picture = picture[y : y + 64, x : x + 64]
            pictures.append(picture[:, ::-1] if rng.random() < 0.5 else picture)
        return to_pixels(np.stack(pictures), self.device)

    def loss(self, pixels: torch.Tensor, pooled: bool) -> tuple[torch.Tensor, dict[str, float]]:
        """The objective and its parts."""
        with autocast(self.device):
            posterior = self.vae.encode(pixels).latent_dist
            latents = posterior.sample()
            if pooled:
                latents, pixels = F.avg_pool2d(latents, 2), F.avg_pool2d(pixels, 2)
            result = self.vae.decode(latents + LATENT_NOISE * torch.randn_like(latents)).sample
        result = result.float()
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        l1, gradient = F.l1_loss(result, pixels), gradient_loss(result, pixels)
        loss = l1 + 1.5 * gradient + 0.5 * F.mse_loss(result, pixels) + KL_WEIGHT * kl
        return loss, {"l1": l1.item(), "gradient": gradient.item(), "kl": kl.item()}

    def train_step(self) -> dict[str, float]:
        """One update."""
        rng = checkpoint.chance(self.seed, self.step)
        pooled = bool(rng.random() < POOLED_CHANCE)
        loss, parts = self.loss(self.draw_batch(rng), pooled)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = rate * self.rate_factor()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.vae.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        return {} if pooled else parts

    def run_all(self, every: int = 200) -> None:
        """Train to the last step, logging, measuring and saving on the way."""
        began, first = time.monotonic(), self.step
        parts: list[dict[str, float]] = []
        while self.step < self.steps:
            parts.append(self.train_step())
            if self.step % every == 0 or self.step == self.steps:
                told = [part for part in parts if part]
                means = {key: round(float(np.mean([part[key] for part in told])), 4) for key in told[0]}
                pace = (time.monotonic() - began) / (self.step - first)
                entry = {"step": self.step, **means, "minutes_left": round(pace * (self.steps - self.step) / 60, 1)}
                if self.step % (every * 5) == 0 or self.step == self.steps:
                    entry["psnr_db"] = round(measure_psnr(self.vae, self.run, self.held_out[0], self.device), 2)
                    self.save()
                log.info("%s", entry)
                checkpoint.append_log(self.run / "vae.jsonl", entry)
                parts = []


@torch.no_grad()
def measure_psnr(vae: AutoencoderKL, run: Path, shard: Shard, device: str, count: int = 64) -> float:
    """Mean PSNR in dB of held-out styled pictures through encoder and decoder (posterior mean)."""
    pictures = open_pictures(run / "records", shard, "target")
    values: list[float] = []
    for start in range(0, min(count, len(pictures)), 16):
        pixels = to_pixels(pictures[start : start + 16], device)
        with autocast(device):
            result = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
        error = ((result.float().clamp(-1, 1) - pixels) / 2).pow(2).mean((1, 2, 3))
        values += (-10 * torch.log10(error)).tolist()
    return float(np.mean(values))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train the VAE, or encode the records with it.")
    parser.add_argument("--run", type=Path, required=True, help="folder of the run, with records/ in it")
    parser.add_argument("--steps", type=positive, default=12000)
    parser.add_argument("--batch", type=positive, default=24)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--encode", action="store_true", help="encode the records with the trained VAE")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(2)
    if arguments.encode:
        encode_records(arguments.run, arguments.device)
    else:
        VaeTraining(arguments.run, arguments.steps, arguments.batch, arguments.device).run_all()


if __name__ == "__main__":
    run_command(main)
