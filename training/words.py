"""Gives a run a T5 that tells whose colour a colour is.

    python -m training.words --run FOLDER [--steps 1500]

To the transformer all words stand at one place, and the joint stage's T5 tells a word and hardly its neighbours: so
"a red mug with white dots" and "a white mug with red dots" are one request. But a word that is said twice weighs more.
The new T5 gives the old one's states, and where a prompt tells two colours, the padding behind it echoes some words:
the subject's colour most of all. Where the run has offsets by `training.inversion`, which are found with such a T5, it
adds them there. So the transformer need not learn anything, and T5 alone changes in a release.

It begins as a table of the old states: in the old one attention is saturated, and learns nothing more. Needs no
records, one core for some minutes; changes the joint stage's checkpoint, and so is followed by `training.release`, or
by a stage that leaves T5 alone: `joint` and `shape` would let it forget.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import T5EncoderModel

from . import checkpoint, world
from .command import positive, run_command
from .offsets import FACTS, PADDING, WORDS, Offsets, facts_of, find_places, load_offsets
from .text import PAD, TEXT_TOKENS, Words, build_t5, read_words
from .train import load_model, save_model
from .world.prompts import PATTERN_WORDS, disturb, style_instruction, vocabulary
from .world.specs import Subject

log = logging.getLogger(__name__)

BATCH, TABLE = 64, 24  # prompts of a step; batches of prompts that the table of states is made from
RATE, PLACE_RATE = 2e-3, 1e-2  # the second: of the attention's biases by distance
EMPTY, INSTRUCTED, STREWN, DISTURBED = 0.06, 0.08, 0.12, 0.35  # shares of prompts
ECHOES = ("colour", "pattern")  # what the padding behind a prompt of two colours repeats
PATTERNS = {word for front, back in PATTERN_WORDS.values() for word in (*front, *back)}
NEUTRAL = [word for word in vocabulary() if word not in PATTERNS]  # without them there is one colour at most


def draw_prompt(rng: np.random.Generator) -> tuple[str, Subject]:
    """A prompt as training has them, of a picture that no record holds; or one of words by chance, or none."""
    subject, style, kind = world.draw_subject(rng), world.draw_style(rng), rng.random()
    if kind < EMPTY:
        return "", subject
    if kind < EMPTY + INSTRUCTED:
        return style_instruction(rng, style), subject
    if kind < EMPTY + INSTRUCTED + STREWN:
        words = rng.choice(NEUTRAL, int(rng.integers(1, TEXT_TOKENS)))
        return disturb(rng, " ".join(words)), subject
    shown = world.Picture(subject, world.draw_pose(rng), world.draw_scene(rng))
    text = world.write_prompt(rng, shown, style if rng.random() < 0.3 else None, 0.92)
    for _ in range(int(rng.integers(1, 4)) if rng.random() < DISTURBED else 0):
        text = disturb(rng, text)
    return text, subject


def find_sources(ids: list[int], text: str, subject: Subject) -> list[int]:
    """Whose old state each of the T places has to give: its own, or where the padding echoes, that of a word."""
    sources, places = list(range(len(ids))), find_places(ids, text, subject)
    if places is not None:
        for padding, name in zip(places[len(WORDS) :], ECHOES, strict=False):
            sources[padding] = places[WORDS.index(name)]
    return sources


@dataclass(frozen=True)
class Drawn:
    """Prompts and what T5 has to make of them."""

    words: Words
    sources: torch.Tensor  # int64 (B, T), by `find_sources`
    told: torch.Tensor  # bool (B,): those that tell two colours
    places: torch.Tensor  # int64 (told, places), by `find_places`
    facts: torch.Tensor  # int64 (told, 4), by `facts_of`

    def goal(self, old: T5EncoderModel, offsets: Offsets | None) -> torch.Tensor:
        """The states to give (B, T, width)."""
        states = old(input_ids=self.words.t5).last_hidden_state
        goal = states.gather(1, self.sources[..., None].expand_as(states))
        if offsets is not None and self.told.any():
            scales = old.encoder.final_layer_norm.weight
            goal[self.told] = offsets.added(goal[self.told], self.places, self.facts, scales)
        return goal

    def changed(self) -> torch.Tensor:
        """Bool (B, T): where the goal is not the old state."""
        changed = self.sources != torch.arange(self.sources.shape[1])
        changed[self.told] = changed[self.told].scatter(1, self.places, True)
        return changed


def draw_words(rng: np.random.Generator, count: int) -> Drawn:
    """Prompts by chance."""
    pairs = [draw_prompt(rng) for _ in range(count)]
    words = read_words([text for text, _ in pairs])
    read = list(zip(words.t5.tolist(), pairs, strict=True))
    found = [find_places(ids, *pair) for ids, pair in read]
    places = [each for each in found if each is not None]
    facts = [facts_of(subject) for (_, subject), each in zip(pairs, found, strict=True) if each is not None]
    return Drawn(
        words, torch.tensor([find_sources(ids, *pair) for ids, pair in read]),
        torch.tensor([each is not None for each in found]),
        torch.tensor(places, dtype=torch.long).reshape(len(places), len(WORDS) + PADDING),
        torch.tensor(facts, dtype=torch.long).reshape(len(places), len(FACTS)),
    )  # fmt: skip


@torch.no_grad()
def begin_as_table(old: T5EncoderModel, ids: torch.Tensor, states: torch.Tensor) -> T5EncoderModel:
    """A T5 whose states are the old one's mean ones, with small layers above; ids (N, T), states (N, T, width)."""
    count = old.config.vocab_size
    alone = torch.full((count, ids.shape[1]), PAD)
    alone[:, 3] = torch.arange(count)
    table = old(input_ids=alone).last_hidden_state[:, 3]  # for words that no prompt had
    seen = torch.bincount(ids.flatten(), minlength=count)
    sums = torch.zeros_like(table).index_add_(0, ids.flatten(), states.flatten(0, 1))
    t5 = build_t5(count)
    scales = old.encoder.final_layer_norm.weight
    t5.shared.weight.copy_(torch.where(seen[:, None] > 0, sums / seen.clamp_min(1)[:, None], table) / scales)
    t5.encoder.embed_tokens.weight.copy_(t5.shared.weight)
    t5.encoder.final_layer_norm.weight.copy_(scales)
    deviations = {".o.": 0.03, ".wo.": 0.02, ".q.": 0.05, ".k.": 0.05}
    for name, parameter in t5.named_parameters():
        if parameter.dim() == 2 and "block" in name:
            nn.init.normal_(parameter, std=next((std for part, std in deviations.items() if part in name), 0.09))
    places = t5.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight  # (buckets, heads)
    places.zero_()
    ahead = len(places) // 2  # the first half of the buckets looks back
    for head, bucket in enumerate((1, ahead + 1, 2, ahead + 2)):
        places[bucket, head] = 4.0
    return t5


