"""What 1, 8 or 64 GPUs serve, simulated: python -m benchmarks.queue_simulation [--gpus 1 8 64] [--hours 2]

Requests arrive at random; each worker makes one image at a time, and idle workers take images of the oldest request,
as the engine and `runtime/executors/pool.py` do; the worker is chosen by that module. The seconds are assumptions, not
measurements: no GPU has timed them.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import itertools
import random
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from training.command import positive
from uso_core.catalog.models import get_model
from uso_core.request import GenerationRequest, InputImage
from uso_core.runtime.executors import WorkerState
from uso_core.runtime.executors.pool import Member, chosen, encodings_of

T = TypeVar("T")
PATIENT_SECONDS = 30.0  # for which 95 of 100 visitors shall wait at most, until the first image is begun
ENOUGH = 2000  # requests for one simulation
MODES = {"text": 0.3, "style": 0.25, "subject": 0.25, "both": 0.2}  # shares of requests
COUNTS = {1: 0.6, 2: 0.1, 4: 0.3}  # images of a request, and their shares
CASES = ((0.0, True, 0.0), (0.0, True, 10.0), (0.15, True, 0.0), (0.15, False, 0.0))
MODELS = ("flux-dev", "flux-krea-dev")


@dataclass(frozen=True)
class Load:
    """What is simulated; times in seconds."""

    gpus: int = 8
    requests_an_hour: float = 600.0
    hours: float = 2.0
    affinity: bool = True
    seconds: dict[str, float] = field(
        default_factory=lambda: {"text": 8.0, "style": 9.0, "subject": 12.0, "both": 13.0}
    )
    loading: float = 60.0  # of a model, from the fused cache on a local disk
    encoding: float = 0.4  # of a prompt or an image that the worker has not seen
    other_model: float = 0.0  # share of requests for a second model
    repeats: float = 0.6  # how often a visitor's next request has images of the last one
    lost_each_hours: float = 0.0  # mean time until a worker dies; 0: never
    restart: float = 30.0  # of a worker, before it loads
    seed: int = 1


@dataclass(frozen=True)
class Served:
    """What came of it; times in seconds. `work` is the share of GPU time that went into images."""

    requests: int
    images: int
    median_wait: float
    late_wait: float  # 95 of 100 waited less
    work: float
    loads: int
    losses: int


@dataclass(eq=False)
class _Waiting:
    request: GenerationRequest
    seconds: float
    arrived: float
    left: int
    begun: float | None = None


def simulate(load: Load) -> Served:
    """Serves all requests that arrive within the hours; the same seed gives the same result."""
    draw, order = random.Random(load.seed), itertools.count()
    fate = random.Random(f"{load.seed} fate")  # deaths are drawn apart: arrivals stay the same
    state = WorkerState(get_model("flux-dev"), "", "", None)  # type: ignore[arg-type]  # only whether there is one counts
    workers = [Member(number, up=True, since=0.0) for number in range(load.gpus)]
    deaths = {worker: _lifetime(fate, load) for worker in workers}
    queue: deque[_Waiting] = deque()
    ended: list[_Waiting] = []
    events: list[tuple[float, int, object]] = [(each.arrived, next(order), each) for each in _arrivals(draw, load)]
    images = loads = losses = 0
    worked = 0.0
    now = 0.0
    while events:
        now, _, what = heapq.heappop(events)
        if isinstance(what, _Waiting):
            queue.append(what)
        elif isinstance(what, tuple):  # a worker and the job whose image it made, or lost
            worker, job = what
            worker.busy, worker.since = False, now
            if now >= deaths[worker]:
                deaths[worker] = now + _lifetime(fate, load)
                worker.state, worker.kind = None, None
                worker.known.clear()
        while queue and (idle := [worker for worker in workers if not worker.busy]):
            job = queue[0]
            worker = chosen(idle, job.request) if load.affinity else draw.choice(idle)
            assert worker is not None
            fits, lead = worker.fits(job.request), 0.0
            if fits < 2:
                loads += 1
                lead += load.loading
                worker.known.clear()
            lead += load.encoding * sum(key not in worker.known for key in encodings_of(job.request))
            worker.remember(job.request)
            worker.busy, worker.state = True, state
            job.begun = now if job.begun is None else job.begun
            end = now + lead + job.seconds
            if end > deaths[worker]:  # its image is made elsewhere
                losses += 1
                end = max(deaths[worker], now) + load.restart
                heapq.heappush(events, (end, next(order), (worker, job)))
                continue
            job.left -= 1
            images += 1
            worked += job.seconds
            if not job.left:
                ended.append(queue.popleft())
            heapq.heappush(events, (end, next(order), (worker, job)))
    waits = sorted(job.begun - job.arrived for job in ended if job.begun is not None)
    late = waits[int(0.95 * len(waits))] if waits else 0.0
    share = worked / (load.gpus * max(now, 1.0))
    return Served(len(ended), images, statistics.median(waits or [0.0]), late, share, loads, losses)


def most(load: Load, patience: float = PATIENT_SECONDS) -> Load:
    """The highest rate at which 95 of 100 requests wait less than `patience` seconds, to about 3 %."""
    low, high = 0.0, 3600.0 * load.gpus / min(load.seconds.values())
    while high - low > 0.03 * high:
        middle = (low + high) / 2
        fits = simulate(_at(load, middle)).late_wait <= patience
        low, high = (middle, high) if fits else (low, middle)
    return _at(load, low)


def _at(load: Load, rate: float) -> Load:
    """The load at another rate, for long enough that chance evens out."""
    return dataclasses.replace(load, requests_an_hour=rate, hours=max(load.hours, ENOUGH / max(rate, 1.0)))


def _arrivals(draw: random.Random, load: Load) -> list[_Waiting]:
    made: list[_Waiting] = []
    now, end = 0.0, 3600 * load.hours
    last: GenerationRequest | None = None
    while load.requests_an_hour and (now := now + draw.expovariate(load.requests_an_hour / 3600)) < end:
        mode, count = _one_of(draw, MODES), _one_of(draw, COUNTS)
        model = MODELS[draw.random() < load.other_model]
        fresh = last is None or draw.random() > load.repeats
        content = styles = None
        if mode in ("subject", "both"):
            content = InputImage("c", f"{draw.random()}") if fresh or last is None else last.content
        if mode in ("style", "both"):
            styles = (InputImage("s", f"{draw.random()}"),) if fresh or last is None else last.styles
        request = GenerationRequest(prompt=f"{draw.random()}", content=content, styles=styles or (), model=model)
        last = request
        made.append(_Waiting(request, load.seconds[mode], now, count))
    return made


def _one_of(draw: random.Random, shares: dict[T, float]) -> T:
    return draw.choices(list(shares), list(shares.values()))[0]


def _lifetime(draw: random.Random, load: Load) -> float:
    return draw.expovariate(1 / (3600 * load.lost_each_hours)) if load.lost_each_hours else float("inf")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table: for each number of GPUs the most that they serve, with and without affinity and losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=positive, nargs="+", default=[1, 8, 64])
    parser.add_argument("--hours", type=float, default=2.0)
    arguments = parser.parse_args(argv)
    print(
        "| GPUs | second model | affinity | a worker is lost | requests/h | images/h | median wait | working | loads |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for gpus in arguments.gpus:
        for other, affinity, lost in CASES:
            base = Load(gpus, hours=arguments.hours, affinity=affinity, other_model=other, lost_each_hours=lost)
            found = most(base)
            served = simulate(found)
            print(
                f"| {gpus} | {f'{100 * other:.0f} %' if other else 'none'} | {'yes' if affinity else 'no'} "
                f"| {f'each {lost:g} h' if lost else 'never'} | {found.requests_an_hour:.0f} "
                f"| {served.images / found.hours:.0f} | {served.median_wait:.0f} s | {100 * served.work:.0f} % "
                f"| {served.loads} |"
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
