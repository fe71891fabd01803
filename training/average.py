"""The mean of the weights of several runs, which went on from one model with different chance.

    python -m training.average --runs RUN RUN2 ...   # into RUN/joint.safetensors

Two processes of one thread each draw more samples than one of two, and what chance did to one run the other takes out
(Wortsman et al., "Model soups", arXiv 2203.05482).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from . import checkpoint
from .command import StageError, run_command


def average(runs: list[Path]) -> None:
    """Writes the mean of all runs' joint.safetensors over the first one's.

    Raises `ValueError` where they differ in names or shapes: they are not runs of one model.
    """
    paths = [run / "joint.safetensors" for run in runs]
    models = [checkpoint.load_tensors(path) for path in paths]
    facts = [checkpoint.read_facts(path) for path in paths]
    shapes = [{name: tensor.shape for name, tensor in model.items()} for model in models]
    if any(each != shapes[0] for each in shapes):
        raise StageError("these runs hold different models: average runs that went on from the same one")
    mean = {name: torch.stack([model[name] for model in models]).mean(0) for name in models[0]}
    samples = sum(each["samples"] for each in facts)
    checkpoint.save_tensors(paths[0], mean, {**facts[0], "samples": samples})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Average the weights of several runs.")
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="folders; the first gets the mean")
    average(parser.parse_args().runs)


if __name__ == "__main__":
    run_command(main)
