"""Batches for the joint training: one mode per batch, so that no sequence needs padding.

mode      conditioned on                          learns to make
text      prompt                                  target, plain, style or content picture (LoRA off)
subject   content image, prompt                   plain or target
style     style image, prompt                     target (or, roles exchanged, the style image from the target)
both      content and style image, prompt         target
layout    plain picture, style image, no prompt   target (sometimes an instruction instead of the style image)
blend     two style images, plain or prompt       blend
In style, both and layout the style image is a foreign one at times: the answer is then the tinted picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from . import world
from .data import LATENT_KINDS, Record, Shard, list_shards, open_pictures
from .latent_cache import latents_path, squash
from .measure import QUESTIONS, UNKNOWN, answers
from .text import Words, read_words
from .world.prompts import disturb, style_instruction, tells

UNSETTLED_MODES = frozenset({"layout", "blend"})  # which know from an image where things stand
# Tokens of one sample at 128 x 128 (32 text, 24 per style image, 64 per picture): a batch has a budget of tokens.
MODE_TOKENS = {"text": 96, "subject": 160, "style": 120, "both": 184, "layout": 184, "blend": 176}
SQUARE_CHANCE = 0.9
EMPTY_PROMPT = 0.1  # of text batches: what "no condition" means, for guidance
DISTURBED_PROMPT = 0.15
VISION_KINDS = ("target", "style", "foreign")
STYLE_OF = {"target": "style", "style": "target", "tinted": "foreign"}  # the style image that asks for a picture


@dataclass(frozen=True)
class Batch:
    """One mode's samples: normalised latents float16, style pictures uint8, small to move to a device."""

    mode: str
    prompts: list[str]
    words: Words
    clean: torch.Tensor  # (B, 16, h, w)
    reference: torch.Tensor | None  # (B, 16, h', w')
    style: torch.Tensor | None  # (B, N, 128, 128, 3)
    answers: torch.Tensor | None  # int64 (B, questions) of `measure.QUESTIONS`; None where there is no right answer
    asked: torch.Tensor | None = None  # bool (B, questions): what the conditions tell; None: everything


