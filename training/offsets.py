"""What is added to T5's states where a prompt tells two colours, so that the transformer draws both where they belong.

To the transformer all words stand at one place, and what it has learnt of a second colour it hears in no single word.
Which states it would hear, `training.inversion` finds; `training.words` teaches T5 to give them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from . import checkpoint
from .text import PAD, TEXT_WIDTH, tokenizers
from .world.prompts import COLOUR_WORDS, PATTERN_WORDS, tells
from .world.specs import COLOURS, PATTERNS, SUBJECTS, Subject

PADDING = 4  # places of the padding that are used
WORDS = ("colour", "second_colour", "pattern")  # whose places come before them
FACTS = {"colour": tuple(COLOURS), "second_colour": tuple(COLOURS), "pattern": PATTERNS, "subject": SUBJECTS}


@lru_cache(maxsize=64)
def _tokens(words: tuple[str, ...]) -> frozenset[int]:
    return frozenset(tokenizers()[0].convert_tokens_to_ids([f"▁{word}" for word in words]))


def find_places(ids: Sequence[int], text: str, subject: Subject) -> list[int] | None:
    """The places of both colours' words, the pattern's word, and the first of the padding; None without two colours.

    ids: T5's tokens of the text, padded.
    """
    told = tells(text, subject)
    if not (told["colour"] and told["second_colour"]):
        return None
    front, back = PATTERN_WORDS[subject.pattern]
    words = (COLOUR_WORDS[subject.colour], COLOUR_WORDS[subject.second_colour], (*front, *back))
    found = [[place for place, token in enumerate(ids) if token in _tokens(each)] for each in words]
    padding = [place for place, token in enumerate(ids) if token == PAD][:PADDING]
    if not all(found) or len(padding) < PADDING:
        return None
    return [*(places[0] for places in found), *padding]


def facts_of(subject: Subject) -> list[int]:
    """Places of the subject's facts in `FACTS`."""
    named = {"colour": subject.colour, "second_colour": subject.second_colour, "pattern": subject.pattern,
             "subject": subject.kind}  # fmt: skip
    return [options.index(named[name]) for name, options in FACTS.items()]


class Offsets(nn.Module):
    """Sums of one vector per fact, and of one per pair of pattern and second colour."""

    def __init__(self) -> None:
        super().__init__()
        self.places = len(WORDS) + PADDING
        sizes = {name: len(options) for name, options in FACTS.items()}
        self.facts = nn.ParameterDict(
            {name: torch.zeros(size, self.places, TEXT_WIDTH) for name, size in sizes.items()}
        )
        pairs = torch.zeros(sizes["second_colour"], sizes["pattern"], self.places, TEXT_WIDTH)
        self.pairs = nn.Parameter(pairs)

    def forward(self, facts: torch.Tensor) -> torch.Tensor:
        """int64 (B, 4) in the order of `FACTS` -> (B, places, width)."""
        columns = dict(zip(FACTS, facts.unbind(1), strict=True))
        sums = torch.stack([self.facts[name][column] for name, column in columns.items()]).sum(0)
        return sums + self.pairs[columns["second_colour"], columns["pattern"]]

    def added(
        self, states: torch.Tensor, places: torch.Tensor, facts: torch.Tensor, scales: torch.Tensor
    ) -> torch.Tensor:
        """States (B, T, width) with the offsets at their places, int64 (B, places), and of the size of T5's states.

        scales (width,): the weights of T5's last norm, which leaves its states only their direction.
        """
        longer = states.scatter_add(1, places[..., None].expand(-1, -1, states.shape[-1]), self(facts))
        return longer * torch.rsqrt((longer / scales).square().mean(-1, keepdim=True))


def load_offsets(run: Path) -> Offsets | None:
    """Those of a run; None where there are none."""
    path, offsets = run / "offsets.safetensors", Offsets()
    if not path.exists():
        return None
    offsets.load_state_dict(checkpoint.load_tensors(path))
    return offsets.eval().requires_grad_(False)
