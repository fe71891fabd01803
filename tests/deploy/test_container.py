"""What the Dockerfile starts, in a container made by bubblewrap: read-only, as user 1000, without environment."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from tests.serving import free_port, wait_until_it_answers
from uso_core.settings import ROOT, Settings, env_name

DOCKER = ROOT / "deploy/docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
OUTPUT = "/tmp/output"
END_SECONDS = 10.0  # after which Docker kills
REFUSED = 2


@pytest.fixture(scope="module")
def bubblewrap() -> str:
    found = shutil.which("bwrap")
    if found is None:
        if "REQUIRE_BROWSER" in os.environ:
            pytest.fail("there is no bubblewrap on the PATH")
        pytest.skip("there is no bubblewrap on the PATH")
    if subprocess.run([found, "--unshare-user", "--ro-bind", "/", "/", "true"], check=False).returncode:
        pytest.skip("bubblewrap may not make user namespaces here")
    return found


def instruction(name: str) -> str:
    (found,) = re.findall(rf"^{name} (.*)$", DOCKERFILE, re.MULTILINE)
    return found


def variables() -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in instruction("ENV").split())


def command(
    bubblewrap: str, output: Sequence[str], port: int, temporary: Sequence[str] = ("--tmpfs", "/tmp")
) -> list[str]:
    """The container's command: the Dockerfile's variables and entry point, with paths of this machine."""
    given = {**variables(), "USO_OUTPUT": OUTPUT, "USO_WEIGHTS": "/tmp/weights", "USO_PORT": str(port),
             "USO_NAME": "uso-tiny", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}  # fmt: skip
    python, *rest = json.loads(instruction("ENTRYPOINT"))
    assert python == "python"
    return [
        bubblewrap, "--unshare-user", "--uid", instruction("USER"), "--gid", "1000", "--unshare-pid", "--as-pid-1",
        "--clearenv", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", *temporary,
        "--ro-bind", str(ROOT), str(ROOT), *output,  # a clone below /tmp stays in sight
        *(word for name, value in given.items() for word in ("--setenv", name, value)),
        "--chdir", str(ROOT), "--", sys.executable, *rest,
    ]  # fmt: skip


@pytest.mark.slow
def test_it_runs_read_only_without_rights_and_ends_as_the_first_process(bubblewrap: str, tmp_path: Path) -> None:
    port, log, output = free_port(), tmp_path / "log", tmp_path / "output"
    output.mkdir()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command(bubblewrap, ["--bind", str(output), OUTPUT], port), stdout=file, stderr=file, env={}
        )
    try:
        wait_until_it_answers(f"http://127.0.0.1:{port}/healthz", process, log)
        probe = json.loads(instruction("HEALTHCHECK").partition("CMD ")[2])
        assert probe[0] == "python"
        asked = [sys.executable, *(word.replace("7860", str(port)) for word in probe[1:])]
        subprocess.run(asked, check=True)
        assert subprocess.run([*asked[:2], asked[2].replace("healthz", "nowhere")], check=False).returncode
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        began = time.monotonic()
        os.kill(int(children[0]), signal.SIGTERM)
        assert process.wait(120) == 0
        assert time.monotonic() - began < END_SECONDS
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("what", ["output", "temporary"])
def test_a_folder_that_cannot_be_written_is_told_at_the_start(bubblewrap: str, tmp_path: Path, what: str) -> None:
    (tmp_path / "output").mkdir()
    temporary = ("--ro-bind", "/", "/") if what == "temporary" else ("--tmpfs", "/tmp")
    bind = "--bind" if what == "temporary" else "--ro-bind"
    where = OUTPUT if what == "output" else str(tmp_path / "output")
    given = command(bubblewrap, [bind, str(tmp_path / "output"), where], free_port(), temporary)
    given = [where if word == OUTPUT and before == "USO_OUTPUT" else word
             for before, word in zip(["", *given], given, strict=False)]  # fmt: skip
    done = subprocess.run(given, capture_output=True, text=True, check=False, timeout=120, env={})
    assert done.returncode == REFUSED, done.stderr
    first, second = done.stderr.strip().splitlines()
    assert first.startswith("error: ")
    assert second.startswith("hint: ")
    assert ("output" if what == "output" else "/tmp" if "/tmp" in first else "temporary") in first
    assert "port" not in first


def test_the_images_variables_are_settings() -> None:
    known = {env_name(name) for name in Settings.__dataclass_fields__}
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))["services"]["uso"]
    named = {*variables(), *compose["environment"]}
    assert {name for name in named if name.startswith("USO_")} <= known
    assert compose["read_only"] is True
    assert compose["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    kept = (DOCKER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE):
        for name in line.split()[:-1]:
            assert (ROOT / name).exists()
            assert any(Path(name).match(each[1:]) or each[1:].startswith(f"{name}/") for each in kept if each[0] == "!")
    assert "compose.yaml" in {path.name for path in DOCKER.iterdir()}


def test_the_inner_nginx_has_the_documents_lines() -> None:
    text = (ROOT / "docs/deployment.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```nginx\n(.*?)```", text, re.DOTALL)
    ours = (DOCKER / "nginx.conf").read_text(encoding="utf-8")
    for line in block.splitlines():
        if line.startswith("    proxy_") and "proxy_pass" not in line or "client_max" in line:
            assert line.strip() in ours


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_start_installs_once_and_passes_arguments_on(tmp_path: Path) -> None:
    """With a stand-in for Python's installer and for the program: the script's own logic, without the network."""
    for name in ("start.sh", "start.command"):
        shutil.copy(ROOT / name, tmp_path / name)
    made = tmp_path / "bin"
    made.mkdir()
    (made / "python3").write_text(
        '#!/bin/sh\ncase $* in\n*venv*) mkdir -p .venv/bin; cp "$0" .venv/bin/python;;\n*) echo "$*" >> calls;;\nesac\n'
    )
    (made / "python3").chmod(0o755)
    environment = {"PATH": f"{made}:/usr/bin:/bin"}
    for name in ("start.sh", "start.command"):
        subprocess.run([str(tmp_path / name), "--port", "9000"], cwd="/", env=environment, check=True)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[1:] == ["-m pip install -r requirements.txt", "app.py --port 9000", "app.py --port 9000"]


def test_the_windows_file_has_windows_lines_and_no_other_letters() -> None:
    data = (ROOT / "start.bat").read_bytes()
    assert data.count(b"\n") == data.count(b"\r\n")
    assert data.isascii()
