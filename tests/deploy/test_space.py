"""A Space: the executor under the real package `spaces`, the folder that is published, its pins and front matter."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from gradio_client import Client
from packaging.requirements import Requirement

from deploy.space.app import SPACE, chosen, provide
from deploy.space.assemble import FOLDERS, assemble
from tests.serving import clean_environment, free_port, wait_until_it_answers
from tests.test_requirements import declared
from uso_core.request import GenerationRequest
from uso_core.runtime.executors.zerogpu import seconds
from uso_core.settings import ROOT, Settings

# ZeroGPU's documentation, August 2026.
PLATFORM_TORCH = ("2.8.0", "2.9.1", "2.10.0", "2.11.0")
PLATFORM_PYTHON = ("3.10.13", "3.12.12")
SHORT_CHARACTERS = 60  # of the Hub's short description


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each test of the program reported."""
    folder = tmp_path_factory.mktemp("space")
    output, reports = folder / "output", folder / "reports"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ZEROGPU_OFFLOAD_DIR": str(folder / "offload")}
    command = [sys.executable, "-m", "tests.deploy.space_program", str(reports)]
    with output.open("wb") as file:  # not a pipe, which an orphaned process would hold open
        subprocess.run(
            command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True, check=False
        )
    told = [json.loads(line) for line in reports.read_text().splitlines()]
    assert len(told) == 8, output.read_text()
    return {each["test"]: each["result"] for each in told}


@pytest.mark.slow
def test_a_request_runs_in_the_platforms_process_with_previews(told):
    assert told["steps"]["names"] == ["Encoding", *["Step"] * 4, "ImageReady", "Done"]  # nothing is loaded there
    assert told["steps"]["previews"] == [True] * 4
    assert told["steps"]["loaded"]


@pytest.mark.slow
def test_a_second_request_uses_the_same_process(told):
    assert told["again"] == {"ready": [0, 1], "pids": 1}


@pytest.mark.slow
def test_stop_gives_the_gpu_back_at_once(told):
    assert told["stop"]["last"] == "Cancelled"
    assert told["stop"]["seconds"] < 10.0  # a step of a part of a second, on a busy machine; all 200 take half a minute


@pytest.mark.slow
def test_skip_abandons_one_image(told):
    assert told["skip"] == {"skipped": [0], "ready": [1]}


@pytest.mark.slow
def test_a_process_that_is_killed_is_told_in_the_platforms_words_and_replaced(told):
    assert told["killed"] == {"key": "zerogpu", "words": "GPU task aborted", "after": "Done", "new": 1}


@pytest.mark.slow
def test_a_refused_quota_is_told_in_the_platforms_words(told):
    assert told["quota"]["key"] == "zerogpu"
    assert "GPU limit" in told["quota"]["words"]


@pytest.mark.slow
def test_a_visitors_own_quota_is_charged(told):
    assert told["visitor"] == {"before": False, "sent": True}


@pytest.mark.slow
def test_another_model_is_refused(told):
    assert told["elsewhere"] == {"key": "model_elsewhere"}


@pytest.mark.slow
def test_a_model_is_loaded_where_cuda_is_only_emulated(tmp_path):
    """In the main thread, without timing a kernel or initializing CUDA; other threads may ask what is loaded."""
    output = tmp_path / "output"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ZEROGPU_OFFLOAD_DIR": str(tmp_path / "offload")}
    command = [sys.executable, "-m", "tests.deploy.space_emulation"]
    with output.open("wb") as file:
        subprocess.run(
            command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True, check=False
        )
    lines = [line for line in output.read_text().splitlines() if line.startswith("{")]
    assert lines, output.read_text()
    assert json.loads(lines[0]) == {"device": "cuda:0", "dtype": "bfloat16", "devices": ["cuda"], "initialized": False}


def test_the_time_asked_for_grows_with_the_work():
    base = GenerationRequest(prompt="a", seed=1)
    asked = seconds(base)
    for more in ({"width": 1536}, {"steps": 50}, {"images": 2}):
        assert seconds(GenerationRequest(prompt="a", seed=1, **more)) > asked
    assert 15 < asked < 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return assemble(tmp_path_factory.mktemp("build") / "space")


