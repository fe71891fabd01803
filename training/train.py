"""Training of base, LoRA, projector, vision tower and text encoders by flow matching, in the stages of `stages`.

    python -m training.train --run FOLDER --steps N        # trains, or goes on where it was stopped
    python -m training.train --run FOLDER --steps N --decay M   # the last M of N steps anneal the rate to zero
    python -m training.train --run FOLDER --steps N --decay M --stage adapter   # a later stage, on what is there

The paper's three stages (base, style alignment, content-style disentanglement) run interleaved, one mode per batch.
Text-only batches leave the LoRA out, so the base stays a complete text-to-image model, and all saved parts are
separable exactly as USO's are.
"""

from __future__ import annotations

import argparse
import copy
import logging
import signal
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from uso_core.model.latents import pack

from . import checkpoint
from .adversary import Adversary
from .batches import Batch, BatchMaker, RecordStore
from .colours import Colours
from .command import positive, run_command
from .measure import UNKNOWN
from .model import PUBLISHED, Conditions, Shape, TinyUso
from .muon import Muon
from .precision import autocast
from .sampling import clean_latents, follow
from .sampling import times as schedule
from .stages import STAGES, Stage
from .teacher import Lessons, Teacher, load_teacher
from .text import WordLoss, read_words

log = logging.getLogger(__name__)

MUON_RATE, ADAM_RATE, EYES_RATE, CRITIC_RATE = 5e-3, 1.5e-3, 1e-3, 6e-3
WARMUP_STEPS = 100
EMA_DECAY, LOWEST_DECAY = 0.999, 0.95  # at the full rate, and at its end
TIME_MEAN, TIME_SPREAD, TIME_UNIFORM = 0.3, 1.0, 0.1  # logit-normal, and the share drawn evenly
LOWEST_GUIDANCE, HIGHEST_GUIDANCE = 1.0, 7.0
GUIDANCE_GAIN = 0.5  # how much further from the unconditional velocity one unit of guidance leads
GUIDANCE_RESCALE = 0.7  # how far the guided image's contrast is brought back to the unguided one's (arXiv 2305.08891)
OWN_STEPS = 6  # in which the model's own pictures are drawn; the application takes 8
OWN_GUIDANCE = (3.0, 5.0)  # around what the application asks for
LATEST = 0.8  # time from which a prediction must look real; before, there is little to tell what it should show
MATRIX_HOMES = ("transformer_blocks", "encoder.layers", "encoder.block")  # where Muon steps; AdamW does the rest


@dataclass(frozen=True)
class Plan:
    """How long and how."""

    steps: int
    decay: int = 0  # the last steps, in which the rate falls to zero
    token_budget: int = 4608
    guided_from: int = 1_000_000_000  # the step from which guidance is learnt; before, the number is noise
    rate: float = 1.0  # factor on both rates, for other batch sizes
    stage: Stage = STAGES["joint"]
    workers: int = 0  # processes that draw batches ahead
    seed: int = 0


def split_parameters(model: TinyUso) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """What learns: matrices inside blocks (for Muon), and embeddings, norms, projections (for AdamW).

    The LoRA goes with the latter while the matrices that it adds to learn as well.
    """
    alone = not model.transformer.proj_out.weight.requires_grad
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        inside = any(home in name for home in MATRIX_HOMES) and "relative_attention" not in name
        inside = alone if name.startswith("lora.") else inside
        (matrices if inside and parameter.dim() == 2 else rest).append(parameter)
    return matrices, rest


