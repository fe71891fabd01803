"""Measures the released model on held-out identities, styles and prompts, through the pipeline that users run.

    python -m training.evaluate [--weights weights/uso-tiny] [--count 48]

Writes training/measured.json, whose figures stand beside chance and beside the renderer's own pictures, the table in
training/README.md, and a contact sheet. The tests of meaning read the JSON: they hold its figures against what is
promised, and repeat its `quick` part. So a release is followed by this command; a figure that became clearly worse
stops it unless --accept-worse.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uso_core.catalog.examples import ASPECTS, sides, sides_of_content
from uso_core.catalog.models import EMBEDDED, EMBEDDED_FILES, get_model

from . import eye, world
from .autoencoder import to_pixels
from .command import StageError, run_command
from .judge import CHANCE, LOWER_IS_BETTER, Figures, Judge, relative_outlines
from .measure import MEASURER, accuracy, answers, load_measurer
from .sheet import row, save_sheet
from .trials import MODES, RELEASED, Painter, Trial, make_trial

log = logging.getLogger(__name__)

MEASURED = Path(__file__).parent / "measured.json"
README, MARK = Path(__file__).parent / "README.md", "<!-- figures -->"
ASKED = ("subject", "scene", "technique")  # in every format
QUICK = 4  # trials of each mode that the tests repeat
SHOWN = 8  # pictures of each mode on the sheet
SUREST = 24  # images that are most surely told from rendered ones, and as many that are not
TOLERATED = 0.08  # by how much a share may fall from one release to the next, where many trials tell


def fingerprint(folder: Path) -> str:
    """sha256 over all weights of an embedded model."""
    digest = hashlib.sha256()
    for name in sorted(EMBEDDED_FILES.values()):
        path = folder / name
        digest.update((path / "model.safetensors" if path.is_dir() else path).read_bytes())
    return digest.hexdigest()


def measure_psnr(painter: Painter, trials: Sequence[Trial]) -> float:
    """Mean PSNR in dB of the renderer's pictures through the released VAE."""
    vae, device, values = painter.pipeline.use("vae"), str(painter.pipeline.compute_device), []
    for trial in trials:
        pixels = to_pixels(trial.truth[None], device)
        with torch.inference_mode():
            result = vae.decode(vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)
        values.append(float(-10 * ((result - pixels) / 2).pow(2).mean().log10()))
    return float(np.mean(values))


def measure_formats(painter: Painter, judge: Judge, count: int) -> dict[str, dict[str, dict[str, float | None]]]:
    """Shares of right answers by aspect and mode, in the sizes that the page offers for it."""
    measured: dict[str, dict[str, dict[str, float | None]]] = {}
    for aspect, (across, down) in ASPECTS.items():
        shape = dict(zip(("width", "height"), sides(across, down, painter.model), strict=True))
        *kept, content_size = sides_of_content(across * 100, down * 100, painter.model.content_size, painter.model)
        layout = dict(zip(("width", "height"), kept, strict=True))
        for mode in ("text", "subject", "style", "both", "layout"):
            made, asked = [], {**layout, "content_size": content_size} if mode == "layout" else shape
            trials = [make_trial(mode, number) for number in range(count)]
            for trial in trials:
                if mode == "layout":
                    drawing = world.draw(trial.record.target, asked["height"], asked["width"])
                    trial = replace(trial, content=world.stylise(drawing, world.NO_STYLE))
                made.append(painter.answer(trial, **asked))
            right = accuracy(
                judge.measurer.log_chances(np.stack(made)),
                np.array([answers(trial.record, trial.kind) for trial in trials]),
            )
            measured.setdefault(aspect, {})[mode] = {name: right[name] for name in ASKED}
        log.info("%s %s", aspect, measured[aspect])
    return measured


