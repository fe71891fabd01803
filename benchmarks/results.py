"""Results as a JSON file: the measurements of one machine, every sample, and the table derived from them."""

from __future__ import annotations

import json
import os
import platform
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import Sample, Spread, ratios

PACKAGES = ("torch", "diffusers", "transformers", "optimum-quanto")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")  # of a CPU, that determine bf16 speed


@dataclass
class Results:
    """`machine`, `versions` and `settings` are the same for all samples of a file; the rest grows."""

    machine: dict[str, Any]
    versions: dict[str, str]
    settings: dict[str, Any]
    ceilings: dict[str, Any] = field(default_factory=dict)
    plans: dict[str, Any] = field(default_factory=dict)  # by contender: the memory plan in words and numbers
    starts: list[dict[str, Any]] = field(default_factory=list)  # seconds of building and of warming up, by turn
    step_tflop: dict[str, float] = field(default_factory=dict)  # by mode
    python: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    @property
    def next_session(self) -> int:
        return max((sample.session for sample in self.samples), default=-1) + 1

    def continues(self, other: Results) -> bool:
        """Whether these results may be added to the other's file."""
        mine, theirs = ((each.machine, each.versions, each.settings) for each in (self, other))
        return json.dumps(mine, sort_keys=True) == json.dumps(theirs, sort_keys=True)

    def write(self, path: Path) -> None:
        """Replaces the file; a reader never sees half of it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        values = {**asdict(self), "table": table(self)}
        scratch = path.with_name(path.name + ".part")
        scratch.write_text(_compact(json.dumps(values, indent=1)) + "\n", encoding="utf-8")
        scratch.replace(path)

    @classmethod
    def read(cls, path: Path) -> Results:
        """What `write` wrote."""
        values = json.loads(path.read_text(encoding="utf-8"))
        del values["table"]
        return cls(**{**values, "samples": [Sample(**sample) for sample in values["samples"]]})


def this_machine(device: torch.device) -> dict[str, Any]:
    """What determines speed; no names or addresses."""
    try:
        information = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        information = ""
    model = re.search(r"^model name\s*:\s*(.+)$", information, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.+)$", information, re.MULTILINE)
    found: dict[str, Any] = {
        "processor": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "flags": [flag for flag in FLAGS if flags and flag in flags[1].split()],
        "system": platform.system(),
        "device": device.type,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"gpu": properties.name, "gpu_bytes": properties.total_memory,
                  "capability": [properties.major, properties.minor]}  # fmt: skip
    return found


def installed() -> dict[str, str]:
    """Versions of the libraries that compute."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "none"
    if torch.version.cuda is not None:
        versions["cuda"] = torch.version.cuda
    return versions


def table(results: Results) -> list[dict[str, Any]]:
    """A row for each mode, contender and run, in the order of first measurement."""
    groups: dict[tuple[Any, ...], list[Sample]] = defaultdict(list)
    for sample in results.samples:
        groups[sample.mode, sample.dtype, sample.threads, sample.contender, sample.run].append(sample)
    against = results.settings.get("against", {})
    rows = []
    for (mode, dtype, threads, contender, run), samples in groups.items():
        baseline = groups.get((mode, dtype, threads, against.get(contender, ""), "first"), [])
        row: dict[str, Any] = {"mode": mode, "dtype": dtype, "threads": threads, "contender": contender, "run": run}
        row["seconds"] = _spread([sample.seconds for sample in samples])
        for name, measure in (("times_faster", "seconds"), ("times_less_work", "processor_seconds")):
            found = ratios(samples, baseline, measure)
            row[name] = _spread(found) if found else None
        stages = sorted({stage for sample in samples for stage in sample.stages})
        row["stages"] = {
            stage: round(Spread.of([sample.stages.get(stage, 0.0) for sample in samples]).median, 4) for stage in stages
        }
        row["peak_gb"] = round(max(sample.peak_bytes for sample in samples) / 1e9, 2)
        planned = results.plans.get(contender, {}).get("peak_bytes")
        row["planned_gb"] = None if planned is None else round(planned / 1e9, 2)
        row["ceiling_share"] = _share(results, row)
        rows.append(row)
    return rows


def _share(results: Results, row: dict[str, Any]) -> float | None:
    """The share of the machine's best matrix rate, in the contender's number format, that the step loop reaches."""
    kind = "fp8" if "fp8" in results.settings.get("formats", {}).get(row["contender"], "") else row["dtype"]
    best = results.ceilings.get("tflops", {}).get(kind, {}).get("best")
    work = results.step_tflop.get(row["mode"])
    if not best or not work or row["run"] == "fast" or not row["stages"].get("steps"):
        return None
    return round(work * results.settings["steps"] / row["stages"]["steps"] / best, 4)


def lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The table as lines of text."""
    yield (
        f"{'mode':16} {'format':9} {'thr':>3} {'contender':22} {'run':13} {'seconds':>8} {'quartiles':>15} "
        f"{'faster':>7} {'quartiles':>13} {'less work':>9} {'steps':>8} {'peak GB':>8} {'planned':>8} {'ceiling':>8}"
    )
    for row in rows:
        seconds, faster, work = row["seconds"], row["times_faster"], row["times_less_work"]
        ratio = f"{faster['median']:6.2f}x {faster['low']:6.2f}-{faster['high']:<6.2f}" if faster else " " * 21
        less = f"{work['median']:8.2f}x" if work else " " * 9
        share = f"{row['ceiling_share']:8.1%}" if row["ceiling_share"] is not None else ""
        yield (
            f"{row['mode']:16} {row['dtype']:9} {row['threads']:3} {row['contender']:22} {row['run']:13} "
            f"{seconds['median']:8.3f} {seconds['low']:7.3f}-{seconds['high']:<7.3f} {ratio} {less} "
            f"{row['stages'].get('steps', 0):8.3f} {row['peak_gb'] or '':>8} {row['planned_gb'] or '':>8} {share}"
        ).rstrip()


def _spread(values: list[float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in asdict(Spread.of(values)).items()}


def _compact(text: str) -> str:
    """JSON with its innermost objects and lists on one line each."""
    return re.sub(r"[\[{][^\[\]{}]*[\]}]", lambda found: " ".join(found[0].split()), text)
