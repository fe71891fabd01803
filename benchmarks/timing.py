"""Times one image and its stages, and summarises many such samples."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

# The pipeline's methods by the stage that they are. The reference configuration encodes style within its steps.
STAGES = {
    "encode_prompt": "text",
    "encode_style": "style",
    "tokens_of": "style",
    "encode_content": "content",
    "prepare": "prepare",
    "denoise_all": "steps",
    "decode": "decode",
    "to_images": "image",
}


@dataclass
class Sample:
    """One image: who made it, in which mode and when, and what it took."""

    contender: str
    run: str  # "first", "another seed", "fast" or "previews"
    mode: str
    dtype: str
    threads: int
    session: int  # of the process; ratios hold within one
    turn: int  # whose it was, in order, within the session
    seconds: float
    processor_seconds: float  # of all threads together; other programs do not lengthen them
    stages: dict[str, float] = field(default_factory=dict)  # seconds, each without the stages within it
    peak_bytes: int = 0  # allocated on the device, at the most; 0 where that is not known


class Clock:
    """Points in time of a device's work: CUDA events, or the CPU's clock."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"

    def mark(self) -> Any:
        """Now, in the order of the work submitted."""
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: Any, end: Any) -> float:
        """Seconds; on a GPU only after it has been waited for."""
        return start.elapsed_time(end) / 1000 if self._cuda else end - start

    def wait(self) -> None:
        """Waits until all submitted work is done."""
        if self._cuda:
            torch.cuda.synchronize()


class Stages:
    """Times a pipeline's methods while watching them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._spans: list[tuple[str, str | None, Any, Any]] = []  # stage, the one around it, start, end
        self._around: list[str] = []

    @contextmanager
    def watching(self, pipeline: Any) -> Iterator[None]:
        """Brackets each of the pipeline's own methods with two marks."""
        names = [name for name in STAGES if hasattr(pipeline, name)]
        for name in names:
            setattr(pipeline, name, self._timed(STAGES[name], getattr(pipeline, name)))
        try:
            yield
        finally:
            for name in names:
                delattr(pipeline, name)

    def seconds(self) -> dict[str, float]:
        """Seconds of each stage, excluding nested stages."""
        total: dict[str, float] = defaultdict(float)
        for stage, around, start, end in self._spans:
            span = self._clock.between(start, end)
            total[stage] += span
            if around is not None:
                total[around] -= span
        return dict(total)

    def _timed(self, stage: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            around = self._around[-1] if self._around else None
            self._around.append(stage)
            start = self._clock.mark()
            try:
                return method(*args, **kwargs)
            finally:
                self._around.pop()
                self._spans.append((stage, around, start, self._clock.mark()))

        return call


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some numbers."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """At least one value is needed."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(middle, low, high, len(values))


def ratios(samples: Sequence[Sample], baseline: Sequence[Sample], measure: str = "seconds") -> list[float]:
    """How many times faster each sample is than the baseline around it, by "seconds" or "processor_seconds".

    Around it are the baseline's nearest turns before and after, in the same session; the mean of their medians counts.
    A sample with the baseline on only one side gives no ratio.
    """
    turns: dict[tuple[int, int], list[float]] = defaultdict(list)
    for each in baseline:
        turns[each.session, each.turn].append(getattr(each, measure))
    medians = {turn: statistics.median(seconds) for turn, seconds in turns.items()}
    found = []
    for sample in samples:
        same = {turn: seconds for (session, turn), seconds in medians.items() if session == sample.session}
        before = max((turn for turn in same if turn < sample.turn), default=None)
        after = min((turn for turn in same if turn > sample.turn), default=None)
        if before is not None and after is not None:
            found.append((same[before] + same[after]) / 2 / getattr(sample, measure))
    return found
