"""The GPU's part without a GPU: PyTorch's own CUDA code on a device that computes nothing.

    python -m benchmarks.dry_run [--into FILE] [--only NAME ...] [--capability 89] [--no-compile]

Our contenders of `bench` place, compile and run the full-size model in every mode on the device of `null_device.c`.
This shows the maximum that PyTorch's allocator gave out in each stage, beside the memory plan's figure; bytes copied to
the device for a first image, and for another seed; that every operator finds its tensors where it needs them; and that
PyTorch's compiler and Triton accept the blocks for a generation of GPU. It does not show times, results, or the
workspace of cuDNN's convolutions, which are left out. Needs Linux, gcc, nm and PyTorch's build for CUDA.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.bench import limit, make
from benchmarks.models import CONTENDERS, FULL, Contender, random_pipeline
from benchmarks.results import installed
from benchmarks.tasks import tasks
from benchmarks.timing import STAGES
from uso_core.memory.machine import look_at
from uso_core.memory.pinned import PinnedMemory
from uso_core.memory.sizes import GB
from uso_core.quantization import fp8

SOURCE = Path(__file__).with_name("null_device.c")
INSIDE = "NULL_DEVICE_CAPABILITY"  # set in the process that has the device
HEADERS = ("triton/backends/nvidia/include", "nvidia/cu13/include", "nvidia/cuda_runtime/include")
LIBRARIES = re.compile(r"(cuda[A-Z]|cublas|cudnn[A-Z]|cu[A-Z])\w+")
OURS = {contender.name: contender for contender in CONTENDERS if not contender.reference}
STEPS = 2
RAM_BYTES = 64 * GB  # assumed free beside the GPU: none of it is touched
WAYS = {"86": None, "89": fp8.ROW_WISE, "90": fp8.ROW_WISE, "120": fp8.AFTERWARDS}  # of multiplying fp8, by generation


def build(folder: Path) -> dict[str, str]:
    """Compiles the device into a folder; returns the environment in which a process finds it."""
    site = Path(torch.__file__).parent.parent
    include = [f"-I{site / each}" for each in HEADERS]
    wanted = set()
    for library in sorted((site / "torch" / "lib").glob("*.so")):
        listed = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=False)
        wanted |= {word.split("@")[0] for line in listed.stdout.splitlines() for word in line.split()[1:]}
    text = SOURCE.read_text(encoding="utf-8")
    here, driver = (
        set(re.findall(rf"^[\w *]*\b({kind}\w+)\(", text, re.MULTILINE)) for kind in ("cu(?:da|blas|dnn)", "cu[A-Z]")
    )
    of_driver = _driver_functions(site) | {name for name in wanted if re.match("cu[A-Z]", name)}
    runtime = {name for name in wanted if LIBRARIES.fullmatch(name)} - here
    for output, names, flags in (
        ("null.so", runtime - driver, ()),
        ("libcuda.so.1", of_driver - driver, ("-DDRIVER",)),
    ):
        rest = folder / "rest.c"
        rest.write_text("\n".join(f"int {name}(void) {{ return 0; }}" for name in sorted(names)), encoding="utf-8")
        command = [
            "gcc",
            "-O1",
            "-shared",
            "-fPIC",
            "-w",
            *flags,
            *include,
            str(SOURCE),
            str(rest),
            "-o",
            str(folder / output),
        ]
        subprocess.run([*command, "-lpthread"], check=True)
    return {"LD_PRELOAD": str(folder / "null.so"), "LD_LIBRARY_PATH": str(folder)}


def _driver_functions(site: Path) -> set[str]:
    """All functions that the driver's header declares, in both versions of their names."""
    header = next(path for each in HEADERS if (path := site / each / "cuda.h").exists())
    names = set(re.findall(r"CUDAAPI (cu[A-Z]\w+)\(", header.read_text(encoding="utf-8", errors="replace")))
    return names | {f"{name}_v2" for name in names}


def convolution(x: torch.Tensor, weight: torch.Tensor, padding: Sequence[int], stride: Sequence[int],
                dilation: Sequence[int], groups: int, *rest: bool) -> torch.Tensor:  # fmt: skip
    """An empty result in cuDNN's layout: its graphs need a device that answers."""
    sides = [
        (size + 2 * pad - step * (kernel - 1) - 1) // jump + 1
        for size, kernel, pad, jump, step in zip(x.shape[2:], weight.shape[2:], padding, stride, dilation, strict=True)
    ]
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(len(x), len(weight), *sides, dtype=x.dtype, device=x.device, memory_format=layout)


