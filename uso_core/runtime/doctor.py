"""Prints one page about this machine and a model's files: what was found, what not and why, and what to do.

    python weights/downloader.py --doctor [--variant NAME] [--models-dir DIR]

Exit codes: 0 the model can run, 2 something is missing or does not fit, 1 a fault of ours.
"""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import sys
from collections.abc import Iterator, Sequence

import torch

from uso_core.catalog.download import size_text
from uso_core.catalog.hub import HUB_PAGE
from uso_core.catalog.locate import WeightsReport, choose_model, find_weights, look, offers
from uso_core.catalog.models import TOKENIZERS, Model, get_model
from uso_core.catalog.scan import Found, described_as
from uso_core.errors import UsoError, exit_code
from uso_core.memory.machine import look_at
from uso_core.memory.plan import MemoryPlan
from uso_core.memory.planner import PlanOptions, plan
from uso_core.memory.sizes import FLUX_COUNTS, GB, Sizes
from uso_core.runtime.load import choose_device, choose_dtype, overlooks_gpu, plan_memory
from uso_core.settings import Parser, Settings, add_arguments, env_name, load_settings

PACKAGES = ("torch", "diffusers", "transformers", "safetensors", "gguf", "gradio")
SETTINGS = ("device", "dtype", "offload", "vram_limit", "weights", "models_dir")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    logging.basicConfig(format="%(levelname)s: %(message)s")
    parser = Parser(prog="weights/downloader.py --doctor", description="Says what is there and what is missing.")
    parser.add_argument("--variant", dest="name", metavar="NAME", help="the model (default: the one that would start)")
    add_arguments(parser, *SETTINGS)
    try:
        args = parser.parse_args(argv)
        settings = load_settings({name: getattr(args, name) for name in ("name", *SETTINGS)})
        return examine(settings)
    except UsoError as error:
        return exit_code(error)
    except Exception:
        logging.exception("a fault of the doctor itself")
        return 1


def examine(settings: Settings) -> int:
    """Prints the page; returns 0 if the model that would start, or flux-dev instead of the embedded one, can run."""
    chosen, reason = choose_model(settings)
    print(f"Starts with  {chosen.name} ({reason})")
    model = get_model("flux-dev") if chosen.folder is not None and settings.name is None else chosen
    for line in machine(settings):
        print(line)
    report = find_weights(model, settings)
    print(f"\n{model.name}: {model.title}")
    for line in (*parts(report), *others(report, settings)):
        print(line)
    wrong = [role for role in report.paths if unfit(role, report)]
    planned = planning(report, settings)
    commands = [*remedies(report, settings), *replacements(wrong, report, settings)]
    print("\nMemory plan")
    for line in planned[1]:
        print(f"  {line}")
    print("\nTo do" if commands else "\nNothing is missing.")
    for command in commands:
        print(f"  {command}")
    return 0 if report.complete and planned[0] and not wrong else 2


def machine(settings: Settings) -> Iterator[str]:
    """This machine, Python, the libraries, and the device that would compute."""
    device = choose_device(settings.device)
    found = look_at(device)
    gpu = f", {size_text(found.free_vram_bytes)} of {size_text(found.total_vram_bytes)} GPU memory free"
    dtype = str(choose_dtype(settings.dtype, device)).removeprefix("torch.")
    yield f"Machine      {platform.system()} {platform.machine()}, {size_text(found.free_ram_bytes)} of memory free"
    yield f"Device       {device}: {found.name}, {dtype}{gpu if found.total_vram_bytes else ''}"
    if overlooks_gpu():
        yield "             this build of PyTorch cannot use the NVIDIA GPU: install one from https://pytorch.org"
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    yield f"Python       {platform.python_version()}, {versions}"


