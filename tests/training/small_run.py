"""Training at toy size."""

from __future__ import annotations

from pathlib import Path

import torch

from training.batches import BatchMaker, RecordStore
from training.model import Shape
from training.stages import STAGES
from training.teacher import Teacher
from training.train import Plan, Training

SMALL = Shape(heads=1, head_size=32, doubles=1, singles=1, rank=4)


def train(run: Path, steps: int, stage: str = "joint") -> Training:
    plan = Plan(steps, token_budget=400, guided_from=2, stage=STAGES[stage])
    torch.manual_seed(1)
    maker = BatchMaker(RecordStore(run), plan.token_budget, plan.stage.mode_chance)
    training = Training(run, plan, maker, Teacher(), "cpu", SMALL)
    training.resume()
    return training