def train_words(
    old: T5EncoderModel, steps: int, offsets: Offsets | None = None, batch: int = BATCH, seed: int = 6
) -> tuple[T5EncoderModel, dict[str, float]]:
    """The new T5, and of its last batch the errors of its states, as shares of the old states' variance."""
    old = old.eval()
    words = draw_words(checkpoint.chance(seed, 0), TABLE * batch).words
    with torch.no_grad():
        states = old(input_ids=words.t5).last_hidden_state
    variance = states[words.t5 != PAD].var(0).sum()
    torch.manual_seed(seed)
    t5 = begin_as_table(old, words.t5, states).train()
    places = [parameter for name, parameter in t5.named_parameters() if "relative_attention" in name]
    others = [parameter for name, parameter in t5.named_parameters() if "relative_attention" not in name]
    rates, errors = (RATE, PLACE_RATE), dict[str, float]()
    groups = [{"params": group, "lr": rate} for group, rate in zip((others, places), rates, strict=True)]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(steps):
        drawn = draw_words(checkpoint.chance(seed, step + 1), batch)
        with torch.no_grad():
            goal = drawn.goal(old, offsets)
        error = (t5(input_ids=drawn.words.t5).last_hidden_state - goal).pow(2).sum(-1) / variance
        changed, padding = drawn.changed(), drawn.words.t5 == PAD
        parts = {
            "changed": error[changed].mean(),
            "padding": error[padding & ~changed].mean(),
            "words": error[~padding & ~changed].mean(),
        }
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1.0, (step + 1) / 50) * (1 - step / steps)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(parts.values())).sum().backward()
        nn.utils.clip_grad_norm_(t5.parameters(), 1.0)
        optimizer.step()
        errors = {name: round(float(part.detach()), 4) for name, part in parts.items()}
        if (step + 1) % 50 == 0:
            log.info("step %d of %d: %s", step + 1, steps, errors)
    return t5.eval(), errors


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Give a run a T5 that tells whose colour a colour is.")
    parser.add_argument("--run", type=Path, required=True, help="folder of a run after its joint stage")
    parser.add_argument("--steps", type=positive, default=1500)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(2)
    path = arguments.run / "joint_state.pt"
    state = checkpoint.load_state(path)
    if state is None:
        raise FileNotFoundError(f"{path}: no joint stage yet; run training.train or training.published first")
    model = load_model(arguments.run / "joint.safetensors")
    model.t5 = train_words(model.t5, arguments.steps, load_offsets(arguments.run))[0]
    for part in ("model", "ema"):
        state[part] |= {f"t5.{name}": value for name, value in model.t5.state_dict().items()}
    checkpoint.save_state(path, state)
    save_model(arguments.run / "joint.safetensors", model, {"step": state["step"], "samples": state["samples"]})


if __name__ == "__main__":
    run_command(main)
