"""What is decided before anything is read: device, plan, whether blocks are compiled, and the messages if not."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch

from benchmarks.models import PATHS
from uso_core.catalog.models import EMBEDDED, get_model
from uso_core.errors import MemoryShortage, SettingsError
from uso_core.memory.plan import MemoryPlan
from uso_core.memory.planner import Machine
from uso_core.memory.sizes import GB
from uso_core.runtime import load
from uso_core.settings import Settings

CPU = torch.device("cpu")


def planned(compile: str = "auto") -> MemoryPlan:
    settings = Settings(device="cpu", dtype="float32", compile=compile)
    return load.plan_memory(PATHS, settings, get_model(EMBEDDED), CPU, torch.float32)


@pytest.fixture
def processor_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch without CUDA, as pip installs it on Windows."""
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.mark.parametrize("tool", [None, "nvidia-smi"])
def test_a_gpu_that_this_pytorch_cannot_use_is_named(processor_build, tool, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: tool if name == "nvidia-smi" else None)
    monkeypatch.setattr(load, "look_at", lambda device: Machine("cpu", "CPU", 2 * GB))
    with pytest.raises(SettingsError) as wanted:
        load.choose_device("cuda")
    with pytest.raises(MemoryShortage) as short:
        planned()
    for error in (wanted.value, short.value):
        assert ("pytorch.org" in error.hint) == (tool is not None)
    assert "memory" in short.value.message


def test_blocks_are_compiled_if_requested_and_possible(monkeypatch):
    asked = []
    monkeypatch.setattr(load, "obstacle_to_compiling", lambda *where: asked.append(where) or "")
    assert not planned().compile
    assert not planned("off").compile
    assert asked == []
    assert planned("on").compile
    assert asked == [(CPU, torch.float32)]


def test_a_request_to_compile_that_cannot_be_met_is_refused(monkeypatch):
    monkeypatch.setattr(load, "obstacle_to_compiling", lambda *_: "Failed to find C compiler.")
    with pytest.raises(SettingsError) as refused:
        planned("on")
    assert "Failed to find C compiler." in refused.value.message
    assert "--compile" in refused.value.hint


def test_without_a_request_an_obstacle_is_only_reported(monkeypatch):
    """As on Windows, where Triton is missing: a large model on an NVIDIA GPU runs all the same."""
    card = Machine("cuda", "NVIDIA GeForce RTX 4090", 64 * GB, 24 * GB, 24 * GB, True)
    monkeypatch.setattr(load, "look_at", lambda device: card)
    monkeypatch.setattr(load, "obstacle_to_compiling", lambda *_: "Cannot find a working triton installation.")
    monkeypatch.setattr("uso_core.memory.planner.SMALL_BYTES", 0)  # so that the embedded model counts as a large one
    made = planned()
    assert not made.compile
    assert [note for note in made.notes if note.key == "plan_note_not_compiled"]
    assert planned("off").notes == ()
    monkeypatch.setattr(load, "obstacle_to_compiling", lambda *_: "")
    assert planned().compile
    assert dataclasses.replace(made, notes=(), compile=True) == planned()


def test_streams_and_events_are_those_of_the_chosen_gpu(monkeypatch):
    """`torch.cuda.current_stream()` belongs to the thread's device, which is the first GPU by default."""
    chosen: list[torch.device] = []

    def stop(*_: object) -> None:
        raise MemoryShortage("That will do.", "It does.")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(load, "plan_memory", stop)
    for name in ("cuda:1", "cuda", "cpu"):
        with pytest.raises(MemoryShortage):
            load.assemble(PATHS, Settings(device=name), get_model(EMBEDDED))
    assert chosen == [torch.device("cuda", 1)]
