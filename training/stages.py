"""The stages of training after the VAE's: what learns in each, from which losses, and how often in which mode.

joint    everything, base and LoRA interleaved
adapter  LoRA and projector alone, on a base that keeps still, mostly on formats that are not square
reward   the transformer's biases alone, but for those of queries and keys; most of the time from what the model itself
         draws step by step, as the application has it do: the paper's reward learning, with differentiable answers
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from .teacher import LESSONS

# Modes of `batches`, which see text alone with the LoRA on in every later stage: the application has it fused.
JOINT_CHANCE = {"text": 0.32, "subject": 0.20, "style": 0.14, "both": 0.20, "layout": 0.10, "blend": 0.04}
ADAPTER_CHANCE = {"text": 0.22, "subject": 0.10, "style": 0.24, "both": 0.16, "layout": 0.26, "blend": 0.02}
REWARD_CHANCE = {"text": 0.32, "subject": 0.08, "style": 0.22, "both": 0.12, "layout": 0.24, "blend": 0.02}


@dataclass(frozen=True)
class Stage:
    """One of them."""

    name: str  # of its checkpoints, NAME_state.pt
    learns: Callable[[str, nn.Parameter], bool]  # by the parameter's name in `TinyUso`
    losses: dict[str, float]  # their weights
    mode_chance: dict[str, float]
    square_chance: float
    guided_share: float  # of the steps that learn guidance at all; the others learn guidance 1, which is none
    adapted_text: float = 1.0  # share of text-only batches with the LoRA on
    own_share: float = 0.0  # of the steps that learn from the model's own pictures
    after: tuple[str, ...] = ()  # stages that it may begin at, the latest first
    bits: int | None = None  # significant ones that are kept, for use, of what learns; None: all


def _everything(_name: str, _parameter: nn.Parameter) -> bool:
    return True


def _inside(homes: tuple[str, ...], name: str, _parameter: nn.Parameter) -> bool:
    return name.startswith(homes)


def _vectors(name: str, parameter: nn.Parameter) -> bool:
    where_to_look = any(part in name for part in ("to_q.", "to_k.", "add_q_", "add_k_", "attn.norm_"))
    return name.startswith("transformer.") and parameter.dim() == 1 and not where_to_look


STAGES = {
    stage.name: stage
    for stage in (
        Stage("joint", _everything, {"picture": 1.0, "words": 0.1, **LESSONS}, JOINT_CHANCE, square_chance=0.9,
              guided_share=0.5, adapted_text=0.5),
        Stage("adapter", partial(_inside, ("lora.", "projector.")), {"picture": 1.0, **LESSONS, "reading": 0.5},
              ADAPTER_CHANCE, square_chance=0.4, guided_share=0.35, after=("joint",)),
        Stage("reward", _vectors, {"picture": 1.0, "likeness": 1.0, "reading": 0.5, "own likeness": 1.0,
                                   "own reading": 1.0, "own doubt": 0.2},
              REWARD_CHANCE, square_chance=0.6, guided_share=0.35, own_share=0.6, after=("adapter", "joint"), bits=4),
    )
}  # fmt: skip
