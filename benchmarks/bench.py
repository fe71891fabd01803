"""Times an image, beside the reference configuration in the same process.

    python -m benchmarks.bench                        the embedded model on this CPU
    python -m benchmarks.bench --device cuda          the full-size model with random weights on this GPU
    python -m benchmarks.bench --device cpu --small   what the GPU does, at toy size: a test of these benchmarks

README.md beside this file says what the columns mean.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.ceilings import ceilings
from benchmarks.counts import MODES, STYLE_TOKENS, hoisted
from benchmarks.models import CONTENDERS, FULL, SMALL, Contender, Shape, embedded, planned_card, random_pipeline
from benchmarks.python_time import seconds_outside_blocks
from benchmarks.results import Results, installed, lines, table, this_machine
from benchmarks.tasks import PROMPT, Task, tasks
from benchmarks.timing import Clock, Sample, Stages
from uso_core.catalog.models import EMBEDDED, get_model
from uso_core.errors import UsoError
from uso_core.model import latents
from uso_core.model.pipeline import USOPipeline

log = logging.getLogger(__name__)

RUNS = ("first", "another seed", "fast", "previews")
TURNS_AHEAD = 2.5  # start a turn only if there is time for this many of the longest: it and its baseline


@dataclass
class Bench:
    """A process's part of the results, and how it takes samples."""

    device: torch.device
    results: Results
    path: Path | None
    session: int
    until: float  # on time.monotonic
    turn: int = 0

    @property
    def steps(self) -> int:
        return self.results.settings["steps"]

    @property
    def seconds_left(self) -> float:
        return self.until - time.monotonic()

    def image(self, pipeline: USOPipeline, task: Task, run: str, contender: str, dtype: str) -> Sample:
        """One image, timed."""
        if run != "another seed":
            pipeline.encodings.clear()
        clock = Clock(self.device)
        stages = Stages(clock)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        clock.wait()
        with stages.watching(pipeline):
            start, worked = time.perf_counter(), time.process_time()
            make(pipeline, task, seed=len(self.results.samples), fast=run == "fast", previews=run == "previews")
            clock.wait()
            seconds, worked = time.perf_counter() - start, time.process_time() - worked
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0
        spans = {stage: round(span, 5) for stage, span in stages.seconds().items()}
        sample = Sample(contender, run, task.mode, dtype, torch.get_num_threads(), self.session, self.turn,
                        round(seconds, 5), round(worked, 5), spans, peak)  # fmt: skip
        self.results.samples.append(sample)
        return sample

    def save(self) -> None:
        if self.path is not None:
            self.results.write(self.path)


def make(pipeline: USOPipeline, task: Task, seed: int, fast: bool = False, previews: bool = False, **other: Any) -> Any:
    """The pipeline's answer to a task."""

    def watch(pipeline: USOPipeline, step: int, timestep: torch.Tensor, seen: dict[str, torch.Tensor]) -> None:
        pipeline.preview(seen["denoised"], task.size, task.size)

    (images,) = pipeline(
        PROMPT, task.content, task.styles, task.size, task.size, task.steps, seed=seed, content_size=task.content_size,
        fast=fast, callback_on_step_end=watch if previews else None, return_dict=False, **other,
    )  # fmt: skip
    return images


def check(pipeline: USOPipeline, task: Task) -> None:
    """Makes an untimed image, which warms everything up; raises if the result is not an image."""
    pixels = make(pipeline, task, seed=0, output_type="pt")
    if pixels.float().std() == 0:  # NaN is the pipeline's own error
        raise RuntimeError(f"the image of mode {task.mode!r} is all one value")