class Training:
    """One run."""

    def __init__(
        self, run: Path, plan: Plan, maker: BatchMaker, teacher: Teacher, device: str, shape: Shape = PUBLISHED
    ) -> None:
        self.run, self.plan, self.maker, self.device = run, plan, maker, device
        torch.manual_seed(plan.seed)
        self.model = TinyUso(shape).to(device)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(plan.stage.learns(name))
        self.ema = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.word_loss = WordLoss(len(self.model.t5_tokenizer), len(self.model.clip_tokenizer)).to(device)
        self.lessons = Lessons(teacher, shape.width).to(device)
        self.lessons.listen(self.model)
        matrices, rest = split_parameters(self.model)
        rest += self.lessons.foretell.parameters()
        self.optimizers: dict[float, torch.optim.Optimizer] = {}  # by their full rates
        if matrices:
            self.optimizers[MUON_RATE] = Muon(matrices, lr=MUON_RATE, weight_decay=0.02)
        self.optimizers[ADAM_RATE] = torch.optim.AdamW(rest, lr=ADAM_RATE, betas=(0.9, 0.97), weight_decay=0.01)
        self.colours = Colours(run).to(device) if "palette" in plan.stage.losses else None
        self.adversary = Adversary(teacher).to(device) if "own real" in plan.stage.losses else None
        if self.adversary is not None:
            judge = self.adversary.judge
            eyes = [*judge.near.parameters(), *judge.far.parameters()]
            self.optimizers[EYES_RATE] = torch.optim.AdamW(eyes, lr=EYES_RATE, betas=(0.5, 0.99))
            heads = judge.heads.parameters()
            self.optimizers[CRITIC_RATE] = torch.optim.AdamW(heads, lr=CRITIC_RATE, betas=(0.5, 0.99))
        self.began = self.step = 0  # `began`: the step at which the rate warmed up
        self.samples = 0

    @property
    def state_name(self) -> str:
        """The checkpoint of this stage."""
        return f"{self.plan.stage.name}_state.pt"

    def resume(self, name: str | None = None) -> None:
        """Take up a checkpoint of the run, if there is one; raises `FileNotFoundError` if none has a given name.

        A later stage begins where the one before it ended, and begins again after that one has gone on. What
        `training.published` wrote has no optimizers: the rate warms up anew.
        """
        state = checkpoint.load_state(self.run / (name or self.state_name))
        if name is not None and state is None:  # at random weights it would soon write over the run's
            raise FileNotFoundError(f"{self.run} has no checkpoint {name}; it is named as it lies in the run's folder")
        begins = False
        stages = self.plan.stage.after if name is None else ()
        earlier = (checkpoint.load_state(self.run / f"{stage}_state.pt") for stage in stages)
        before = next((found for found in earlier if found is not None), None)
        if before is not None:
            begins = state is None or state["began"] != before["step"]
            state = before if begins else state
        if state is None:
            return
        begins = begins or "optimizers" not in state
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["model" if begins else "ema"])
        if "foretell" in state:
            self.lessons.foretell.load_state_dict(state["foretell"])
        self.step, self.samples = state["step"], state["samples"]
        if begins:
            self.began = self.step
        else:
            self.began = state.get("began", 0)
            for optimizer, saved in zip(self.optimizers.values(), state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            if self.adversary is not None:
                self.adversary.load_state_dict(state["adversary"])
        log.info("resumed at step %d, %d samples", self.step, self.samples)

    def save(self, name: str | None = None) -> None:
        """Everything that `resume` needs, and the averaged weights for evaluation and export."""
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers.values()]
        state = {"model": self.model.state_dict(), "ema": self.ema.state_dict(), "optimizers": optimizers,
                 "foretell": self.lessons.foretell.state_dict(),
                 "began": self.began, "step": self.step, "samples": self.samples}  # fmt: skip
        if self.adversary is not None:
            state["adversary"] = self.adversary.state_dict()
        checkpoint.save_state(self.run / (name or self.state_name), state)
        facts = {"step": self.step, "samples": self.samples}
        save_model(self.run / "joint.safetensors", coarse(self.ema, self.plan.stage), facts)

    def rate_factor(self) -> float:
        """Warm-up, a plateau, then linear to zero over the plan's decay."""
        left = self.plan.steps - self.step
        decay = min(1.0, left / self.plan.decay) if self.plan.decay else 1.0
        return min(1.0, (self.step - self.began + 1) / WARMUP_STEPS) * decay

    def conditions(self, model: TinyUso, batch: Batch, adapted: bool = True) -> Conditions:
        """Encode what a batch is conditioned on; `adapted` False leaves the LoRA out, for text-only batches."""
        text, pooled = model.encode_text(batch.words)
        style = None if batch.style is None else model.encode_style(batch.style)
        reference = None if batch.reference is None else batch.reference.to(self.device).float()
        return Conditions(text, pooled, style, reference, adapted)

    def losses(self, batch: Batch, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """What the stage weighs: of the model's own pictures, or of noisy ones of the batch."""
        if batch.answers is not None and rng.random() < self.plan.stage.own_share:
            return self.own_losses(batch, rng)
        return self.given_losses(batch, rng)

    def own_losses(self, batch: Batch, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """The teacher's losses of what the model draws from noise, up to a step by chance; only that one learns.

        A noised picture still shows what it was: there the model can do without what it was asked. What a settled
        record leaves open hardly shows at the teacher's places, so the picture has to be like the right one.
        """
        clean = batch.clean.to(self.device).float()
        count = len(clean)
        levels = schedule(OWN_STEPS, 8 * clean.shape[2], 8 * clean.shape[3])
        last = int(rng.integers(OWN_STEPS))
        guidance = torch.full((count,), rng.uniform(*OWN_GUIDANCE), device=self.device)
        with autocast(self.device):
            conditions = self.conditions(self.model, batch)
            x = follow(self.model, torch.randn_like(clean), levels[: last + 1], guidance, conditions)
            times = x.new_full((count,), levels[last])
            velocity = self.model.velocity(x, times, guidance, conditions)
            seen = self.lessons.look(batch, clean, x, times, velocity, own=True)
            made = clean_latents(x, times, velocity)
            if self.colours is not None and batch.style is not None:
                seen["palette"] = self.colours(made, clean, times)
            if self.adversary is not None and levels[last] <= LATEST:
                told = batch.answers if batch.asked is None else batch.answers.where(batch.asked, UNKNOWN)
                seen |= self.adversary(made, clean, told.to(self.device))
        return {name if name == "critic" else f"own {name}": loss for name, loss in seen.items()}

    def given_losses(self, batch: Batch, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """The teacher's losses, and "picture", the velocity's squared error, guided once the plan says so."""
        count = len(batch.prompts)
        uniform = rng.random(count) < TIME_UNIFORM
        logits = rng.normal(TIME_MEAN, TIME_SPREAD, count)
        drawn = np.where(uniform, rng.random(count), 1 / (1 + np.exp(-logits))).clip(0.001, 0.999)
        times = torch.tensor(drawn, dtype=torch.float32, device=self.device)
        told, guided = self.step >= self.plan.guided_from, rng.random() < self.plan.stage.guided_share
        levels = rng.uniform(LOWEST_GUIDANCE, HIGHEST_GUIDANCE, count)
        if told and not guided:
            levels[:] = LOWEST_GUIDANCE
        guidance = torch.tensor(levels, dtype=torch.float32, device=self.device)
        clean = batch.clean.to(self.device).float()
        noise = torch.randn_like(clean)
        level = times[:, None, None, None]
        noisy = (1 - level) * clean + level * noise
        target = pack(noise - clean)  # (B, S, 64)
        with autocast(self.device):
            if told and guided:
                target = target + self.guidance_offset(batch, noisy, times, guidance)
            adapted = batch.mode != "text" or rng.random() < self.plan.stage.adapted_text
            conditions = self.conditions(self.model, batch, adapted)
            velocity = self.model.velocity(noisy, times, guidance, conditions)
            lessons = self.lessons(batch, clean, noisy, times, velocity)
        losses = {"picture": F.mse_loss(velocity.float(), target), **lessons}
        if self.colours is not None and batch.style is not None:
            losses["palette"] = self.colours(clean_latents(noisy, times, velocity), clean, times)
        if "words" in self.plan.stage.losses:
            losses["words"] = self.word_loss(batch.words, conditions.text, conditions.pooled)
        return losses

    @torch.no_grad()
    def guidance_offset(
        self, batch: Batch, noisy: torch.Tensor, times: torch.Tensor, guidance: torch.Tensor
    ) -> torch.Tensor:
        """What classifier-free guidance would add, by the averaged model at guidance 1: (B, S, 64).

        The unconditional velocity is that of an empty prompt. Without the rescaling, latents of guidance 4 spread by
        1.10 to 1.35 where real ones spread by 1.
        """
        lowest = torch.full_like(guidance, LOWEST_GUIDANCE)
        told = self.ema.velocity(noisy, times, lowest, self.conditions(self.ema, batch))
        text, pooled = self.ema.encode_text(read_words([""] * len(batch.prompts)))
        untold = self.ema.velocity(noisy, times, lowest, Conditions(text, pooled, None, None, adapted=True))
        gain = (GUIDANCE_GAIN * (guidance - LOWEST_GUIDANCE))[:, None, None]
        level = times[:, None, None]
        plain = pack(noisy) - level * told.float()  # the clean latents that this velocity leads to
        guided = plain - level * gain * (told.float() - untold.float())
        factor = plain.std((1, 2), keepdim=True) / guided.std((1, 2), keepdim=True)
        return (plain - guided * (1 - GUIDANCE_RESCALE + GUIDANCE_RESCALE * factor)) / level

    def train_step(self, batch: Batch) -> dict[str, torch.Tensor]:
        """One update; returns the losses. What a mode does not use keeps still."""
        rng = checkpoint.chance(self.plan.seed, self.step)
        factor = self.rate_factor() * self.plan.rate
        for rate, optimizer in self.optimizers.items():
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        losses = self.losses(batch, rng)
        weights = self.plan.stage.losses
        torch.stack([weights[name] * loss for name, loss in losses.items() if name in weights]).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.step += 1
        self.samples += len(batch.prompts)
        self.update_average()
        return {name: loss.detach() for name, loss in losses.items()}

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the averaged weights; a young average follows faster, and all do while the rate falls to zero.

        The average takes out the noise of large steps. Behind small ones it would only lag.
        """
        steady = max(1 - (1 - EMA_DECAY) / max(self.rate_factor(), 1e-6), LOWEST_DECAY)
        decay = min(steady, (1 + self.step) / (10 + self.step))
        for average, parameter in zip(self.ema.parameters(), self.model.parameters(), strict=True):
            if parameter.requires_grad:
                average.lerp_(parameter, 1 - decay)

    def run_all(self, log_every: int = 50, save_minutes: float = 4, sheet_minutes: float = 20) -> None:
        """Train to the plan's last step with logs, checkpoints and contact sheets; asked to end, save and leave."""
        began, first_step, first_sample = time.monotonic(), self.step, self.samples
        saved = drawn = began
        asked_to_end: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda received, _: asked_to_end.append(received))
        losses: dict[str, list[torch.Tensor]] = defaultdict(list)
        batches = self.maker.stream(self.plan.seed, self.step, self.plan.workers)
        while self.step < self.plan.steps and not asked_to_end:
            batch = next(batches)
            for name, loss in self.train_step(batch).items():
                losses[batch.mode if name == "picture" else name].append(loss)
            last = self.step == self.plan.steps or bool(asked_to_end)
            now = time.monotonic()
            if self.step % log_every == 0 or last:
                seconds = now - began
                left = seconds / (self.step - first_step) * (self.plan.steps - self.step) / 60
                means = {mode: round(float(torch.stack(seen).mean()), 3) for mode, seen in sorted(losses.items())}
                losses.clear()
                entry = {"step": self.step, "samples": self.samples, **means, "rate": round(self.rate_factor(), 3),
                         "samples_per_second": round((self.samples - first_sample) / seconds, 1),
                         "minutes_left": round(left, 1)}  # fmt: skip
                log.info("%s", entry)
                checkpoint.append_log(self.run / "joint.jsonl", entry)
            if self.plan.decay and self.step == self.plan.steps - self.plan.decay:
                self.save(self.state_name.replace("state", "plateau"))  # what a longer run should start from
            if now - saved > 60 * save_minutes or last:
                self.save()
                saved = now
            if now - drawn > 60 * sheet_minutes or self.step == self.plan.steps:
                drawn = now
                from .sheet import progress_sheet

                progress_sheet(self.ema, self.run, self.run / f"sheet_{self.step:07d}.png")


@torch.no_grad()
def coarse(model: TinyUso, stage: Stage) -> TinyUso:
    """The model with the stage's bits of what learns in it: less for a repository to store beside the last release."""
    if stage.bits is None:
        return model
    model = copy.deepcopy(model)
    for name, parameter in model.named_parameters():
        if stage.learns(name):
            mantissas, exponents = torch.frexp(parameter)
            parameter.copy_(torch.ldexp((mantissas * 2**stage.bits).round() / 2**stage.bits, exponents))
    return model


def save_model(path: Path, model: TinyUso, facts: dict[str, object]) -> None:
    """All parts in one safetensors file, keys "t5.", "clip.", "siglip.", "projector.", "transformer.", "lora."."""
    checkpoint.save_tensors(path, unshared(model), {"shape": asdict(model.shape), **facts})


def unshared(model: TinyUso) -> dict[str, torch.Tensor]:
    """The state dict with T5's tied embedding once."""
    return {name: value for name, value in model.state_dict().items() if name != "t5.encoder.embed_tokens.weight"}


def load_model(path: Path) -> TinyUso:
    """What `save_model` wrote, ready to evaluate."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no weights yet; run training.train or training.published first")
    facts = checkpoint.read_facts(path)
    model = TinyUso(Shape(**facts["shape"]))
    tensors = checkpoint.load_tensors(path)
    tensors["t5.encoder.embed_tokens.weight"] = tensors["t5.shared.weight"]
    model.load_state_dict(tensors)
    return model.eval()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train uso-tiny jointly in all modes.")
    parser.add_argument("--run", type=Path, required=True, help="folder of the run, with encoded records/ in it")
    parser.add_argument("--steps", type=positive, required=True, help="total, counted from the run's beginning")
    parser.add_argument("--decay", type=int, default=0, help="how many of them anneal the rate to zero at the end")
    parser.add_argument("--guided-from", type=int, default=Plan.guided_from, help="step from which guidance is learnt")
    parser.add_argument("--token-budget", type=positive, default=Plan.token_budget, help="tokens of one batch")
    parser.add_argument("--start", help="checkpoint of the run to go on from (default: the stage's last)")
    parser.add_argument("--stage", choices=STAGES, default="joint", help="what learns, and from what")
    parser.add_argument("--rate", type=float, default=Plan.rate, help="factor on the learning rates")
    parser.add_argument("--workers", type=positive, default=Plan.workers, help="processes that draw batches ahead")
    parser.add_argument("--seed", type=int, default=Plan.seed, help="of all chance; runs of two can be averaged")
    parser.add_argument("--threads", type=positive, default=2, help="of one process on a CPU")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    plan = Plan(arguments.steps, arguments.decay, arguments.token_budget, arguments.guided_from, arguments.rate,
                STAGES[arguments.stage], arguments.workers, arguments.seed)  # fmt: skip
    stage = plan.stage
    maker = BatchMaker(RecordStore(arguments.run), plan.token_budget, stage.mode_chance, stage.square_chance,
                       stage.foreign_share)  # fmt: skip
    training = Training(arguments.run, plan, maker, load_teacher(arguments.run), arguments.device)
    training.resume(arguments.start)
    if arguments.device == "cpu":
        from .fast_blocks import use_fast_blocks

        for model in (training.model, training.ema):
            use_fast_blocks(model.transformer, model.siglip)
    training.run_all()


if __name__ == "__main__":
    run_command(main)
