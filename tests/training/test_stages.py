"""Each stage moves what it says, from the losses it says, and goes on where it was stopped."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree, ignore_patterns

import numpy as np
import pytest
import torch

from training import checkpoint
from training.average import average
from training.colours import Colours
from training.teacher import load_teacher
from training.train import load_model
from training.trials import MODES

from .small_run import train


def test_every_mode_trains_and_a_resumed_run_equals_an_uninterrupted_one(run: Path) -> None:
    whole = train(run, 6)
    modes = list(whole.plan.stage.mode_chance)
    losses = [whole.train_step(whole.maker.at(0, whole.step, mode)) for mode in modes]
    assert all(torch.stack(list(parts.values())).isfinite().all() for parts in losses)
    unanswered = [parts["reading"] == 0 for parts in losses]
    assert unanswered == [mode == "blend" for mode in modes]  # no answer is right about a blend
    halves = train(run, 6)
    for mode in modes[:4]:
        halves.train_step(halves.maker.at(0, halves.step, mode))
    halves.save()
    resumed = train(run, 6)
    assert resumed.step == 4
    for mode in modes[4:]:
        resumed.train_step(resumed.maker.at(0, resumed.step, mode))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    for name, value in whole.ema.state_dict().items():
        assert torch.equal(value, resumed.ema.state_dict()[name]), name


def test_the_adapters_own_stage_leaves_the_base_as_it_is(run: Path, tmp_path: Path) -> None:
    own = Path(copytree(run, tmp_path / "run", ignore=ignore_patterns("*.pt")))
    joint = train(own, 6)
    for _ in range(3):
        joint.train_step(joint.maker.at(0, joint.step))
    joint.save()
    before = {part: value.clone() for part, value in joint.model.state_dict().items()}
    stage = train(own, 7, "adapter")
    assert (stage.step, stage.began) == (3, 3)
    for mode in ("text", "both"):
        stage.train_step(stage.maker.at(0, stage.step, mode))
    stage.save()
    resumed = train(own, 7, "adapter")
    assert (resumed.step, resumed.began) == (5, 3)
    for model in (resumed.model, resumed.ema):
        changed = {part.split(".")[0] for part, value in model.state_dict().items() if not value.equal(before[part])}
        assert changed == {"lora", "projector"}
    joint.train_step(joint.maker.at(0, joint.step))
    joint.save()
    assert train(own, 7, "adapter").began == 4


def test_the_reward_stage_moves_nothing_but_biases_and_learns_from_its_own_pictures(run: Path, tmp_path: Path) -> None:
    own = Path(copytree(run, tmp_path / "run", ignore=ignore_patterns("*.pt")))
    train(own, 6).save()
    stage = train(own, 40, "reward")
    for parameter in stage.model.parameters():  # the last layer and the modulations begin as nothing
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    before = {name: value.clone() for name, value in stage.model.state_dict().items()}
    text, layout, blend = (stage.maker.at(0, 0, mode) for mode in ("text", "layout", "blend"))
    assert set(stage.own_losses(text, np.random.default_rng(0))) == {"own reading", "own doubt", "own likeness"}
    assert set(stage.own_losses(layout, np.random.default_rng(0))) == {"own reading", "own likeness"}
    seen = {frozenset(stage.losses(blend, np.random.default_rng(number))) for number in range(8)}
    assert not any(name.startswith("own") for names in seen for name in names)  # nothing is right about a blend
    seen = {frozenset(stage.losses(text, np.random.default_rng(number))) for number in range(8)}
    assert len(seen) == 2  # its own pictures, and given ones
    for _ in range(4):
        stage.train_step(text)
    after = stage.model.state_dict()
    changed = {name for name, value in before.items() if not value.equal(after[name])}
    assert changed
    assert all(name.startswith("transformer.") and name.endswith(".bias") for name in changed)
    stage.save()
    assert train(own, 40, "reward").step == 4
    kept, average = load_model(own / "joint.safetensors").state_dict(), stage.ema.state_dict()
    for name, value in kept.items():
        if name in changed:
            torch.testing.assert_close(value, average[name], rtol=2**-4, atol=0)
            assert not (value.view(torch.int32) & (1 << 20) - 1).any()  # one bit in front, three of 23 behind
        else:
            assert torch.equal(value, average[name]), name


@pytest.mark.parametrize("name", ["shape", "adapter"])
def test_a_later_stage_is_held_to_the_colours_where_a_style_image_asks_for_them(
    run: Path, tmp_path: Path, name: str
) -> None:
    own = Path(copytree(run, tmp_path / "run", ignore=ignore_patterns("*.pt")))
    stage = train(own, 40, name)
    rng = np.random.default_rng(0)
    for mode in MODES:
        batch = stage.maker.at(0, 0, mode)
        assert ("own palette" in stage.own_losses(batch, rng)) == (batch.style is not None), mode
        assert ("palette" in stage.given_losses(batch, rng)) == (batch.style is not None), mode


def test_colours_are_compared_wherever_they_are(run: Path) -> None:
    colours, none = Colours(run), torch.zeros(2)
    one, other = torch.randn(2, 2, 16, 6, 8, generator=torch.Generator().manual_seed(2))
    moved = one.flatten(2)[:, :, torch.randperm(48)].reshape(one.shape)
    assert float(colours(one, moved, none)) < 1e-5 < float(colours(one, other, none))
    brighter = one + torch.linalg.pinv(colours.matrix).sum(0)[:, None, None]  # every channel by one
    lengths = colours.directions.sum(0).abs().mean()
    assert float(colours(one, brighter, none)) == pytest.approx(float(lengths), rel=1e-3)
    assert float(colours(one, other, none + 1)) == 0  # at the beginning of the flow nothing is decided


def test_the_adversary_learns_beside_the_model_and_neither_moves_the_other(run: Path, tmp_path: Path) -> None:
    own = Path(copytree(run, tmp_path / "run", ignore=ignore_patterns("*.pt")))
    stage = train(own, 40, "shape")
    text = stage.maker.at(0, 0, "text")
    drawn = (stage.losses(text, np.random.default_rng(number)) for number in range(20))
    first = next(found for found in drawn if "critic" in found)
    assert float(first["own real"].detach()) == pytest.approx(np.log(2))  # both alike to a judge that knows nothing yet
    doubts = [stage.train_step(text).get("critic") for _ in range(36)]
    told = [float(each) for each in doubts if each is not None]
    assert told[-1] < told[0]
    losses = next(found for found in drawn if "critic" in found)
    judge, last = stage.adversary.judge, stage.model.transformer.proj_out.weight
    learns = (judge.heads.far.verdict.weight, judge.near[0].weight, last)
    seen = {
        name: torch.autograd.grad(losses[name], learns, retain_graph=True, allow_unused=True)
        for name in ("own real", "critic")
    }
    assert (*seen["own real"][:2], seen["critic"][2]) == (None, None, None)
    assert all(gradient.abs().sum() > 0 for gradient in (seen["own real"][2], *seen["critic"][:2]))
    stage.save()
    resumed = train(own, 40, "shape")
    stage.train_step(text)
    resumed.train_step(text)
    for name, value in stage.adversary.judge.state_dict().items():
        assert torch.equal(value, resumed.adversary.judge.state_dict()[name]), name


def test_a_checkpoint_that_is_not_there_does_not_begin_a_run_anew(run: Path) -> None:
    stage = train(run, 6)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        stage.resume(f"{run.name}/joint_plateau.pt")  # its name below the run's folder is asked for


def test_training_asks_for_its_teacher(run: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"training\.teacher"):
        load_teacher(tmp_path)


def test_the_mean_of_two_runs_lies_between_them_and_other_models_have_none(run: Path, tmp_path: Path) -> None:
    runs = [Path(copytree(run, tmp_path / name, ignore=ignore_patterns("*.pt"))) for name in "ab"]
    models = []
    for own, spread in zip(runs, (1.0, 2.0), strict=True):
        training = train(own, 6)
        for parameter in training.ema.parameters():
            torch.nn.init.normal_(parameter, std=spread)
        training.save()
        models.append(training.ema.state_dict())
    assert not torch.equal(models[0]["projector.low_projection.weight"], models[1]["projector.low_projection.weight"])
    average(runs)
    for name, value in load_model(runs[0] / "joint.safetensors").state_dict().items():
        torch.testing.assert_close(value, (models[0][name] + models[1][name]) / 2)
    tensors = checkpoint.load_tensors(runs[1] / "joint.safetensors")
    checkpoint.save_tensors(runs[1] / "joint.safetensors", {"a": next(iter(tensors.values()))}, {"samples": 0})
    with pytest.raises(ValueError, match="different models"):
        average(runs)