def on_processor(bench: Bench, chosen: list[str], rounds: int, dtypes: list[str], threads: list[int]) -> None:
    """Measures the embedded model: contenders alternate image by image, since a CPU is never left alone."""
    model = get_model(EMBEDDED)
    asked = tasks(model.size, model.content_size, bench.steps)
    pipelines = {dtype: embedded(getattr(torch, dtype)) for dtype in dtypes}
    for count, dtype in itertools.product(threads, dtypes):
        torch.set_num_threads(count)
        contenders = pipelines[dtype]
        outside = seconds_outside_blocks(contenders["ours"], asked["content + style"])
        bench.results.python.append({"dtype": dtype, "threads": count, **outside})
        for mode in chosen:
            for pipeline in contenders.values():
                check(pipeline, asked[mode])
    order = [("reference", "first"), ("ours", "first"), ("ours", "another seed"), ("reference", "first"),
             ("ours", "fast"), ("ours", "previews")]  # fmt: skip
    for _ in range(rounds):
        for count, dtype, mode in itertools.product(threads, dtypes, chosen):
            if bench.seconds_left < 0:
                return
            torch.set_num_threads(count)
            for contender, run in [*order, order[0]]:
                bench.image(pipelines[dtype][contender], asked[mode], run, contender, dtype)
                bench.turn += 1
            bench.save()


def with_random_weights(
    bench: Bench, shape: Shape, contenders: Sequence[Contender], chosen: list[str], images: int
) -> None:
    """Measures the GPU's part: one contender at a time on the device, each between two turns of its baseline."""
    longest = 0.0

    def is_time() -> bool:
        return bench.seconds_left > TURNS_AHEAD * longest

    measured = set()
    for contender in turns(contenders, is_time):
        start = time.monotonic()
        try:
            with limit(contender, bench.device):
                one_turn(bench, contender, shape, chosen, images)
        except (UsoError, RuntimeError) as error:  # out of memory is a RuntimeError
            log.warning("%s failed: %s", contender.name, error)
            first = str(error).strip().split("\n")[0]
            bench.results.failures.append({"contender": contender.name, "session": bench.session, "error": first})
        gc.collect()
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
        bench.turn += 1
        bench.save()
        measured.add(contender.name)
        longest = max(longest, time.monotonic() - start)
    missed = [contender.name for contender in contenders if contender.name not in measured]
    if missed:
        log.warning("No time was left for %s: call again with the same file to go on.", ", ".join(missed))


def one_turn(bench: Bench, contender: Contender, shape: Shape, chosen: list[str], images: int) -> None:
    """Builds a contender, warms it up and measures it in every mode."""
    asked = tasks(shape.size, shape.content_size, bench.steps)
    start = time.perf_counter()
    pipeline, memory = random_pipeline(contender, shape, bench.device)
    built = time.perf_counter()
    if memory is not None:
        bench.results.plans[contender.name] = {
            "sentence": str(memory.summary), "peak_bytes": memory.peak_bytes, "stages": memory.stages,
        }  # fmt: skip
    for mode in chosen:
        check(pipeline, asked[mode])
    bench.results.starts.append(
        {"contender": contender.name, "session": bench.session, "build_seconds": round(built - start, 3),
         "warm_up_seconds": round(time.perf_counter() - built, 3)}
    )  # fmt: skip
    for mode, _ in itertools.product(chosen, range(images)):
        for run in runs_of(contender):
            bench.image(pipeline, asked[mode], run, contender.name, "bfloat16")


def turns(contenders: Iterable[Contender], is_time: Callable[[], bool]) -> Iterator[Contender]:
    """A B A C A: every contender between two turns of its baseline, while there is time for both."""
    known = {contender.name: contender for contender in CONTENDERS}
    for against, group in itertools.groupby(contenders, key=lambda contender: contender.against or contender.name):
        if not is_time():
            return
        yield known[against]
        for contender in group:
            if contender.name != against and is_time():
                yield contender
                yield known[against]


def runs_of(contender: Contender) -> tuple[str, ...]:
    if contender.reference:
        return ("first",)
    return ("first", "another seed", "fast") if contender.compile and contender.gibibytes is None else RUNS[:2]


@contextmanager
def limit(contender: Contender, device: torch.device) -> Iterator[None]:
    """Limits PyTorch to the memory of the contender's card; afterwards all of the GPU is available again."""
    limited = device.type == "cuda" and contender.gibibytes is not None
    if limited:
        total = torch.cuda.get_device_properties(device).total_memory
        fraction = planned_card(contender, device).free_vram_bytes / total
        torch.cuda.set_per_process_memory_fraction(min(fraction, 1.0), device)
    try:
        yield
    finally:
        if limited:
            torch.cuda.set_per_process_memory_fraction(1.0, device)


