"""How much more two workers of a Ray cluster make than one, and what the way to a worker costs an image.

    python -m benchmarks.workers [--images 24] [--turns 5] [--steps 16]

Embedded model, one thread a worker. Engines stay loaded and take turns: without a cluster, with one worker, with two.
Two engines without a cluster, each with half of the images, show what the machine itself allows. Prints JSON: medians
of images a minute, ratios within each turn, and by how many seconds an image one worker is slower than no
cluster. Needs `requirements-ray.txt`, and a quiet machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from itertools import chain
from typing import Any

import torch

from benchmarks.tasks import PROMPT
from uso_core.events import Failed, ImageReady
from uso_core.request import GenerationRequest
from uso_core.runtime.engine import Engine
from uso_core.settings import ROOT, Settings

LOCAL, HALF = "local", "half"  # without a cluster; half of the images
WORKERS = (LOCAL, "1", "2")
READY_SECONDS = 300.0


def serve(workers: str, images: int, steps: int) -> None:
    """An engine that makes the images at each line of the standard input, and prints how many seconds it took."""
    settings = Settings(name="uso-tiny", device="cpu", dtype="float32")
    if workers != LOCAL:
        settings = dataclasses.replace(settings, executor="ray", workers=workers)
    engine = Engine(settings)
    request = GenerationRequest(PROMPT, width=128, height=128, steps=steps, seed=1, images=images)
    until = time.monotonic() + READY_SECONDS
    wanted = 1 if workers == LOCAL else int(workers)
    while sum(state is not None for state in engine.status().workers) < wanted and time.monotonic() < until:
        made_by(engine, request)
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        count = made_by(engine, request)
        print(time.perf_counter() - began if count == images else "failed", flush=True)
    engine.close()


def made_by(engine: Engine, request: GenerationRequest) -> int:
    """How many images came."""
    job, count = engine.submit(request), 0
    for event in job.events(READY_SECONDS):
        if event is None or isinstance(event, Failed):
            raise RuntimeError(str(event))
        count += isinstance(event, ImageReady)
    return count


def measure(images: int, turns: int, steps: int) -> dict[str, Any]:
    """All engines in turn."""
    half = _start(LOCAL, images // 2, steps), _start(LOCAL, images // 2, steps)
    teams = {HALF: half, **{workers: (_start(workers, images, steps),) for workers in WORKERS}}
    for engine in chain.from_iterable(teams.values()):
        _read(engine)
    seconds: dict[str, list[float]] = {name: [] for name in teams}
    for _ in range(turns):
        for name, team in teams.items():
            for engine in team:
                assert engine.stdin is not None
                engine.stdin.write("go\n")
                engine.stdin.flush()
            seconds[name].append(max(float(_read(engine)) for engine in team))
    for engine in chain.from_iterable(teams.values()):
        engine.communicate("")
    costs = [(one - local) / images for local, one in zip(seconds[LOCAL], seconds["1"], strict=True)]
    return {
        "images": images,
        "images_a_minute": {each: round(60 * images / statistics.median(seconds[each]), 1) for each in WORKERS},
        "two_workers_over_one": _ratio(seconds["1"], seconds["2"]),
        "two_processes_over_one": _ratio(seconds[LOCAL], seconds[HALF]),
        "overhead_seconds_an_image": round(statistics.median(costs), 4),
        "machine": {"cpus": os.cpu_count(), "torch": torch.__version__},
    }


def _start(workers: str, images: int, steps: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.workers", "--images", str(images), "--steps", str(steps), "--serve"]
    return subprocess.Popen(
        [*command, workers], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )  # fmt: skip


def _ratio(slow: list[float], fast: list[float]) -> dict[str, Any]:
    ratios = [one / other for one, other in zip(slow, fast, strict=True)]
    return {"median": round(statistics.median(ratios), 3), "all": [round(each, 3) for each in ratios]}


def _read(engine: subprocess.Popen[str]) -> str:
    """The next line of ours: Ray prints, too."""
    assert engine.stdout is not None
    for line in engine.stdout:
        if line.strip() == "ready" or line.strip().replace(".", "", 1).isdigit():
            return line.strip()
    raise RuntimeError("An engine ended.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--serve", metavar="WORKERS", choices=WORKERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.images, arguments.steps)
        return
    print(json.dumps(measure(arguments.images, arguments.turns, arguments.steps), indent=1))


if __name__ == "__main__":
    main()
