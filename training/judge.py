"""Figures about pictures that answer trials: what the measuring network sees in them, and what their pixels say.

The same judge looks at the renderer's own answers (`Trial.truth`): that is the ceiling of every figure, since no
measurer is perfect and some techniques hide colours or faces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import world
from .measure import (
    QUESTIONS,
    UNKNOWN,
    Measurer,
    accuracy,
    answers,
    identity_score,
    outline_agreement,
    palette_distance,
)
from .trials import Trial
from .world.prompts import tells
from .world.specs import COLOUR_TECHNIQUES

APART = 50.0  # levels; style images nearer to each other than that cannot be told by their palettes
CANDIDATES = 8  # the right identity among this many of its kind
CHANCE: dict[str, float] = {
    **{name: 1 / len(options) for name, options in QUESTIONS.items()},
    "technique_in_range": 0.1,
    "technique_out_of_range": 0.1,
    "identity_of_8": 1 / CANDIDATES,
    "style_subject_leaks": 1 / 12,
    "style_scene_leaks": 1 / 9,
    "palette_is_the_styles": 0.5,
}
LOWER_IS_BETTER = frozenset({"style_subject_leaks", "style_scene_leaks", "palette_to_style"})
_SUBJECT, _SCENE, _TECHNIQUE = (list(QUESTIONS).index(name) for name in ("subject", "scene", "technique"))
Figures = dict[str, float | None]


class Judge:
    """Looks at the answers to trials of one mode."""

    def __init__(self, measurer: Measurer) -> None:
        self.measurer = measurer

    def figures(self, trials: Sequence[Trial], pictures: Sequence[np.ndarray]) -> Figures:
        """Shares of right answers in 0..1, palette distances in levels of 0..255; None where nothing was asked.

        trials: of one mode; pictures: one uint8 (128, 128, 3) for each.
        """
        mode = trials[0].mode
        chances = self.measurer.log_chances(np.stack(pictures))
        truth = np.array([_asked(trial) for trial in trials])
        if mode == "blend":  # two techniques at once hide what the network was taught to name
            truth[:, [i for i in range(len(QUESTIONS)) if i not in (_SUBJECT, _SCENE)]] = UNKNOWN
        result: Figures = {name: value for name, value in accuracy(chances, truth).items() if value is not None}
        if mode not in ("subject", "blend"):
            right = chances["technique"].argmax(1) == truth[:, _TECHNIQUE]
            inside = np.array([trial.inside for trial in trials])
            result["technique_in_range"] = _share(right[inside])
            result["technique_out_of_range"] = _share(right[~inside])
        if mode in ("subject", "both", "layout"):
            result["identity_of_8"] = _share(self._identities(trials, chances))
        if trials[0].styles:
            result.update(self._palettes(trials, pictures))
        if mode in ("style", "both", "layout"):
            shown = np.array([answers(trial.record, "style") for trial in trials])
            result["style_subject_leaks"] = _share(chances["subject"].argmax(1) == shown[:, _SUBJECT])
            apart = shown[:, _SCENE] != truth[:, _SCENE]
            result["style_scene_leaks"] = _share((chances["scene"].argmax(1) == shown[:, _SCENE])[apart])
        if mode == "layout":
            result.update(self._outlines(trials, pictures))
        return result

    def _identities(self, trials: Sequence[Trial], chances: dict[str, np.ndarray]) -> list[bool]:
        """Whether each identity is told from seven others of its kind; only where the technique keeps colours."""
        right = []
        for position, trial in enumerate(trials):
            if trial.kind == "target" and trial.record.style.technique not in COLOUR_TECHNIQUES:
                continue
            rng = np.random.default_rng(trial.number)
            who = trial.record.target.subject
            rivals = [world.draw_subject(rng, "held_out", who.kind) for _ in range(CANDIDATES - 1)]
            scores = [identity_score(chances, position, each) for each in (who, *rivals)]
            right.append(scores[0] > max(scores[1:]))
        return right

    def _palettes(self, trials: Sequence[Trial], pictures: Sequence[np.ndarray]) -> Figures:
        """Mean distance to the own style images and to those of another trial, and how often the own are nearer."""
        styles = [trial.styles for trial in trials]
        others = styles[len(styles) // 2 :] + styles[: len(styles) // 2]
        own = np.array([_mean_distance(*pair) for pair in zip(pictures, styles, strict=True)])
        far = np.array([_mean_distance(*pair) for pair in zip(pictures, others, strict=True)])
        apart = np.array([_mean_distance(one[0], two) for one, two in zip(styles, others, strict=True)]) > APART
        means = {"palette_to_style": round(float(own.mean()), 1), "palette_to_other": round(float(far.mean()), 1)}
        return {**means, "palette_is_the_styles": _share((own < far)[apart])}

    def _outlines(self, trials: Sequence[Trial], pictures: Sequence[np.ndarray]) -> Figures:
        """Agreement with the content's outlines; beside it that with another trial's, which is its chance level."""
        edges = [world.draw(trial.record.target, *trial.truth.shape[:2]).edges for trial in trials]
        others = edges[1:] + edges[:1]
        own = [outline_agreement(*pair) for pair in zip(pictures, edges, strict=True)]
        far = [outline_agreement(*pair) for pair in zip(pictures, others, strict=True)]
        return {"outline_agreement": round(float(np.mean(own)), 3), "outline_of_another": round(float(np.mean(far)), 3)}


def relative_outlines(model: Figures, renderer: Figures) -> float:
    """How much of the renderer's outline agreement the model reaches, chance taken off both."""
    gained, possible = (
        float(each["outline_agreement"] or 0) - float(each["outline_of_another"] or 0) for each in (model, renderer)
    )
    return round(gained / possible, 3)


def _asked(trial: Trial) -> list[int]:
    """The right answers, UNKNOWN where neither the prompt nor a content image tells what is right."""
    right = answers(trial.record, "plain" if trial.kind == "plain" else "target")
    told = tells(trial.prompt, trial.record.target.subject) if trial.content is None else {}
    return [answer if told.get(name, True) else UNKNOWN for name, answer in zip(QUESTIONS, right, strict=True)]


def _mean_distance(picture: np.ndarray, styles: Sequence[np.ndarray]) -> float:
    return float(np.mean([palette_distance(picture, style) for style in styles]))


def _share(right: Any) -> float | None:
    values = np.asarray(right, float)
    return round(float(values.mean()), 3) if values.size else None
