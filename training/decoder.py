"""A decoder that forgives: the decoder alone learns to draw cleanly from latents that are a little wrong.

    python -m training.decoder --run FOLDER --steps N       # trains, or goes on where it was stopped

What the transformer draws is never quite the latents of an image, and what is off a little there decodes to edges that
wobble and eyes that smear. Three kinds of latents teach the decoder, whole images all of them:
  clean     encoded and a little noised: what it could do stays
  mistaken  encoded, noised up to some time and drawn to the end by the model: its own mistakes, where what is right is
            known. Beside squared error and gradients, a perceiver tells how far off the result looks.
  own       drawn by the model from noise: nothing is right, but a patch discriminator, which knows the renderer's
            images, must not tell; coarse colours stay those of the decoder before
The perceiver is a measuring network of its own chance, not the one that measures. The encoder stays as it is, and all
latents stay valid.
"""

from __future__ import annotations

import argparse
import copy
import logging
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from . import checkpoint, world
from .autoencoder import load_vae, to_pixels
from .batches import RecordStore
from .command import positive, run_command
from .data import list_shards, open_pictures
from .groupnorm import use_fast_groupnorm
from .measure import Measurer, load_measurer, save_measurer, train_measurer
from .model import Conditions, TinyUso
from .muon import Muon
from .precision import autocast
from .sampling import DEFAULT_STEPS, follow
from .sampling import times as schedule
from .text import read_words
from .train import load_model
from .vae import gradient_loss, measure_psnr

log = logging.getLogger(__name__)

MISTAKEN, OWN = 1536, 512  # latents of each kind that are drawn once, and their batches
DRAWN = 32
KIND_CHANCE = {"target": 0.6, "plain": 0.15, "style": 0.15, "content": 0.1}
FEWEST_STEPS, MOST_STEPS = 4, 11  # of 16, that lead to a mistaken one: from times of 0.34 to 0.77
GUIDANCE = (3.0, 5.0)
BATCH = {"clean": 2, "mistaken": 4, "own": 2}
NOISE = 0.1  # on clean latents, normalised
COARSE = 8  # pixels, beside the decoder before
ADVERSARIAL, LOOKS, ANCHOR = 0.3, 1.0, 2.0  # weights beside the reconstruction's
MUON_RATE, ADAM_RATE, CRITIC_RATE = 1e-3, 3e-4, 4e-4
AVERAGE_DECAY = 0.998
PERCEIVER_SEED, PERCEIVER_STEPS = 5, 600


class PatchCritic(nn.Module):
    """Whether patches of 78 pixels are rendered: (B, 3, H, W) -> (B, 1, H / 16, W / 16), above 0 for yes."""

    def __init__(self) -> None:
        super().__init__()
        widths, layers = (3, 32, 64, 128, 128), []
        for into, out in zip(widths, widths[1:], strict=False):
            layers += [spectral_norm(nn.Conv2d(into, out, 4, 2, 1)), nn.LeakyReLU(0.2, inplace=True)]
        self.body = nn.Sequential(*layers, spectral_norm(nn.Conv2d(widths[-1], 1, 3, 1, 1)))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.body(pixels)


