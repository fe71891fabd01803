"""The stages of training after the VAE's: what learns in each, from which losses, and how often in which mode.

joint    everything, base and LoRA interleaved
reward   the transformer's biases alone, but for those of queries and keys; most of the time from what the model itself
         draws step by step, as the application has it do: the paper's reward learning, with differentiable answers
shape    all but the text encoders again, a third of the style images being foreign; a third of the time from what the
         model itself draws, which must have the right colours, and which an adversary must take for real
adapter  the same for LoRA and projector alone, on a base that keeps still: a small release
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .batches import SQUARE_CHANCE
from .teacher import LESSONS

# Of the modes of `batches`.
JOINT_CHANCE = {"text": 0.32, "subject": 0.20, "style": 0.14, "both": 0.20, "layout": 0.10, "blend": 0.04}
SHAPE_CHANCE = {"text": 0.34, "subject": 0.16, "style": 0.18, "both": 0.16, "layout": 0.14, "blend": 0.02}
ADAPTER_CHANCE = {"text": 0.30, "subject": 0.08, "style": 0.24, "both": 0.16, "layout": 0.20, "blend": 0.02}
REWARD_CHANCE = {"text": 0.32, "subject": 0.08, "style": 0.22, "both": 0.12, "layout": 0.24, "blend": 0.02}

SHAPE_LOSSES = {"picture": 1.0, **LESSONS, "palette": 1.0, "own likeness": 1.0, "own reading": 0.5, "own doubt": 0.1,
                "own palette": 2.0, "own real": 0.1, "critic": 1.0}  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """One of them."""

    name: str  # of its checkpoints, NAME_state.pt
    learns: Callable[[str], bool]  # by the parameter's name in `TinyUso`
    losses: dict[str, float]  # their weights
    mode_chance: dict[str, float]
    square_chance: float
    guided_share: float  # of the steps that learn guidance at all; the others learn guidance 1, which is none
    adapted_text: float = 1.0  # share of text-only batches with the LoRA on, as the application has it in every mode
    foreign_share: float = 0.0  # of style images in the modes with one
    own_share: float = 0.0  # of the steps that learn from the model's own pictures
    after: tuple[str, ...] = ()  # stages that it may begin at, the latest first
    bits: int | None = None  # significant ones that are kept, for use, of what learns; None: all


def _everything(_name: str) -> bool:
    return True


def _but_words(name: str) -> bool:
    return not name.startswith(("t5.", "clip."))  # whose words are told apart by then


def _adapter(name: str) -> bool:
    return name.startswith(("lora.", "projector."))


def _biases(name: str) -> bool:
    where_to_look = any(part in name for part in ("to_q.", "to_k.", "add_q_", "add_k_"))
    return name.startswith("transformer.") and name.endswith(".bias") and not where_to_look


STAGES = {
    stage.name: stage
    for stage in (
        Stage("joint", _everything, {"picture": 1.0, "words": 0.1, **LESSONS}, JOINT_CHANCE, SQUARE_CHANCE,
              guided_share=0.5, adapted_text=0.5),
        Stage("reward", _biases, {"picture": 1.0, "likeness": 1.0, "reading": 0.5, "own likeness": 1.0,
                                   "own reading": 1.0, "own doubt": 0.2},
              REWARD_CHANCE, square_chance=0.6, guided_share=0.35, own_share=0.6, after=("joint",), bits=4),
        Stage("shape", _but_words, SHAPE_LOSSES, SHAPE_CHANCE, square_chance=0.7, guided_share=0.35, adapted_text=0.9,
              foreign_share=0.35, own_share=0.3, after=("reward", "joint")),
        Stage("adapter", _adapter, {**SHAPE_LOSSES, "reading": 0.25}, ADAPTER_CHANCE, square_chance=0.6,
              guided_share=0.3, foreign_share=0.35, own_share=0.4, after=("shape", "reward", "joint")),
    )
}  # fmt: skip