class RecordStore:
    """All encoded shards of a split, held in memory so that an accelerator never waits."""

    def __init__(self, run: Path, split: world.specs.Split = "train") -> None:
        folder = run / "records"
        self.shards = [
            shard
            for shard in list_shards(folder, split)
            if all(latents_path(run, shard, kind).exists() for kind in LATENT_KINDS)
        ]
        if not self.shards:
            raise FileNotFoundError(f"{folder}: no encoded {split} records; run training.data and training.vae first")
        self.latents = {
            (shard.name, kind): np.load(latents_path(run, shard, kind))
            for shard in self.shards
            for kind in LATENT_KINDS
        }
        self.vision = {
            (shard.name, kind): squash(np.asarray(open_pictures(folder, shard, kind)))
            for shard in self.shards
            for kind in VISION_KINDS
        }

    def draw_shard(
        self, rng: np.random.Generator, square_chance: float = SQUARE_CHANCE, settled: bool | None = None
    ) -> Shard:
        """A shard by chance, square ones with the given chance; settled or not, where it matters and there are both."""
        shards = [shard for shard in self.shards if settled in (None, shard.settled)] or self.shards
        square = [shard for shard in shards if shard.height == shard.width]
        other = [shard for shard in shards if shard.height != shard.width]
        chosen = (square or other) if rng.random() < square_chance else (other or square)
        return chosen[int(rng.integers(len(chosen)))]

    def latent(self, shard: Shard, kinds: list[str], numbers: np.ndarray) -> torch.Tensor:
        """float16 (B, 16, h, w): of each record the picture of its kind."""
        rows = [self.latents[shard.name, kind][number] for kind, number in zip(kinds, numbers, strict=True)]
        return torch.from_numpy(np.stack(rows))

    @staticmethod
    def answers(shard: Shard, kinds: list[str], numbers: np.ndarray) -> torch.Tensor:
        """int64 (B, questions): what each picture shows."""
        told = [answers(shard.record(int(number)), kind) for kind, number in zip(kinds, numbers, strict=True)]
        return torch.tensor(told)

    def pictures(self, shard: Shard, kinds: list[str], numbers: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
        """uint8 (B, 128, 128, 3): what the vision tower sees, mirrored half of the time."""
        rows = []
        for kind, number in zip(kinds, numbers, strict=True):
            picture = self.vision[shard.name, kind][number]
            rows.append(picture[:, ::-1] if rng.random() < 0.5 else picture)
        return torch.from_numpy(np.stack(rows))


class BatchMaker:
    """Draws batches from a store; a batch depends on the seed and the step alone."""

    def __init__(
        self,
        store: RecordStore,
        token_budget: int,
        mode_chance: dict[str, float],
        square_chance: float = SQUARE_CHANCE,
        foreign_share: float = 0.0,
    ) -> None:
        """foreign_share: of the style images in style, both and layout."""
        self.store, self.token_budget, self.foreign_share = store, token_budget, foreign_share
        self.mode_chance, self.square_chance = mode_chance, square_chance
        self._modes = {"text": self._text, "subject": self._subject, "style": self._style,
                       "both": self._both, "layout": self._layout, "blend": self._blend}  # fmt: skip

    def draw(self, rng: np.random.Generator, mode: str | None = None) -> Batch:
        """A batch by chance, of one shard and so of one format."""
        mode = mode or str(rng.choice(list(self.mode_chance), p=list(self.mode_chance.values())))
        shard = self.store.draw_shard(rng, self.square_chance, mode not in UNSETTLED_MODES)
        numbers = rng.integers(shard.count, size=max(1, self.token_budget // MODE_TOKENS[mode]))
        return self._modes[mode](rng, shard, numbers)

    def at(self, seed: int, step: int, mode: str | None = None) -> Batch:
        """The batch of a step of a run."""
        return self.draw(np.random.default_rng([seed, step, 1]), mode)  # a stream beside that of `chance`

    def stream(self, seed: int, first: int, workers: int) -> Iterator[Batch]:
        """The batches of all steps from `first` on; with workers, drawn ahead by as many forked processes."""
        if workers == 0:
            yield from (self.at(seed, step) for step in count(first))
            return
        loader = DataLoader(
            _Steps(self, seed, first),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=4,
            multiprocessing_context="fork",
        )
        yield from loader

    def _text(self, rng: np.random.Generator, shard: Shard, numbers: np.ndarray) -> Batch:
        square = shard.height == shard.width  # content pictures are always square
        chances = (0.33, 0.4, 0.19, 0.08) if square else (0.35, 0.42, 0.23, 0.0)
        drawn = rng.choice(("target", "plain", "style", "content"), size=len(numbers), p=chances)
        kinds = [str(kind) for kind in drawn]
        prompts = []
        for kind, number in zip(kinds, numbers, strict=True):
            record = shard.record(int(number))
            prompt = self._prompt(rng, record, kind, detail=0.9, name_style=kind in ("target", "style"))
            prompts.append("" if rng.random() < EMPTY_PROMPT else prompt)
        told = self.store.answers(shard, kinds, numbers)
        told[[prompt == "" for prompt in prompts]] = UNKNOWN
        return Batch(
            "text", prompts, read_words(prompts), self.store.latent(shard, kinds, numbers), None, None, told,
            self._asked(shard, prompts, kinds, numbers),
        )  # fmt: skip

    def _subject(self, rng: np.random.Generator, shard: Shard, numbers: np.ndarray) -> Batch:
        kinds = ["target" if rng.random() < 0.35 else "plain" for _ in numbers]
        prompts = [
            self._prompt(rng, shard.record(int(number)), kind, detail=0.3, name_style=kind == "target")
            for kind, number in zip(kinds, numbers, strict=True)
        ]
        reference = self.store.latent(shard, ["content"] * len(numbers), numbers)
        return Batch(
            "subject", prompts, read_words(prompts), self.store.latent(shard, kinds, numbers), reference, None,
            self.store.answers(shard, kinds, numbers),
        )  # fmt: skip

    def _style(self, rng: np.random.Generator, shard: Shard, numbers: np.ndarray) -> Batch:
        made = ["target" if rng.random() < 0.6 else "style" for _ in numbers]
        made = [self._maybe_foreign(rng, kind) for kind in made]
        prompts = [
            self._prompt(rng, shard.record(int(number)), kind, 0.9, kind != "tinted" and rng.random() < 0.1)
            for kind, number in zip(made, numbers, strict=True)
        ]
        pictures = self.store.pictures(shard, [STYLE_OF[kind] for kind in made], numbers, rng)[:, None]
        return Batch(
            "style", prompts, read_words(prompts), self.store.latent(shard, made, numbers), None, pictures,
            self.store.answers(shard, made, numbers), self._asked(shard, prompts, made, numbers),
        )  # fmt: skip

    def _both(self, rng: np.random.Generator, shard: Shard, numbers: np.ndarray) -> Batch:
        made = [self._maybe_foreign(rng, "target") for _ in numbers]
        prompts = [
            self._prompt(rng, shard.record(int(number)), kind, 0.3, kind != "tinted" and rng.random() < 0.1)
            for kind, number in zip(made, numbers, strict=True)
        ]
        return Batch(
            "both", prompts, read_words(prompts),
            self.store.latent(shard, made, numbers),
            self.store.latent(shard, ["content"] * len(numbers), numbers),
            self.store.pictures(shard, [STYLE_OF[kind] for kind in made], numbers, rng)[:, None],
            self.store.answers(shard, made, numbers),
        )  # fmt: skip

    def _layout(self, rng: np.random.Generator, shard: Shard, numbers: np.ndarray) -> Batch:
        instructed = rng.random() < 0.25  # the technique in words only; the palette is then a free choice
        prompts = [style_instruction(rng, shard.record(int(number)).style) if instructed else "" for number in numbers]
        made = ["target" if instructed else self._maybe_foreign(rng, "target") for _ in numbers]
        shown = [STYLE_OF[kind] for kind in made]
        return Batch(
            "layout", prompts, read_words(prompts),
            self.store.latent(shard, made, numbers),
            self.store.latent(shard, ["plain"] * len(numbers), numbers),
            None if instructed else self.store.pictures(shard, shown, numbers, rng)[:, None],
            self.store.answers(shard, made, numbers),
        )  # fmt: skip

    def _blend(self, rng: np.random.Generator, shard: Shard, numbers: np.ndarray) -> Batch:
        kinds = ["style"] * len(numbers)
        pictures = [self.store.pictures(shard, kinds, partner, rng) for partner in (numbers, numbers ^ 1)]
        keep_layout = rng.random() < 0.5
        prompts = [
            "" if keep_layout else self._prompt(rng, shard.record(int(number)), "target", 0.9, False)
            for number in numbers
        ]
        reference = self.store.latent(shard, ["plain"] * len(numbers), numbers) if keep_layout else None
        clean = self.store.latent(shard, ["blend"] * len(numbers), numbers)
        return Batch("blend", prompts, read_words(prompts), clean, reference, torch.stack(pictures, 1), None)

    def _maybe_foreign(self, rng: np.random.Generator, kind: str) -> str:
        """The kind of picture to make, or by chance the one that a foreign style image asks for."""
        return "tinted" if rng.random() < self.foreign_share else kind

    def _prompt(self, rng: np.random.Generator, record: Record, kind: str, detail: float, name_style: bool) -> str:
        text = world.write_prompt(rng, record.shown(kind), record.style if name_style else None, detail)
        return disturb(rng, text) if rng.random() < DISTURBED_PROMPT else text

    @staticmethod
    def _asked(shard: Shard, prompts: list[str], kinds: list[str], numbers: np.ndarray) -> torch.Tensor:
        """bool (B, questions): all but what a prompt without a content image leaves open."""
        rows = []
        for prompt, kind, number in zip(prompts, kinds, numbers, strict=True):
            told = tells(prompt, shard.record(int(number)).shown(kind).subject)
            rows.append([told.get(question, True) for question in QUESTIONS])
        return torch.tensor(rows)


class _Steps(Dataset[Batch]):
    """The steps of a run as a dataset, for torch's loader processes."""

    def __init__(self, maker: BatchMaker, seed: int, first: int) -> None:
        self.maker, self.seed, self.first = maker, seed, first

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, index: int) -> Batch:
        return self.maker.at(self.seed, self.first + index)
