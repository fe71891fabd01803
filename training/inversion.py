"""Finds text states that make the transformer draw two colours where a prompt tells them: textual inversion.

    python -m training.inversion --run FOLDER [--steps 600]      # writes FOLDER/offsets.safetensors

All networks keep still; `training.offsets` learns (Gal et al., 2022, arXiv 2208.01618, with vectors for facts instead
of one for a thing). One step of three is of the model's own images, drawn from noise up to a step by chance, which the
teacher must read as told, half of them beside a style image: it is what moves a colour. The others are of noised
training images, lest shapes give way to colours: own ones alone had houses with three roofs. Resumes at nothing: it
takes half an hour on one core.
"""

from __future__ import annotations

import argparse
import copy
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from . import checkpoint, world
from .batches import RecordStore
from .command import positive, run_command
from .data import SQUARE, Shard
from .measure import QUESTIONS, UNKNOWN
from .model import Conditions, TinyUso
from .offsets import Offsets, facts_of, find_places
from .sampling import clean_latents, follow, times
from .teacher import MILDEST, Teacher, load_teacher
from .text import read_words
from .train import load_model
from .world.prompts import tells
from .world.specs import COLOUR_TECHNIQUES, Style

log = logging.getLogger(__name__)

BATCH, RATE, WARMUP, AVERAGED = 24, 0.025, 10, 40
OWN_EVERY, OWN_STEPS = 3, 6
WEIGHTS = {"subject": 2.5, "colour": 1.5, "second_colour": 2.5, "pattern": 1.0, "mood": 1.0, "scene": 0.5,
           "technique": 1.0}  # fmt: skip
READING, LIKENESS, IMAGE = 0.5, 4.0, 6.0  # weights in steps of training images
TIME_MEAN = 0.6  # of their logit-normal times
PLAIN = 0.6  # share of prompts that name no technique
STYLED = 0.5  # share of own images beside a style image


@dataclass(frozen=True)
class Asked:
    """Prompts that tell two colours: their offsets' places and facts, int64 (B, places) and (B, 4), and the answers."""

    prompts: list[str]
    places: torch.Tensor
    facts: torch.Tensor
    answers: torch.Tensor  # int64 (B, questions)
    clean: torch.Tensor | None = None  # (B, 16, 16, 16), the training images
    styles: torch.Tensor | None = None  # uint8 (B, 1, 128, 128, 3), the style images


def _prompt(rng: np.random.Generator, shown: world.Picture, style: Style | None) -> tuple[str, list[int]] | None:
    """A prompt and its places, where both colours can be told."""
    if shown.subject.pattern == "plain" or (style is not None and style.technique not in COLOUR_TECHNIQUES):
        return None
    text = world.write_prompt(rng, shown, style)
    places = find_places(read_words([text]).t5[0].tolist(), text, shown.subject)
    return None if places is None else (text, places)


def draw_asked(rng: np.random.Generator, count: int, split: world.specs.Split = "train") -> Asked:
    """Prompts for images that no record holds; what a prompt leaves open has no answer."""
    prompts, places, facts, answers = [], [], [], []
    while len(prompts) < count:
        subject = world.draw_subject(rng, split)
        style = None if rng.random() < PLAIN else world.draw_style(rng)
        shown = world.Picture(subject, world.draw_pose(rng), world.draw_scene(rng))
        if (found := _prompt(rng, shown, style)) is None:
            continue
        truth = {"subject": subject.kind, "colour": subject.colour, "second_colour": subject.second_colour,
                 "pattern": subject.pattern, "scene": shown.scene.kind,
                 "mood": subject.mood if tells(found[0], subject)["mood"] else None,
                 "technique": style.technique if style else None}  # fmt: skip
        prompts.append(found[0])
        places.append(found[1])
        facts.append(facts_of(subject))
        answers.append(
            [UNKNOWN if truth[name] is None else options.index(truth[name]) for name, options in QUESTIONS.items()]
        )
    return Asked(prompts, torch.tensor(places), torch.tensor(facts), torch.tensor(answers))


def _square_shard(rng: np.random.Generator, store: RecordStore) -> Shard:
    shards = [shard for shard in store.shards if (shard.height, shard.width) == SQUARE]
    return shards[int(rng.integers(len(shards)))]


def draw_given(rng: np.random.Generator, count: int, store: RecordStore) -> Asked:
    """Square training images with prompts that tell both their colours."""
    shard, prompts, places, facts, kinds, numbers = _square_shard(rng, store), [], [], [], [], []
    while len(prompts) < count:
        number, plain = int(rng.integers(shard.count)), rng.random() < PLAIN
        record = shard.record(number)
        if (found := _prompt(rng, record.target, None if plain else record.style)) is None:
            continue
        prompts.append(found[0])
        places.append(found[1])
        facts.append(facts_of(record.target.subject))
        kinds.append("plain" if plain else "target")
        numbers.append(number)
    rows = np.array(numbers)
    answers, clean = store.answers(shard, kinds, rows), store.latent(shard, kinds, rows).float()
    return Asked(prompts, torch.tensor(places), torch.tensor(facts), answers, clean)


