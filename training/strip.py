"""A strip of real outputs for the documentation: what was given, and what the released model made of it.

    python -m training.strip --to docs/strip.png

Each block is one mode. Which trials are shown is chosen by the judge, not by hand: for every mode the trial, among a
few in techniques that keep colours, whose picture it reads best as what was asked (`--candidates 1` shows the first one
of each instead).
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .command import positive, run_command
from .measure import QUESTIONS, UNKNOWN, Measurer, answers, load_measurer, palette_distance
from .trials import RELEASED, Painter, Trial, make_trial
from .world.specs import COLOUR_TECHNIQUES

log = logging.getLogger(__name__)

SCALE = 2  # crisp, so that every pixel of the model's is seen
SHOWN = ("text", "subject", "style", "both", "layout")
_EDGE, _GAP, _ROW_GAP, _HEAD, _FOOT = 14, 8, 12, 22, 40
_PAPER, _INK, _FAINT = (255, 255, 255), (36, 38, 46), (120, 124, 136)


@dataclass(frozen=True)
class Block:
    """One mode's example."""

    trial: Trial
    made: np.ndarray


def score(measurer: Measurer, trial: Trial, made: np.ndarray) -> float:
    """How well the measuring network reads what was asked: log probabilities, less the palette's distance."""
    chances = measurer.log_chances(made[None])
    truth = answers(trial.record, "plain" if trial.kind == "plain" else "target")
    read = [
        max(float(chances[name][0, right]), -4.0)
        for name, right in zip(QUESTIONS, truth, strict=True)
        if right != UNKNOWN
    ]
    return sum(read) - (palette_distance(made, trial.styles[0]) / 20 if trial.styles else 0)


def choose(painter: Painter, measurer: Measurer, candidates: int, first: int) -> list[Block]:
    """The best of some trials for each mode; a subject or technique is not shown twice where it can be helped."""
    blocks: list[Block] = []
    seen: set[str] = set()
    numbers = count(first)
    for mode in SHOWN:
        tried = []
        while len(tried) < candidates:
            trial = make_trial(mode, next(numbers))
            kind, technique = trial.record.target.subject.kind, trial.record.style.technique
            if technique not in COLOUR_TECHNIQUES:
                continue
            made = painter.answer(trial)
            again = (kind in seen) + (technique in seen and mode != "subject")
            tried.append((score(measurer, trial, made) - 3 * again, trial.number, Block(trial, made)))
        best = max(tried, key=lambda each: each[:2])[2]
        seen |= {best.trial.record.target.subject.kind}
        seen |= {best.trial.record.style.technique} if mode != "subject" else set()
        blocks.append(best)
        log.info("%s: trial %d, %s", mode, best.trial.number, best.trial.prompt or "(no prompt)")
    return blocks


def draw_strip(blocks: Sequence[Block]) -> Image.Image:
    """The blocks in rows, each row with its own captions; RGB."""
    rows = [row for row in (blocks[:3], blocks[3:]) if row]
    side = blocks[0].made.shape[0] * SCALE
    widths = [sum(_width(block, side) for block in row) + _ROW_GAP * 2 * (len(row) - 1) for row in rows]
    step = _HEAD + side + _FOOT + _ROW_GAP
    sheet = Image.new("RGB", (max(widths) + 2 * _EDGE, step * len(rows) - _ROW_GAP + 2 * _EDGE), _PAPER)
    for line, (row, width) in enumerate(zip(rows, widths, strict=True)):
        x = (sheet.width - width) // 2
        for block in row:
            _draw_block(sheet, block, x, _EDGE + line * step, side)
            x += _width(block, side) + 2 * _ROW_GAP
    return sheet


def _cells(block: Block) -> list[tuple[str, np.ndarray]]:
    cells = [("content", block.trial.content)] if block.trial.content is not None else []
    cells += [("style", style) for style in block.trial.styles]
    return [*cells, ("result", block.made)]


def _width(block: Block, side: int) -> int:
    return len(_cells(block)) * (side + _GAP) - _GAP


def _draw_block(sheet: Image.Image, block: Block, x: int, y: int, side: int) -> None:
    draw, left, right = ImageDraw.Draw(sheet), x, x + _width(block, side)
    small, plain = ImageFont.load_default(11), ImageFont.load_default(13)
    for caption, picture in _cells(block):
        strong = caption == "result"
        draw.text((x, y + 3), caption, _INK if strong else _FAINT, small)
        sheet.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST), (x, y + _HEAD))
        if strong:
            box = (x - 2, y + _HEAD - 2, x + side + 1, y + _HEAD + side + 1)
            draw.rectangle(box, outline=_INK, width=2)
        x += side + _GAP
    words = f"“{block.trial.prompt}”" if block.trial.prompt else "(no prompt: the layout is kept)"
    lines = [""]
    for word in words.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, plain) > right - left:
            lines.append(word)
        else:
            lines[-1] = longer
    draw.multiline_text((left, y + _HEAD + side + 4), "\n".join(lines[:2]), _INK, plain, spacing=2)


def save_small(image: Image.Image, path: Path, most_bytes: int = 300_000) -> None:
    """A PNG of at most so many bytes: with as many colours of its own palette as fit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for colours in (256, 192, 128, 96, 64, 48, 32):
        image.quantize(colours, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size <= most_bytes:
            return


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Draw the picture strip of the documentation.")
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=RELEASED)
    parser.add_argument("--candidates", type=positive, default=30, help="trials of each mode to choose from")
    parser.add_argument("--first", type=int, default=200, help="number of the first trial")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    blocks = choose(Painter(arguments.weights), load_measurer(), arguments.candidates, arguments.first)
    save_small(draw_strip(blocks), arguments.to)


if __name__ == "__main__":
    run_command(main)