def parts(report: WeightsReport) -> Iterator[str]:
    """Each part: where it is and what it is, or why not."""
    for role in dict.fromkeys((*report.paths, *report.missing)):
        if role in report.missing:
            yield f"  {'missing':8} {report.missing[role]}"
            continue
        state = "problem" if unfit(role, report) else "found"
        yield f"  {state:8} {role}: {report.paths[role]}{_what(described_as(report.paths[role], role))}"


def unfit(role: str, report: WeightsReport) -> bool:
    """Whether the part's file is damaged, or is another part."""
    what = described_as(report.paths[role], role)
    return what is not None and (what.problem is not None or what.role != role and what.role in report.paths)


def others(report: WeightsReport, settings: Settings) -> Iterator[str]:
    """What else the model folders hold for such a model, and why it is not used."""
    left = [(found, standing) for found, standing in offers(report, settings) if standing.key != "offer_used"]
    damaged = [
        (found.path, found.problem)
        for found in look(settings)
        if not found.kind and found.problem is not None and found.problem.key != "error_pickle"
    ]
    if left or damaged:
        yield "\nAlso in the model folders"
    for found, standing in left:
        yield f"  {found.path}: {found.title}; {standing}"
    for path, problem in damaged:
        yield f"  {path}: {problem}"


def planning(report: WeightsReport, settings: Settings) -> tuple[bool, list[str]]:
    """Whether the model fits, and the memory plan in words: of these files, or of the published ones while some are
    missing.
    """
    device = choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, device)
    try:
        if report.complete:
            return True, _plan_lines(plan_memory(report.paths, settings, report.model, device, dtype))
        return True, ["Once everything is there:", *_plan_lines(_published_plan(report.model, settings, device, dtype))]
    except UsoError as error:
        return False, [error.message, error.hint]


def remedies(report: WeightsReport, settings: Settings) -> Iterator[str]:
    """One command, or one thing to do, for each part that is missing."""
    rows = {row.role: row for row in (*report.model.files, *TOKENIZERS)}
    for role, said in report.missing.items():
        row = rows.get(role)
        if row is None:
            yield f"{role}: get the project's own files again ({said})"
        elif said.key == "missing_really":
            yield f"{role}: start with --name {said.values['name']}, or point {said.values['variable']} to another file"
        elif said.key in ("missing_variable", "missing_in_variable"):
            yield f"{role}: correct {env_name(row.setting)} in .env or in the environment, or unset it"
        else:
            only = "tokenizers" if role.endswith("_tokenizer") else role
            command = f"python weights/downloader.py --variant {report.model.name} --only {only}"
            if settings.weights != "weights":
                command += f' --weights "{settings.weights}"'
            first = f"  # first accept the licence at {HUB_PAGE}/{row.repo} and set HF_TOKEN"
            yield command + (first if row.gated and not settings.hf_token else "")


def replacements(wrong: Sequence[str], report: WeightsReport, settings: Settings) -> Iterator[str]:
    """One thing to do for each part whose file cannot be used."""
    rows = {row.role: row for row in report.model.files}
    for role in wrong:
        row = rows.get(role)
        pointed = row is not None and getattr(settings, row.setting)
        other = f", or correct {env_name(row.setting)} in .env or in the environment" if row and pointed else ""
        yield f"{role}: put another file in place of {report.paths[role]}{other}"


def _plan_lines(made: MemoryPlan) -> list[str]:
    return [str(made.summary), *map(str, made.notes)]


def _published_plan(model: Model, settings: Settings, device: torch.device, dtype: torch.dtype) -> MemoryPlan:
    limit = None if settings.vram_limit is None else round(settings.vram_limit * GB)
    options = PlanOptions(model.quantize == "fp8", settings.offload, limit, width=model.size, height=model.size)
    return plan(look_at(device), Sizes(FLUX_COUNTS, dtype.itemsize), options)


def _what(found: Found | None) -> str:
    if found is None:
        return ""
    return f": {found.problem}" if found.problem else f" ({found.title}, {size_text(found.bytes)})"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "is not installed"


if __name__ == "__main__":
    sys.exit(main())
