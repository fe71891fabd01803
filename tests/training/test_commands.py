"""What the stages' commands say where a file lacks or a value cannot be: one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from training import average, inversion, measure, published, release, train, vae
from training.command import run_command


@pytest.mark.parametrize(
    ("command", "line", "said"),
    [(vae, "--run {here} --steps 1", "run training.data first"),
     (measure, "--run {here} --to {here}/measurer.safetensors", "run training.data first"),
     (release, "--run {here}", "run training.train or training.published first"),
     (inversion, "--run {here}", "run training.train or training.published first"),
     (average, "--runs {here} {here}/other", "joint.safetensors"),
     (published, "--run {here} --weights {here}", "no release lies there"),
     (published, "--run {here} --rank 3", "of rank 3 has no room"),
     (published, "--run {here} --rank -3", "-3 is not a number from 1"),
     (train, "--run {here} --steps 0", "0 is not a number from 1"),
     (train, "--run {here} --steps 1", "run training.data and training.vae first")],
)  # fmt: skip
def test_what_its_user_can_mend_is_a_sentence(command, line, said, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["command", *line.format(here=tmp_path).split()])
    with pytest.raises(SystemExit) as ended:
        run_command(command.main)
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert said in error
    assert "Traceback" not in error
    assert not list(tmp_path.glob("*.safetensors"))
