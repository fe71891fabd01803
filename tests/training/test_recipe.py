"""`make train-tiny` calls the stages in order, with flags that they take."""

from __future__ import annotations

import argparse
import importlib
import shlex
import subprocess
import sys
from typing import Any

import pytest

from training.stages import STAGES
from uso_core.settings import ROOT


class Parsed(Exception):
    """Raised in place of the stage's work."""


def commands() -> list[list[str]]:
    """Module and arguments of every stage, as the shell would pass them."""
    made = subprocess.run(["make", "-n", "train-tiny"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = [line for line in made.replace("\\\n", " ").splitlines() if " -m training." in line]
    expanded = [
        subprocess.run(["sh", "-c", f"echo {line}"], capture_output=True, text=True, check=True) for line in lines
    ]
    return [shlex.split(done.stdout)[2:] for done in expanded]


def test_every_stage_takes_its_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    real, found = argparse.ArgumentParser.parse_args, list[argparse.Namespace]()

    def parse(parser: argparse.ArgumentParser, *arguments: Any) -> argparse.Namespace:
        found.append(real(parser, *arguments))
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    asked = commands()
    for module, *arguments in asked:
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        with pytest.raises(Parsed):
            importlib.import_module(module).main()
    stages = [(given.stage, given.steps, given.decay) for given in found if hasattr(given, "stage")]
    assert {stage for stage, _, _ in stages} == set(STAGES)
    steps = [total for _, total, _ in stages]
    assert steps == sorted(set(steps))  # each goes on beyond the one before
    lengths = [total - before for total, before in zip(steps, [0, *steps], strict=False)]
    assert all(0 < decay <= length for (_, _, decay), length in zip(stages, lengths, strict=True))
    for before, (stage, _, _) in zip([None, *stages], stages, strict=False):
        assert before is None or before[0] in STAGES[stage].after