@contextmanager
def prepared(capability: str) -> Iterator[None]:
    """Replaces or leaves out what the device cannot decide or hold."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("cudnn_convolution", convolution, "CUDA")
    keep = PinnedMemory.keep

    def reserved(host: PinnedMemory, data: torch.Tensor) -> torch.Tensor:
        with mock.patch.object(torch.Tensor, "copy_", lambda tensor, other: tensor):  # gigabytes that nobody reads
            return keep(host, data)

    def untouched(owner: Any, name: str, like: torch.Tensor, chance: torch.Generator) -> torch.Tensor:
        made = torch.empty(like.shape, dtype=like.dtype, device=chance.device)
        return made if like.is_floating_point() else made.zero_()

    with (
        mock.patch.object(PinnedMemory, "keep", reserved),
        mock.patch.object(fp8, "_first_way", return_value=WAYS[capability]),
        mock.patch("benchmarks.random_weights.draw", untouched),
        mock.patch("benchmarks.models.materialize", at_home),
        mock.patch("benchmarks.models.look_at", lambda device: replace(look_at(device), free_ram_bytes=RAM_BYTES)),
    ):
        yield


def at_home(module: torch.nn.Module, device: torch.device, home: torch.device, seed: int = 0) -> None:
    """Like `materialize`, without moving anything."""
    from benchmarks.random_weights import materialize

    materialize(module, home, home, seed)


def copied(back: bool = False) -> int:
    """Bytes copied to the device so far, or back from it."""
    count = ctypes.CDLL(None).null_device_copied
    count.restype = ctypes.c_size_t
    return int(count(int(back)))


def run(contender: Contender, device: torch.device) -> dict[str, Any]:
    """One contender in every mode."""
    with limit(contender, device):
        pipeline, memory = random_pipeline(contender, FULL, device)
        row: dict[str, Any] = {"contender": contender.name, "modes": {}}
        if memory is not None:
            row |= {
                "plan": str(memory.summary),
                "planned": gigabytes(memory.stages),
                "planned_peak": round(memory.peak_bytes / GB, 2),
            }
        for mode, task in tasks(FULL.size, FULL.content_size, STEPS).items():
            pipeline.encodings.clear()
            peaks: dict[str, int] = {}
            before = copied()
            with watching(pipeline, peaks):
                make(pipeline, task, seed=1)
            first, back = copied(), copied(back=True)
            make(pipeline, task, seed=2)
            row["modes"][mode] = {
                "allocated": gigabytes(peaks), "peak": round(max(peaks.values()) / GB, 2),
                "copied": round((first - before) / GB, 3), "copied_for_another_seed": round((copied() - first) / GB, 3),
                "copied_back_for_another_seed": round((copied(back=True) - back) / GB, 3),
            }  # fmt: skip
        row["reserved"] = round(torch.cuda.max_memory_reserved(device) / GB, 2)
    return row


@contextmanager
def watching(pipeline: Any, peaks: dict[str, int]) -> Iterator[None]:
    """Records the most bytes allocated in each stage while the pipeline's methods run."""
    methods = {name: getattr(pipeline, name) for name in STAGES if hasattr(pipeline, name)}

    def watched(name: str) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            torch.cuda.reset_peak_memory_stats()
            result = methods[name](*given, **named)
            stage = STAGES[name]
            peaks[stage] = max(peaks.get(stage, 0), torch.cuda.max_memory_allocated())
            return result

        return call

    with mock.patch.multiple(pipeline, **{name: watched(name) for name in methods}):
        yield


def gigabytes(sizes: dict[str, int]) -> dict[str, float]:
    return {name: round(size / GB, 2) for name, size in sizes.items()}


def inside(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs the contenders one after another, printing each when it is done."""
    device, rows = torch.device("cuda", 0), []
    with prepared(options.capability):
        for contender in (OURS[name] for name in options.only or OURS):
            row = run(replace(contender, compile=contender.compile and options.compile), device)
            rows.append(row)
            peak = max(mode["peak"] for mode in row["modes"].values())
            print(
                f"{row['contender']:22} allocated at most {peak:6.2f} GB, planned {row.get('planned_peak', '')}",
                flush=True,
            )
            gc.collect()
            torch.cuda.empty_cache()
    return rows


def main() -> int:
    """Command line: builds the device, then restarts itself in a process that has it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dry_run", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--into", type=Path, metavar="FILE", help="JSON to write")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=OURS)
    parser.add_argument("--capability", default="89", choices=WAYS, help="generation of the GPU; default: %(default)s")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    options = parser.parse_args()
    if INSIDE in os.environ:
        rows = inside(options)
        if options.into is not None:
            found = {"versions": installed(), "capability": options.capability, "steps": STEPS, "contenders": rows}
            options.into.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return 0
    missing = [tool for tool in ("gcc", "nm") if shutil.which(tool) is None]
    if torch.version.cuda is None or missing:
        parser.error("this needs PyTorch's build for CUDA" if not missing else f"this needs {' and '.join(missing)}")
    with tempfile.TemporaryDirectory() as folder:
        caches = {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor", "TRITON_CACHE_DIR": f"{folder}/triton"}
        environment = {**os.environ, **caches, **build(Path(folder)), INSIDE: options.capability}
        return subprocess.run(
            [sys.executable, "-m", "benchmarks.dry_run", *sys.argv[1:]], env=environment, check=False
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
