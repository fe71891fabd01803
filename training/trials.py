"""Questions put to a released model: a request whose right answer the renderer knows, and the pipeline's answer to it.

Everything is drawn from the number of a trial, so no run folder is needed. Identities and prompts are held out; at odd
numbers the style's palette is one that no training picture has, its strokes are a quarter of the training range finer
or coarser than any seen (`world.draw_style`). Half of the phrasings come from outside the training grammar.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from uso_core.catalog.models import EMBEDDED, EMBEDDED_FILES, get_model
from uso_core.model.pipeline import USOPipeline
from uso_core.runtime.load import assemble
from uso_core.settings import ROOT, Settings

from . import world
from .batches import UNSETTLED_MODES
from .data import HELD_OUT_SEED, SQUARE, Record, make_record, render_record
from .world.prompts import TECHNIQUE_WORDS, name_scene, name_subject

MODES = ("text", "subject", "style", "both", "layout", "blend")
RELEASED = ROOT / "weights" / EMBEDDED
# Phrasings that training never shows; most of their words are unknown to both tokenizers' word lists.
OTHER_FRAMES = (
    "could you paint {subject} {place}, thanks", "my niece dreams about {subject} {place}",
    "{place} we discovered {subject}", "postcard showing {subject} {place}",
)  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One request and its truth; pictures are uint8 (128, 128, 3)."""

    mode: str
    number: int
    record: Record
    prompt: str
    content: np.ndarray | None
    styles: tuple[np.ndarray, ...]
    truth: np.ndarray  # what the renderer makes of the request
    kind: str  # which picture of the record that is

    @property
    def settled(self) -> bool:
        """Whether the renderer's answer has everything at its usual place."""
        return self.mode not in UNSETTLED_MODES

    @property
    def inside(self) -> bool:
        """Whether the style's parameters and palette lie in the training range."""
        return self.number % 2 == 0


@lru_cache(maxsize=512)
def render_number(number: int, settled: bool) -> dict[str, np.ndarray]:
    """The five pictures of a held-out record."""
    records = [make_record(HELD_OUT_SEED + each, "held_out", settled) for each in (number, number ^ 1)]
    return render_record(records[0], records[1], *SQUARE)


def make_trial(mode: str, number: int) -> Trial:
    """The trial of a number in a mode."""
    settled = mode not in UNSETTLED_MODES
    record, pictures = make_record(HELD_OUT_SEED + number, "held_out", settled), render_number(number, settled)
    kind = {"subject": "plain", "blend": "blend"}.get(mode, "target")
    content = {"subject": "content", "both": "content", "layout": "plain"}.get(mode)
    styles: tuple[np.ndarray, ...] = ()
    if mode in ("style", "both", "layout"):
        styles = (pictures["style"],)
    elif mode == "blend":
        styles = (pictures["style"], render_number(number ^ 1, settled)["style"])
    shown = pictures[content] if content else None
    return Trial(mode, number, record, _prompt(mode, number, record), shown, styles, pictures[kind], kind)


def _prompt(mode: str, number: int, record: Record) -> str:
    """Words for the target; text mode names the technique too, layout mode says nothing."""
    rng = np.random.default_rng([number, MODES.index(mode)])
    if mode == "layout":
        return ""
    detail = 0.0 if mode in ("subject", "both") else 1.0
    if number // 2 % 2 == 0:
        return world.write_prompt(rng, record.target, record.style if mode == "text" else None, detail)
    frame = OTHER_FRAMES[int(rng.integers(len(OTHER_FRAMES)))]
    subject, place = name_subject(rng, record.target.subject, detail), name_scene(rng, record.target.scene)
    asked = frame.format(subject=subject, place=place)
    return f"{asked}, {TECHNIQUE_WORDS[record.style.technique][0]} style" if mode == "text" else asked


class Painter:
    """The released model through the ordinary loader and pipeline, at its catalog row's size, steps and guidance.

    In float32, so that every machine makes the same pictures but for rounding.
    """

    def __init__(self, folder: Path = RELEASED, device: str = "cpu") -> None:
        """Raises `WeightsError` where the folder's files are missing or do not fit."""
        paths = {role: folder / name for role, name in EMBEDDED_FILES.items()}
        self.model = get_model(EMBEDDED)
        self.pipeline: USOPipeline = assemble(paths, Settings(device=device, dtype="float32"), self.model)[0]

    def answer(self, trial: Trial, **changes: Any) -> np.ndarray:
        """The model's picture for a trial, uint8 (128, 128, 3)."""
        return self.paint(trial.prompt, trial.content, trial.styles, seed=trial.number, **changes)

    def paint(
        self,
        prompt: str,
        content: np.ndarray | None = None,
        styles: tuple[np.ndarray, ...] = (),
        seed: int = 0,
        **changes: Any,
    ) -> np.ndarray:
        """A picture, uint8 (H, W, 3); `changes` are further arguments of the pipeline."""
        row = self.model
        arguments: dict[str, Any] = {
            "width": row.size, "height": row.size, "num_inference_steps": row.steps, "sampler": row.sampler,
            "guidance_scale": row.guidance, "content_size": row.content_size, "seed": seed, **changes,
        }  # fmt: skip
        shown = None if content is None else Image.fromarray(content)
        return np.asarray(self.pipeline(prompt, shown, [Image.fromarray(s) for s in styles], **arguments).images[0])