def evaluate(folder: Path, count: int, sheet: Path, device: str, measurer: Path) -> dict[str, Any]:
    """`count` trials of each mode; draws the sheet and returns the figures.

    Raises ValueError for fewer trials than the tests repeat.
    """
    if count < QUICK:
        raise StageError(f"count is {count}, the least is {QUICK}")
    painter, judge = Painter(folder, device), Judge(load_measurer(measurer))
    metrics: dict[str, Any] = {
        "weights": fingerprint(folder), "count": count, "steps": painter.model.steps,
        "sampler": painter.model.sampler,
        "guidance": painter.model.guidance, "chance": {name: round(value, 3) for name, value in CHANCE.items()},
        "modes": {}, "quick": {},
    }  # fmt: skip
    rows: list[np.ndarray] = []
    answered: list[tuple[Trial, np.ndarray]] = []
    for mode in MODES:
        trials = [make_trial(mode, number) for number in range(count)]
        made = [painter.answer(trial) for trial in trials]
        model, renderer = judge.figures(trials, made), judge.figures(trials, [trial.truth for trial in trials])
        if mode == "layout":
            model["outline_relative"] = relative_outlines(model, renderer)
        metrics["modes"][mode] = {"model": model, "renderer": renderer}
        metrics["quick"][mode] = judge.figures(trials[:QUICK], made[:QUICK])
        log.info("%s %s", mode, model)
        answered += zip(trials, made, strict=True)
        rows += [trial_row(*pair) for pair in zip(trials[:SHOWN], made, strict=False)]
        if mode == "style":
            metrics["vae_psnr_db"] = round(measure_psnr(painter, trials), 2)
    metrics["eye"], told = eye.look(judge.measurer, *zip(*answered, strict=True))
    metrics["own_palettes"] = eye.own_palettes(painter)
    log.info("%s, own palettes %s", metrics["eye"], metrics["own_palettes"])
    metrics["formats"] = measure_formats(painter, judge, max(QUICK, count // 2))
    sheet.parent.mkdir(parents=True, exist_ok=True)
    save_sheet(sheet, rows, columns=len(MODES))
    order = np.argsort(told[0])
    surest = [trial_row(*answered[number]) for number in (*order[:SUREST], *order[::-1][:SUREST])]
    save_sheet(sheet.with_name("eye_sheet.png"), surest, columns=4)
    return metrics


def trial_row(trial: Trial, made: np.ndarray) -> np.ndarray:
    """Content (or first of two style images), style image, answer, the renderer's answer, under the prompt."""
    given = trial.styles if len(trial.styles) == 2 else (trial.content, *(trial.styles or (None,)))
    return row([*given, made, trial.truth], f"{trial.mode}: {trial.prompt or '(empty prompt)'}")


def worse_figures(now: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """The shares that became worse by more than is tolerated and than chance explains, in words."""
    tolerated, found = max(TOLERATED, min(now["count"], before["count"]) ** -0.5), []
    for mode, figures in before["modes"].items():
        for name, old in figures["model"].items():
            new = now["modes"].get(mode, {}).get("model", {}).get(name)
            if old is None or new is None or name.startswith("palette_to"):
                continue
            loss = new - old if name in LOWER_IS_BETTER else old - new
            if loss > tolerated:
                found.append(f"{mode} {name}: {old} -> {new}")
    return found


def table(metrics: dict[str, Any]) -> str:
    """Markdown: one row per figure, the model's (the renderer's) for each mode, shares in percent."""
    modes: dict[str, dict[str, Figures]] = metrics["modes"]
    names = list(dict.fromkeys(name for each in modes.values() for name in each["model"]))
    sampling = f"{metrics['steps']} steps of {metrics['sampler']}, guidance {metrics['guidance']:g}"
    facts = f"{metrics['count']} trials a mode, {sampling}"
    lines = [f"{facts}; VAE {metrics['vae_psnr_db']} dB. In brackets the renderer's own pictures.\n"]
    lines += [f"| | chance | {' | '.join(modes)} |", "|---" * (len(modes) + 2) + "|"]
    for name in names:
        scale = 1 if name.startswith("palette_to") else 100
        cells = [f"{metrics['chance'][name]:.0%}" if name in metrics["chance"] else ""]
        for each in modes.values():
            model, truth = (each[who].get(name) for who in ("model", "renderer"))
            ceiling = "" if truth is None else f" ({truth * scale:.0f})"
            cells.append("" if model is None else f"{model * scale:.0f}{ceiling}")
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_eye_table(metrics), "", *_format_table(metrics)])


def _eye_table(metrics: dict[str, Any]) -> list[str]:
    """What `eye` sees: the Fréchet distance over its floor, and how often the model's images are told from rendered."""
    modes: dict[str, dict[str, float]] = metrics["eye"]
    rows = {
        "Fréchet distance (floor)": [f"{each['distance']:.1f} ({each['floor']:.1f})" for each in modes.values()],
        "told from rendered, alone": [f"{each['told_alone'] * 100:.0f}" for each in modes.values()],
        "told from rendered, of two": [f"{each['told_of_two'] * 100:.0f}" for each in modes.values()],
    }
    lines = [f"By the eye; {metrics['own_palettes']:.0%} of images have their own foreign style image's palette.\n"]
    lines += [f"| | {' | '.join(modes)} |", "|---" * (len(modes) + 1) + "|"]
    return lines + [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]


def _format_table(metrics: dict[str, Any]) -> list[str]:
    formats, model = metrics["formats"], get_model(EMBEDDED)
    modes = list(next(iter(formats.values())))
    lines = [f"| aspect | pixels | {' | '.join(modes)} |", "|---" * (len(modes) + 2) + "|"]
    for aspect, figures in formats.items():
        cells = [" ".join(f"{(figures[mode][name] or 0) * 100:.0f}" for name in ASKED) for mode in modes]
        width, height = sides(*ASPECTS[aspect], model)
        lines.append(f"| {aspect} | {width} x {height} | {' | '.join(cells)} |")
    return [f"By format, half as many trials: right {', '.join(ASKED[:-1])} and {ASKED[-1]}, in percent.\n", *lines]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure a released uso-tiny on held-out trials.")
    parser.add_argument("--weights", type=Path, default=RELEASED, help="folder of the released model")
    parser.add_argument("--count", type=int, default=48, help="trials of each mode")
    parser.add_argument("--to", type=Path, default=MEASURED, help="JSON to write, default: %(default)s")
    parser.add_argument("--sheet", type=Path, default=Path("output/uso-tiny/contact_sheet.png"))
    parser.add_argument("--measurer", type=Path, default=MEASURER)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--accept-worse", action="store_true", help="write figures that are worse than those written")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    metrics = evaluate(arguments.weights, arguments.count, arguments.sheet, arguments.device, arguments.measurer)
    print(table(metrics))
    if arguments.to.exists():
        worse = worse_figures(metrics, json.loads(arguments.to.read_text(encoding="utf-8")))
        if worse and not arguments.accept_worse:
            beside = arguments.sheet.with_name("measured.json")
            beside.write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
            parser.exit(1, "\n".join(["worse than before:", *worse, f"written to {beside} instead"]) + "\n")
    arguments.to.write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    if arguments.to == MEASURED:
        before, _, after = README.read_text(encoding="utf-8").split(MARK)
        README.write_text(MARK.join([before, f"\n{table(metrics)}\n", after]), encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
