"""Running pages for tests: `python app.py`, or the same program forked from a process that has imported everything.

A fork answers in a second where the imports take several, so most tests take forks. `fork=False` starts the program
as users do; so do variables that are no settings of ours, since libraries read theirs when they are imported.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Protocol

from uso_core.settings import ROOT, Settings, env_name

REPLY_SECONDS = 240.0
SETTINGS = frozenset(env_name(field.name) for field in dataclasses.fields(Settings))
PRELOADED = "tests.preloaded"


class Program(Protocol):
    """A process that runs the app, as `subprocess.Popen` has it."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, number: int) -> None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class Fork:
    """The app in a fork of the process that has imported everything."""

    def __init__(self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path) -> None:
        self._process = forks().Process(target=run_app, args=(arguments, folder, environment, log))  # type: ignore[attr-defined]
        self._process.start()
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; raises `subprocess.TimeoutExpired` after `timeout` seconds."""
        self._process.join(timeout)
        if (code := self._process.exitcode) is None:
            raise subprocess.TimeoutExpired("app.py", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def forks() -> BaseContext:
    """Where forks come from: one process for all tests of this one, started with the first of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    return context


def run_app(arguments: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path) -> None:
    """`python app.py` with these arguments, in a fork: its folder, environment and output are its own."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["app.py", *arguments]
    import app

    code = app.main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@dataclasses.dataclass(frozen=True)
class Served:
    """A running app: its address, its folder, its output, and how soon it answered."""

    url: str
    output: Path
    log: Path
    seconds: float
    process: Program

    @property
    def results(self) -> list[Path]:
        return sorted(self.output.glob("*.png"))


@contextmanager
def serve(
    folder: Path, *flags: str, name: str | None = "uso-tiny", fork: bool = True, **variables: str
) -> Iterator[Served]:
    """Starts the app in its own folder, waits until it answers, and ends it afterwards.

    `flags` are added to its command, `variables` to its environment; without a `name` it chooses the model itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".env").touch()  # found before anyone else's
    output, log, port = folder / "output", folder / "app.log", free_port()
    arguments = ["--device", "cpu", *(["--name", name] if name else []), "--port", str(port), "--output", str(output)]
    arguments += flags
    environment = {**clean_environment(folder), **variables}
    began = time.monotonic()
    process = start(arguments, folder, environment, log, fork and variables.keys() <= SETTINGS)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_it_answers(url, process, log)
        yield Served(url, output, log, time.monotonic() - began, process)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def start(arguments: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path, fork: bool) -> Program:
    log.write_bytes(b"")
    if fork and "forkserver" in multiprocessing.get_all_start_methods():
        return Fork(arguments, folder, environment, log)
    with log.open("ab") as file:
        command = [sys.executable, str(ROOT / "app.py"), *arguments]
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=file)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def clean_environment(folder: Path) -> dict[str, str]:
    """Ours without any setting of the program, and with Gradio's uploads in `folder`."""
    kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    return {**kept, "GRADIO_TEMP_DIR": str(folder / "uploads"), "OMP_NUM_THREADS": "1"}


def wait_until_it_answers(url: str, process: Program, log: Path) -> None:
    deadline = time.monotonic() + REPLY_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, f"app.py ended with {process.poll()}:\n{log.read_text()}"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise AssertionError(f"no answer from {url}:\n{log.read_text()}")
