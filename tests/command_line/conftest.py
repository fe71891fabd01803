"""Command lines in this process, and as processes of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import inference
from tests.command_line.runs import Command, Run
from uso_core.catalog.models import EMBEDDED
from uso_core.runtime.engine import Engine
from uso_core.settings import ROOT, Settings


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: empty except for an .env without lines, so that no .env beside the program is read."""
    folder = tmp_path / "workplace"
    folder.mkdir()
    (folder / ".env").touch()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="package")
def engines() -> dict[Settings, Engine]:
    return {}


@pytest.fixture
def command(
    workplace: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    engines: dict[Settings, Engine],
    monkeypatch: pytest.MonkeyPatch,
) -> Command:
    """Runs a command line in this process, by default into a folder of its own.

    The embedded model is loaded once for all with the same settings: that engines agree is tested elsewhere.
    """

    def engine(settings: Settings) -> Engine:
        return engines.setdefault(settings, Engine(settings)) if settings.name == EMBEDDED else Engine(settings)

    monkeypatch.setattr(inference, "Engine", engine)
    folders = (tmp_path / f"saved-{number}" for number in range(100))

    def run(*flags: object, folder: Path | None = None) -> Run:
        folder = folder or next(folders)
        capsys.readouterr()
        code = inference.main(["--save_path", str(folder), *map(str, flags)])
        printed = capsys.readouterr()
        return Run(code, printed.out, printed.err, folder)

    return run


# --- as a process -----------------------------------------------------------------------------------------------------


@pytest.fixture
def process(workplace: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(*flags: object, **options: Any) -> subprocess.Popen[str]:
        line = [sys.executable, str(ROOT / "inference.py"), *map(str, flags)]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": workplace}
        started.append(subprocess.Popen(line, **(streams | options)))
        return started[-1]

    yield start
    for each in started:
        if each.poll() is None:
            each.kill()
        each.communicate()