def front_matter(folder: Path) -> dict[str, Any]:
    (text,) = re.findall(r"\A---\n(.*?)\n---\n", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return yaml.safe_load(text)


def test_the_front_matter_names_what_the_platform_has(folder):
    known = front_matter(folder)
    assert known["sdk"] == "gradio"
    assert known["python_version"] in PLATFORM_PYTHON
    assert declared("requirements.txt")["gradio"].specifier.contains(known["sdk_version"])
    assert (folder / known["app_file"]).is_file()
    assert len(known["short_description"]) <= SHORT_CHARACTERS
    assert {"models", "suggested_hardware", "license", "startup_duration_timeout"} <= set(known)
    preloaded = {line.split()[0] for line in known["preload_from_hub"]}
    assert preloaded <= set(known["models"])
    assert not any("black-forest-labs" in each for each in preloaded)  # gated: only with the owner's token


def test_the_pins_are_the_platforms_and_within_our_requirements(folder):
    lines = (folder / "requirements.txt").read_text(encoding="utf-8").split()
    pins = {Requirement(line).name: Requirement(line) for line in lines}
    (torch,) = pins["torch"].specifier
    assert torch.version in PLATFORM_TORCH
    ours = declared("requirements.txt")
    assert set(ours) - {name.replace("_", "-").lower() for name in pins} == {"gradio"}  # by sdk_version
    for name, pin in pins.items():
        if (wanted := ours.get(name.replace("_", "-").lower())) is not None:
            exact = [each.version for each in pin.specifier if each.operator == "=="]
            assert all(wanted.specifier.contains(version) for version in exact), name


def test_the_folder_holds_all_that_the_page_needs_and_nothing_else(folder):
    for name in FOLDERS:
        assert (folder / name).is_dir()
    assert not [path for path in folder.rglob("*") if path.name in ("__pycache__", ".git", "tests", ".venv")]
    done = subprocess.run(
        [sys.executable, "-c", "import app; print(app.MODEL)"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "flux-dev\n"), done.stderr


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(FileExistsError):
        assemble(tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_without_a_token_the_embedded_model_is_served_and_the_remedy_said():
    model, reason = provide(Settings(**SPACE))
    assert (model.name, reason.key) == ("uso-tiny", "reason_space_no_token")


def test_without_access_the_reason_is_said(monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", _denied)
    model, reason = provide(Settings(**SPACE, hf_token="hf_secret"))
    assert (model.name, reason.key) == ("uso-tiny", "reason_space_denied")
    assert "hf_secret" not in str(reason)


def _denied(repo: str, **_: Any) -> None:
    raise OSError(f"403 Client Error for {repo}")


@pytest.mark.slow
def test_the_folder_serves_its_page_and_a_call_makes_an_image(folder, tmp_path):
    port, calls = free_port(), tmp_path / "calls.json"
    variables = {"GRADIO_SERVER_PORT": str(port), "USO_DEVICE": "cpu", "USO_OUTPUT": str(tmp_path / "output")}
    environment = {**clean_environment(tmp_path), "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-m", "tests.deploy.space_page", str(folder), str(calls)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_it_answers(url, process, tmp_path / "log")
        client = Client(url, verbose=False, analytics_enabled=False, download_files=str(tmp_path))
        job = client.submit(prompt="a red mug", width=64, height=64, steps=2, api_name="/generate")
        images, settings, status, _ = job.result(timeout=240)
        client.close()
        assert Path(images[0]).read_bytes().startswith(b"\x89PNG")
        assert settings["model"] == "uso-tiny"
        framed = urllib.request.Request(url, headers={"Host": "ann-uso.hf.space"})
        with urllib.request.urlopen(framed, timeout=240) as reply:
            assert "SameSite=None; Secure; Partitioned" in reply.headers["set-cookie"]
            assert "HF_TOKEN" in reply.read().decode()  # how its owner adds FLUX.1-dev
        made = [path for path, _ in json.loads(calls.read_text())]
        assert made.count("/schedule") == made.count("/release") == 1
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_what_the_owner_of_a_space_sets_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ALLOW_HOST", "VRAM_LIMIT", "COMPILE"):
        monkeypatch.delenv(f"USO_{name}", raising=False)
    plain = chosen()
    assert {name: getattr(plain, name) for name in SPACE} == SPACE
    monkeypatch.setenv("USO_ALLOW_HOST", "art.example.org")
    monkeypatch.setenv("USO_VRAM_LIMIT", "20")
    own = chosen()
    assert (own.allow_host, own.vram_limit, own.compile) == ("*.hf.space,art.example.org", 20, "off")


def test_a_wrong_variable_of_a_space_is_a_sentence(tmp_path: Path) -> None:
    environment = {**clean_environment(tmp_path), "PYTHONPATH": str(ROOT), "USO_VRAM_LIMIT": "lots"}
    ended = subprocess.run(
        [sys.executable, ROOT / "deploy" / "space" / "app.py"], cwd=tmp_path, env=environment, capture_output=True,
        text=True, timeout=240,
    )  # fmt: skip
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert "USO_VRAM_LIMIT" in ended.stderr
    assert "Traceback" not in ended.stderr
