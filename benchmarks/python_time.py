"""What a step costs outside the transformer's blocks: the loop, its bookkeeping, the preview callback."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.tasks import PROMPT, Task
from benchmarks.timing import Spread
from uso_core.model.pipeline import USOPipeline
from uso_core.model.transformer import USOTransformer2DModel
from uso_core.request import Sampling

REPEATS = 20


def without_blocks(pipeline: USOPipeline) -> USOPipeline:
    """The pipeline with a transformer that has embedders and output but no blocks."""
    full = pipeline.transformer
    with torch.device("meta"):
        bare = USOTransformer2DModel.from_config({**full.config, "num_layers": 0, "num_single_layers": 0})
    bare.load_state_dict({name: full.state_dict()[name] for name in bare.state_dict()}, assign=True)
    parts = {**pipeline.components, "transformer": bare}
    return USOPipeline(**parts, **pipeline.constants)


def seconds_outside_blocks(pipeline: USOPipeline, task: Task) -> dict[str, Any]:
    """Milliseconds per step of a transformer without blocks: an upper bound, since it includes two small products."""
    bare = without_blocks(pipeline)
    condition = bare.encode(PROMPT, task.content, task.styles, task.content_size)
    prepared = bare.prepare(condition, Sampling(width=task.size, height=task.size, steps=task.steps))
    seconds = []
    for seed in range(REPEATS + 1):
        start = time.perf_counter()
        with torch.inference_mode():
            bare.denoise_all(prepared, bare.generator(seed), lambda *_: None)
        seconds.append((time.perf_counter() - start) / task.steps * 1000)
    return {"milliseconds": {name: round(value, 4) for name, value in asdict(Spread.of(seconds[1:])).items()}}
