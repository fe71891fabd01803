"""Setup of every test: no settings from outside, one thread per process."""

from __future__ import annotations

import dataclasses
import gc
import os
import signal
from pathlib import Path

import pytest

from uso_core.settings import ROOT, Settings, env_name

TESTS = Path(__file__).parent
GOLDEN = TESTS / "golden"
LONGEST = (
    "browser/test_session.py", "browser/test_page.py", "browser/test_create.py", "browser/test_studio.py",
    "browser/test_models.py", "runtime/test_ray.py", "deploy/test_space.py", "browser/test_accessibility.py",
    "browser/test_lora_rows.py", "comfy/test_frontend.py", "training/test_stages.py", "training/test_networks.py",
    "browser/test_examples.py", "browser/test_languages.py", "browser/test_slow_network.py",
    "command_line/test_images.py", "command_line/test_refusals.py", "command_line/test_process.py",
    "test_meaning.py", "ui/test_open_server.py", "ui/test_server.py", "browser/test_proxy.py",
    "browser/test_restart.py", "browser/test_crop.py", "test_bench.py", "test_speed.py", "loaders/test_fused_cache.py",
    "quantization/test_fp8.py", "ui/test_app.py", "deploy/test_notebook.py", "loaders/test_other_lora.py",
    "deploy/test_container.py", "runtime/test_engine.py", "runtime/test_loras.py", "test_floors.py",
    "ui/test_models_dir.py",
)  # fmt: skip
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: test processes share the cores

gc.disable()  # until all tests are imported and collected; they stay: see `uso_core.runtime.startup`

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a background job; programs under test would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that processes which share the files end together."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.relative_to(TESTS).as_posix(), len(places)))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in dataclasses.fields(Settings):
        monkeypatch.delenv(env_name(field.name), raising=False)


@pytest.fixture
def golden_environment(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reference's variables, pointing at the golden weights; returns their folder."""
    files = {
        "FLUX_DEV": "flux.safetensors",
        "FLUX_DEV_FP8": "flux.safetensors",
        "AE": "ae.safetensors",
        "LORA": "dit_lora.safetensors",
        "PROJECTION_MODEL": "projector.safetensors",
        "T5": "t5",
        "CLIP": "clip",
        "SIGLIP_PATH": "siglip",
    }
    for name, file in files.items():
        monkeypatch.setenv(name, str(GOLDEN / file))
    return GOLDEN


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT
