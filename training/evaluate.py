"""Measures a trained uso-tiny on held-out identities, styles and prompts.

    python -m training.evaluate --run FOLDER [--count 64] [--steps 16]

Writes metrics.json (every figure beside chance and beside the renderer's own pictures) and contact_sheet.png. Even
records have styles from the training range, odd ones parameters and palettes outside it.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import world
from .checkpoint import read_facts
from .data import Shard
from .measure import (
    QUESTIONS,
    Measurer,
    accuracy,
    identity_score,
    load_measurer,
    outline_agreement,
    palette_distance,
    truth_table,
)
from .sampling import DEFAULT_GUIDANCE, DEFAULT_STEPS
from .sheet import MODES, Studio, mode_rows, save_sheet
from .train import load_model
from .vae import measure_psnr
from .world.specs import COLOUR_TECHNIQUES, Subject

log = logging.getLogger(__name__)

CANDIDATES = 8  # the right identity among this many of its kind
TRUTH_KIND = {"text": "target", "subject": "plain", "style": "target", "both": "target", "layout": "target"}
SUBJECT_COLUMN, TECHNIQUE_COLUMN = list(QUESTIONS).index("subject"), list(QUESTIONS).index("technique")


class Evaluation:
    """All figures about the pictures of one model."""

    def __init__(self, studio: Studio, measurer: Measurer, numbers: list[int]) -> None:
        self.studio, self.measurer, self.numbers = studio, measurer, numbers
        self.shard: Shard = studio.shard
        self.style_pictures = np.asarray(studio.pictures["style"][numbers])

    def judge(self, mode: str, pictures: np.ndarray) -> dict[str, Any]:
        """Figures for one mode; `pictures` are the model's, or the renderer's for the ceiling."""
        truth = truth_table(self.shard, self.numbers, TRUTH_KIND[mode])
        chances = self.measurer.log_chances(pictures)
        figures: dict[str, Any] = accuracy(chances, truth)
        if mode != "subject":
            right = chances["technique"].argmax(1) == truth[:, TECHNIQUE_COLUMN]
            inside = np.array(self.numbers) % 2 == 0
            figures["technique_in_range"] = round(float(right[inside].mean()), 3)
            figures["technique_out_of_range"] = round(float(right[~inside].mean()), 3)
        if mode in ("subject", "both"):
            figures["identity_of_8"] = self.identity(mode, chances)
        if mode in ("style", "both", "layout"):
            others = truth_table(self.shard, self.numbers, "style")[:, SUBJECT_COLUMN]
            figures["style_subject_leaks"] = round(float((chances["subject"].argmax(1) == others).mean()), 3)
            figures.update(self.palette(pictures))
        if mode == "layout":
            figures["outline_agreement"] = self.outlines(pictures)
        return figures

    def identity(self, mode: str, chances: dict[str, np.ndarray]) -> float:
        """Share of pictures whose identity is told from seven others of its kind; coloured techniques only."""
        right = []
        for position, number in enumerate(self.numbers):
            record = self.shard.record(number)
            if mode == "both" and record.style.technique not in COLOUR_TECHNIQUES:
                continue
            rng = np.random.default_rng(number)
            kind = record.target.subject.kind
            rivals: list[Subject] = [world.draw_subject(rng, "held_out", kind) for _ in range(CANDIDATES - 1)]
            scores = [identity_score(chances, position, who) for who in (record.target.subject, *rivals)]
            right.append(scores[0] > max(scores[1:]))
        return round(float(np.mean(right)), 3)

    def palette(self, pictures: np.ndarray) -> dict[str, float]:
        """Mean palette distance to the own style image and to another record's."""
        other = np.roll(self.style_pictures, 7, axis=0)
        own = [palette_distance(a, b) for a, b in zip(pictures, self.style_pictures, strict=True)]
        far = [palette_distance(a, b) for a, b in zip(pictures, other, strict=True)]
        return {"palette_to_style": round(float(np.mean(own)), 1), "palette_to_other": round(float(np.mean(far)), 1)}

    def outlines(self, pictures: np.ndarray) -> float:
        """Mean agreement of the pictures with the outlines of the content."""
        values = []
        for number, picture in zip(self.numbers, pictures, strict=True):
            drawing = world.draw(self.shard.record(number).target, *picture.shape[:2])
            values.append(outline_agreement(picture, drawing.edges))
        return round(float(np.mean(values)), 3)


def chance_levels() -> dict[str, float]:
    """What guessing would reach."""
    levels = {name: round(1 / len(options), 3) for name, options in QUESTIONS.items()}
    return {**levels, "identity_of_8": 1 / CANDIDATES, "style_subject_leaks": round(1 / 12, 3)}


def evaluate(run: Path, count: int, steps: int, guidance: float, device: str) -> dict[str, Any]:
    """Make `count` pictures per mode, judge them, write metrics.json and contact_sheet.png."""
    studio = Studio(load_model(run / "joint.safetensors").to(device), run)
    numbers = list(range(count))
    evaluation = Evaluation(studio, load_measurer(run), numbers)
    psnr = measure_psnr(studio.vae, run, studio.shard, device)
    metrics: dict[str, Any] = {
        "model": read_facts(run / "joint.safetensors"),
        "count": count, "steps": steps, "guidance": guidance,
        "chance": chance_levels(),
        "vae_psnr_db": round(psnr, 2),
        "modes": {},
    }  # fmt: skip
    rows: list[np.ndarray] = []
    for mode in MODES:
        prompts = studio.prompts(mode, numbers)
        made = studio.make(mode, numbers, prompts, steps=steps, guidance=guidance)
        truth = np.asarray(studio.pictures[TRUTH_KIND[mode]][numbers])
        metrics["modes"][mode] = {"model": evaluation.judge(mode, made), "renderer": evaluation.judge(mode, truth)}
        log.info("%s %s", mode, metrics["modes"][mode]["model"])
        rows += mode_rows(studio, mode, numbers[:8], made[:8], prompts[:8])
        (run / "metrics.json").write_text(json.dumps(metrics, indent=1))
    save_sheet(run / "contact_sheet.png", rows, columns=len(MODES))
    return metrics


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure uso-tiny on held-out records.")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--count", type=int, default=64, help="pictures per mode")
    parser.add_argument("--steps", type=int, default=DEFAULT_STEPS)
    parser.add_argument("--guidance", type=float, default=DEFAULT_GUIDANCE)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(2)
    evaluate(arguments.run, arguments.count, arguments.steps, arguments.guidance, arguments.device)


if __name__ == "__main__":
    main()
