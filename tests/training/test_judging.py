"""Trials, the judge and the eye."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np

from training.evaluate import worse_figures
from training.eye import features, frechet_distance, log_odds, told_alone, told_of_two
from training.judge import Judge, relative_outlines
from training.measure import load_measurer
from training.trials import MODES, make_trial


def test_a_trial_is_repeatable_and_asks_for_what_the_renderer_shows() -> None:
    for mode in MODES:
        trial = make_trial(mode, 5)
        assert np.array_equal(trial.truth, make_trial(mode, 5).truth)
        assert (trial.content is not None) == (mode in ("subject", "both", "layout"))
        assert len(trial.styles) == {"style": 1, "both": 1, "layout": 1, "blend": 2}.get(mode, 0)
        assert (trial.prompt == "") == (mode == "layout")
    assert make_trial("style", 4).inside
    assert not make_trial("style", 5).inside


def test_the_judge_tells_right_answers_from_those_to_other_trials() -> None:
    judge = Judge(load_measurer())
    trials = [make_trial("layout", number) for number in range(12)]
    truths = [trial.truth for trial in trials]
    right, wrong = judge.figures(trials, truths), judge.figures(trials, truths[1:] + truths[:1])
    for name in ("subject", "scene", "technique", "palette_is_the_styles", "identity_of_8"):
        assert right[name] >= wrong[name] + 0.3, name
    assert right["style_subject_leaks"] <= 0.1
    shown = judge.figures(trials, [trial.styles[0] for trial in trials])
    assert shown["style_subject_leaks"] >= 0.8
    assert relative_outlines(right, right) == 1
    assert relative_outlines(wrong, right) < 0.3


def test_the_eye_tells_wrong_images_from_rendered_ones() -> None:
    trials = [make_trial("subject", number) for number in range(16)]
    truths = np.stack([trial.truth for trial in trials])
    numbers = [trial.number for trial in trials]
    smeared = np.stack([cv2.GaussianBlur(truth, (0, 0), 2) for truth in truths])
    measurer = load_measurer()
    seen, wrong = features(measurer, truths), features(measurer, smeared)
    assert abs(frechet_distance(seen, seen)) < 1e-6
    assert frechet_distance(seen[:8], wrong[8:]) > frechet_distance(seen[:8], seen[8:])
    shifted = frechet_distance(seen, seen + 1)
    assert abs(shifted - seen.shape[1]) < 1e-6
    told = log_odds(measurer, numbers, smeared, truths, epochs=20)
    assert told_of_two(told) > 0.9
    same = log_odds(measurer, numbers, truths, truths, epochs=1)
    assert (told_alone(same), told_of_two(same)) == (0.5, 0.5)  # nothing is learnt where nothing differs


def test_a_figure_counts_what_the_prompt_tells() -> None:
    trials = [make_trial("text", number) for number in range(12)]
    pictures = [trial.truth for trial in trials]
    judge = Judge(load_measurer())
    wrong = [replace(trial, prompt="a picture") for trial in trials]
    assert {"colour", "second_colour"} <= set(judge.figures(trials, pictures))
    untold = judge.figures(wrong, pictures)
    assert not {"colour", "second_colour", "mood"} & set(untold)
    assert untold["subject"] == 1.0


def test_a_figure_that_became_worse_is_named() -> None:
    def metrics(technique: float, leaks: float) -> dict[str, Any]:
        figures = {"technique": technique, "style_subject_leaks": leaks, "palette_to_style": 100 * technique}
        return {"count": 400, "modes": {"style": {"model": figures}}}

    assert worse_figures(metrics(0.75, 0.05), metrics(0.8, 0.02)) == []
    assert worse_figures(metrics(0.9, 0.0), metrics(0.5, 0.3)) == []
    found = worse_figures(metrics(0.5, 0.3), metrics(0.8, 0.0))
    assert found == ["style technique: 0.8 -> 0.5", "style style_subject_leaks: 0.0 -> 0.3"]