def step_tflop(shape: Shape, modes: Iterable[str]) -> dict[str, float]:
    """TFLOP of one step in each mode, with as many text tokens as the full-size model takes."""
    parts = shape.modules()
    projector: Any = parts["projector"].config
    of_target, of_content = ((side // latents.PIXELS_PER_TOKEN) ** 2 for side in (shape.size, shape.content_size))
    found = {}
    for mode in modes:
        content, style = (bool(MODES[mode][0]), MODES[mode][1] // STYLE_TOKENS)
        tokens = (of_content * content, 3 * projector.tokens_out * style, of_target)
        found[mode] = hoisted(parts["transformer"], *tokens)[1].flops / 1e12
    return found


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="the GPU's part at toy size, on any device")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="contenders of the GPU's part; default: all")
    parser.add_argument("--modes", nargs="+", metavar="MODE", choices=list(MODES), default=list(MODES))
    parser.add_argument("--rounds", type=int, default=3, help="on a CPU: turns of each contender in each mode")
    parser.add_argument("--images", type=int, default=2, help="on a GPU: images of a turn in each mode")
    parser.add_argument("--steps", type=int, help="of an image; default: the model's")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of the CPU")
    parser.add_argument("--minutes", type=float, default=60.0, help="when to stop; a turn that has begun is finished")
    parser.add_argument("--into", type=Path, metavar="FILE", help="JSON to write; one that is there is added to")
    return parser


def main(given: list[str] | None = None) -> Results:
    """Measures, writes and prints; returns the results."""
    parser = arguments()
    options = parser.parse_args(given)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    device = torch.device(options.device)
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
        parser.error(f"there is no device {options.device!r} to measure here; use cpu or cuda")
    names = [contender.name for contender in CONTENDERS]
    unknown = set(options.only or ()) - set(names)
    if unknown:
        parser.error(f"no contender is named {sorted(unknown)}; there are: {', '.join(names)}")
    random = options.small or device.type != "cpu"
    shape = SMALL if options.small else FULL
    results = Results(this_machine(device), installed(), settings(shape, random, options.steps))
    if options.into is not None and options.into.exists():
        before = Results.read(options.into)
        if not results.continues(before):
            parser.error(f"{options.into} comes from another machine, other versions or another size of model")
        results = before
    bench = Bench(device, results, options.into, results.next_session, time.monotonic() + 60 * options.minutes)
    if random:
        if device.type == "cpu":
            torch.set_num_threads(options.threads[0])
        chosen = [each for each in CONTENDERS if options.only is None or each.name in options.only]
        if not results.ceilings:
            transformer: Any = shape.modules()["transformer"]
            width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
            rows = (shape.size // latents.PIXELS_PER_TOKEN) ** 2 + shape.text_tokens
            quick = {"copy_bytes": 2**20, "seconds": 0.002} if options.small else {}
            results.ceilings = ceilings(device, torch.bfloat16, rows, width, **quick)  # type: ignore[arg-type]
        results.step_tflop |= step_tflop(shape, options.modes)
        with_random_weights(bench, shape, chosen, options.modes, options.images)
    else:
        on_processor(bench, options.modes, options.rounds, options.dtypes, options.threads)
    bench.save()
    print("\n".join(lines(table(results))))
    for row in results.python:
        where = f"outside the blocks, {row['dtype']}, {row['threads']} threads"
        print(f"{where}: {row['milliseconds']['median']:.3f} ms a step")
    return results


def settings(shape: Shape, random: bool, steps: int | None) -> dict[str, Any]:
    """What the samples of one file have in common."""
    if not random:
        model = get_model(EMBEDDED)
        return {
            "model": EMBEDDED, "size": model.size, "content_size": model.content_size,
            "steps": steps or model.steps, "against": {"ours": "reference"},
        }  # fmt: skip
    return {
        "model": shape.name, "size": shape.size, "content_size": shape.content_size, "steps": steps or shape.steps,
        "against": {each.name: each.against for each in CONTENDERS if each.against},
        "formats": {each.name: "fp8" for each in CONTENDERS if each.fp8 and not each.reference},
    }  # fmt: skip


if __name__ == "__main__":
    main()