class Looks(nn.Module):
    """How differently two images look to a frozen measuring network, at four scales (Zhang et al., 2018)."""

    def __init__(self, perceiver: Measurer) -> None:
        super().__init__()
        near = perceiver.near
        self.scales = nn.ModuleList([near[:3], near[3:7], near[7:], perceiver.far]).eval().requires_grad_(False)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """(B, 3, 128, 128) each, in [-1, 1] -> the mean distance of normalised features."""
        total = a.new_zeros(())
        for scale in self.scales:
            a, b = scale(a), scale(b)
            total = total + (F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(1).mean()
        return total


@torch.no_grad()
def draw_latents(model: TinyUso, store: RecordStore, rng: np.random.Generator, own: bool) -> dict[str, torch.Tensor]:
    """`DRAWN` square latents (N, 16, 16, 16) that the model draws, and whose they are: shard's seed, number, kind (N,).

    A target is asked for with its style image, half of the time; everything else by words alone.
    """
    shard = store.draw_shard(rng, square_chance=1.0)
    numbers = rng.integers(shard.count, size=DRAWN)
    kind = str(rng.choice(list(KIND_CHANCE), p=list(KIND_CHANCE.values())))
    kinds = [kind] * DRAWN
    styled = kind == "target" and rng.random() < 0.5
    prompts = []
    for number in numbers:
        record = shard.record(int(number))
        technique = record.style if kind in ("target", "style") and not styled else None
        prompts.append(world.write_prompt(rng, record.shown(kind), technique, 0.9))
    levels = schedule(DEFAULT_STEPS, shard.height, shard.width)
    if not own:
        levels = levels[-1 - int(rng.integers(FEWEST_STEPS, MOST_STEPS + 1)) :]
    clean = store.latent(shard, kinds, numbers).float()
    start = (1 - levels[0]) * clean + levels[0] * torch.randn_like(clean)
    with autocast("cpu"):
        text, pooled = model.encode_text(read_words(prompts))
        pictures = store.pictures(shard, ["style"] * DRAWN, numbers, rng)[:, None]
        style = model.encode_style(pictures) if styled else None
        guidance = torch.full((DRAWN,), rng.uniform(*GUIDANCE))
        latents = follow(model, start, levels, guidance, Conditions(text, pooled, style, None, adapted=True))
    return {
        "latents": latents.half(),
        "shard": torch.full((DRAWN,), shard.first_seed),
        "number": torch.from_numpy(numbers),
        "kind": torch.full((DRAWN,), list(KIND_CHANCE).index(kind)),
    }


def draw_bank(run: Path, store: RecordStore, mistaken: int, own: int) -> dict[str, torch.Tensor]:
    """The mistaken latents and, behind them, the own ones: drawn once, kept in RUN/mistakes.safetensors."""
    path = run / "mistakes.safetensors"
    if not path.exists():
        model, parts = load_model(run / "joint.safetensors"), []
        for batch in range((mistaken + own) // DRAWN):
            parts.append(draw_latents(model, store, checkpoint.chance(7, batch), own=batch >= mistaken // DRAWN))
            if batch % 8 == 7:
                log.info("drew %d of %d latents", (batch + 1) * DRAWN, mistaken + own)
        bank = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        checkpoint.save_tensors(path, bank, {"mistaken": mistaken // DRAWN * DRAWN})
    return checkpoint.load_tensors(path)


def load_perceiver(run: Path, steps: int) -> Measurer:
    """The run's own second measuring network, trained where it is missing."""
    path = run / "perceiver.safetensors"
    if not path.exists():
        save_measurer(path, train_measurer(run, steps, seed=PERCEIVER_SEED), {"steps": steps})
    return load_measurer(path)


class DecoderTraining:
    """One run of the stage."""

    def __init__(
        self, run: Path, steps: int, store: RecordStore, perceiver: Measurer, bank: dict[str, torch.Tensor]
    ) -> None:
        self.run, self.steps, self.store, self.bank = run, steps, store, bank
        self.mistaken = int(checkpoint.read_facts(run / "mistakes.safetensors")["mistaken"])
        self.pictures = {
            (shard.first_seed, kind): open_pictures(run / "records", shard, kind)
            for shard in store.shards
            for kind in KIND_CHANCE
        }
        torch.manual_seed(0)
        self.vae = load_vae(run).to(memory_format=torch.channels_last)
        use_fast_groupnorm(self.vae)
        self.vae.encoder.requires_grad_(False)
        self.before = copy.deepcopy(self.vae.decoder).requires_grad_(False)
        self.average = copy.deepcopy(self.vae.decoder).requires_grad_(False)
        self.critic, self.looks = PatchCritic().to(memory_format=torch.channels_last), Looks(perceiver)
        kernels = [p for name, p in self.vae.decoder.named_parameters() if p.dim() == 4 and name != "conv_out.weight"]
        rest = [p for p in self.vae.decoder.parameters() if all(p is not kernel for kernel in kernels)]
        self.optimizers: dict[float, torch.optim.Optimizer] = {  # by their full rates
            MUON_RATE: Muon(kernels, lr=MUON_RATE),
            ADAM_RATE: torch.optim.AdamW(rest, lr=ADAM_RATE, betas=(0.9, 0.99), weight_decay=0.0),
            CRITIC_RATE: torch.optim.AdamW(self.critic.parameters(), lr=CRITIC_RATE, betas=(0.5, 0.99)),
        }
        self.step = 0
        self.resume()

    def resume(self) -> None:
        """Take up the last checkpoint, if there is one."""
        state = checkpoint.load_state(self.run / "decoder_state.pt")
        if state is None:
            return
        for name, module in self._modules().items():
            module.load_state_dict(state[name])
        for optimizer, saved in zip(self.optimizers.values(), state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = state["step"]
        log.info("resumed at step %d", self.step)

    def save(self) -> None:
        """Everything that `resume` needs."""
        state = {name: module.state_dict() for name, module in self._modules().items()}
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers.values()]
        checkpoint.save_state(self.run / "decoder_state.pt", {**state, "optimizers": optimizers, "step": self.step})

    def _modules(self) -> dict[str, nn.Module]:
        return {"decoder": self.vae.decoder, "before": self.before, "average": self.average, "critic": self.critic}

    def draw(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised latents (B, 16, 16, 16), own ones last, and the right pixels (B - own, 3, 128, 128)."""
        shard = self.store.draw_shard(rng, square_chance=1.0)
        numbers = rng.integers(shard.count, size=BATCH["clean"])
        kinds = [str(kind) for kind in rng.choice(list(KIND_CHANCE), size=len(numbers), p=list(KIND_CHANCE.values()))]
        latents = self.store.latent(shard, kinds, numbers).float()
        latents = [latents + NOISE * torch.randn_like(latents)]
        shown = [self.pictures[shard.first_seed, kind][number] for kind, number in zip(kinds, numbers, strict=True)]
        chosen = torch.from_numpy(rng.integers(self.mistaken, size=BATCH["mistaken"]))
        latents.append(self.bank["latents"][chosen].float())
        for row in chosen.tolist():
            shard_seed, number, kind = (int(self.bank[name][row]) for name in ("shard", "number", "kind"))
            shown.append(self.pictures[shard_seed, list(KIND_CHANCE)[kind]][number])
        own = rng.integers(self.mistaken, len(self.bank["latents"]), size=BATCH["own"])
        latents.append(self.bank["latents"][torch.from_numpy(own)].float())
        return torch.cat(latents).contiguous(memory_format=torch.channels_last), to_pixels(np.stack(shown))

    def train_step(self) -> dict[str, float]:
        """One update of decoder and critic."""
        rng = checkpoint.chance(0, self.step)
        factor = min(1.0, (self.step + 1) / 40) * min(1.0, (1 - self.step / self.steps) / 0.5)
        for rate, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        latents, pixels = self.draw(rng)
        latents = latents / self.vae.config.scaling_factor + self.vae.config.shift_factor
        with autocast("cpu"):
            result = self.vae.decoder(latents)
            with torch.no_grad():
                before = self.before(latents[-BATCH["own"] :])
        result, known = result.float(), len(pixels)
        parts = {
            "rebuilt": F.l1_loss(result[:known], pixels) + 1.5 * gradient_loss(result[:known], pixels)
            + 0.5 * F.mse_loss(result[:known], pixels),
        }  # fmt: skip
        with autocast("cpu"):
            parts["looks"] = LOOKS * self.looks(result[:known], pixels)
            parts["real"] = -ADVERSARIAL * self.critic(result[BATCH["clean"] :]).float().mean()
        coarse = [F.avg_pool2d(each.float(), COARSE) for each in (result[known:], before)]
        parts["anchor"] = ANCHOR * F.l1_loss(*coarse)
        decoder, critic = list(self.optimizers.values())[:2], self.optimizers[CRITIC_RATE]
        for optimizer in decoder:
            optimizer.zero_grad(set_to_none=True)
        torch.stack(list(parts.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.vae.decoder.parameters(), 1.0)
        for optimizer in decoder:
            optimizer.step()
        critic.zero_grad(set_to_none=True)
        with autocast("cpu"):
            false, true = self.critic(result[BATCH["clean"] :].detach()).float(), self.critic(pixels).float()
        hinge = F.relu(1 + false).mean() + F.relu(1 - true).mean()
        hinge.backward()
        critic.step()
        self.step += 1
        decay = min(AVERAGE_DECAY, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for average, parameter in zip(self.average.parameters(), self.vae.decoder.parameters(), strict=True):
                average.lerp_(parameter, 1 - decay)
        return {name: float(value.detach()) for name, value in {**parts, "critic": hinge}.items()}

    def run_all(self, every: int = 50) -> None:
        """Train to the last step, logging and saving on the way, and put the averaged decoder into the run's VAE."""
        began, first, parts = time.monotonic(), self.step, []
        while self.step < self.steps:
            parts.append(self.train_step())
            if self.step % every == 0 or self.step == self.steps:
                means = {name: round(float(np.mean([part[name] for part in parts])), 4) for name in parts[0]}
                pace = (time.monotonic() - began) / (self.step - first)
                left = {"minutes_left": round(pace * (self.steps - self.step) / 60, 1)}
                log.info("%s", {"step": self.step, **means, **left})
                checkpoint.append_log(self.run / "decoder.jsonl", {"step": self.step, **means, **left})
                self.save()
                parts = []
        self.vae.decoder.load_state_dict(self.average.state_dict())
        checkpoint.save_tensors(self.run / "vae.safetensors", self.vae.state_dict())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Teach the decoder to forgive the model's mistakes.")
    parser.add_argument("--run", type=Path, required=True, help="folder of the run, with joint.safetensors in it")
    parser.add_argument("--steps", type=positive, default=3000)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(2)
    run, store = arguments.run, RecordStore(arguments.run)
    bank = draw_bank(run, store, MISTAKEN, OWN)
    training = DecoderTraining(run, arguments.steps, store, load_perceiver(run, PERCEIVER_STEPS), bank)
    training.run_all()
    held_out = list_shards(run / "records", "held_out")[0]
    log.info("held out: %.2f dB", measure_psnr(training.vae, run, held_out, "cpu"))


if __name__ == "__main__":
    run_command(main)