def draw_styled(rng: np.random.Generator, count: int, store: RecordStore) -> Asked:
    """Prompts that tell both colours, beside style images of every technique: one may leave no colours to be read."""
    shard, prompts, places, facts, numbers, untold = _square_shard(rng, store), [], [], [], [], []
    while len(prompts) < count:
        number = int(rng.integers(shard.count))
        subject = shard.record(number).target.subject
        if (found := _prompt(rng, shard.record(number).target, None)) is None:
            continue
        prompts.append(found[0])
        places.append(found[1])
        facts.append(facts_of(subject))
        numbers.append(number)
        untold.append(not tells(found[0], subject)["mood"])
    rows, kinds = np.array(numbers), ["target"] * count
    answers = store.answers(shard, kinds, rows)
    answers[torch.tensor(untold), list(QUESTIONS).index("mood")] = UNKNOWN
    pictures = store.pictures(shard, ["style"] * count, rows, rng)[:, None]
    return Asked(prompts, torch.tensor(places), torch.tensor(facts), answers, styles=pictures)


class Inversion:
    """The frozen networks, and the losses by which the offsets learn."""

    def __init__(self, model: TinyUso, teacher: Teacher) -> None:
        self.model, self.teacher = model.eval().requires_grad_(False), teacher.eval().requires_grad_(False)
        self.weights = model.adapted_weights()

    def conditions(self, asked: Asked, offsets: Offsets) -> Conditions:
        with torch.no_grad():
            text, pooled = self.model.encode_text(read_words(asked.prompts))
            style = None if asked.styles is None else self.model.encode_style(asked.styles)
        text = offsets.added(text, asked.places, asked.facts, self.model.t5.encoder.final_layer_norm.weight)
        return Conditions(text, pooled, style, None, adapted=True)

    def loss(self, asked: Asked, offsets: Offsets, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """The sum that is minimised, and what the teacher's reading loses by question."""
        given, count = asked.clean, len(asked.prompts)
        conditions = self.conditions(asked, offsets)
        if given is None:
            guidance = torch.full((count,), float(rng.uniform(3, 5)))
            levels = times(OWN_STEPS, *SQUARE)
            last = int(rng.integers(OWN_STEPS))
            with torch.no_grad():
                noisy = follow(self.model, torch.randn(count, 16, 16, 16), levels[: last + 1], guidance, conditions)
            level = torch.full((count, 1, 1, 1), levels[last])
        else:
            guidance = torch.full((count,), float(rng.choice((1.0, 4.0))))
            level = torch.sigmoid(torch.randn(count, 1, 1, 1) + TIME_MEAN)
            noisy = (1 - level) * given + level * torch.randn_like(given)
        velocity = self.model.velocity(noisy, level.flatten(), guidance, conditions, self.weights)
        made = clean_latents(noisy, level.flatten(), velocity)
        read = level * (MILDEST + (1 - MILDEST) * torch.rand(count, 1, 1, 1))
        noise = torch.randn_like(made)
        seen = self.teacher.features((1 - read) * made + read * noise, read.flatten())
        answers, told = self.teacher.answer(seen), dict[str, torch.Tensor]()
        for column, name in enumerate(QUESTIONS):
            if (asked.answers[:, column] != UNKNOWN).any():
                told[name] = F.cross_entropy(answers[name].float(), asked.answers[:, column], ignore_index=UNKNOWN)
        reading = torch.stack([WEIGHTS[name] * each for name, each in told.items()]).sum()
        losses = {name: round(float(each.detach()), 3) for name, each in told.items()}
        if given is None:
            return reading, losses
        with torch.no_grad():
            right = self.teacher.features((1 - read) * given + read * noise, read.flatten())
        likeness = 1 - F.cosine_similarity(seen, right, dim=1).mean()
        return READING * reading + LIKENESS * likeness + IMAGE * F.mse_loss(made, given), losses


def invert(
    model: TinyUso,
    teacher: Teacher,
    store: RecordStore,
    steps: int,
    batch: int = BATCH,
    seed: int = 7,
    start: Offsets | None = None,
) -> Offsets:
    """The averaged offsets after some steps, begun at nothing or at others."""
    inversion, offsets = Inversion(model, teacher), Offsets()
    if start is not None:
        offsets.load_state_dict(start.state_dict())
    with torch.no_grad():
        size = float(model.encode_text(read_words(["a red cat with white dots on the beach"]))[0].pow(2).mean().sqrt())
    average = copy.deepcopy(offsets).requires_grad_(False)
    optimizer = torch.optim.Adam(offsets.parameters(), betas=(0.9, 0.98))
    for step in range(steps):
        rng = checkpoint.chance(seed, step)
        if own := step % OWN_EVERY == 0:
            asked = draw_styled(rng, batch, store) if rng.random() < STYLED else draw_asked(rng, batch)
        else:
            asked = draw_given(rng, batch, store)
        for group in optimizer.param_groups:
            group["lr"] = RATE * size * min(1.0, (step + 1) / WARMUP) * min(1.0, 1.5 * (1 - step / steps))
        loss, losses = inversion.loss(asked, offsets, rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for mean, now in zip(average.parameters(), offsets.parameters(), strict=True):
                mean.lerp_(now, 1 / min(step + 1, AVERAGED))
        if (step + 1) % 10 == 0:
            log.info("step %d of %d (%s): %s", step + 1, steps, "own" if own else "given", losses)
    return average


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Find text states that place two colours.")
    parser.add_argument("--run", type=Path, required=True, help="folder of a run with a teacher")
    parser.add_argument("--steps", type=positive, default=600)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    model, teacher = load_model(arguments.run / "joint.safetensors"), load_teacher(arguments.run)
    offsets = invert(model, teacher, RecordStore(arguments.run), arguments.steps)
    checkpoint.save_tensors(arguments.run / "offsets.safetensors", offsets.state_dict(), {"steps": arguments.steps})


if __name__ == "__main__":
    run_command(main)
