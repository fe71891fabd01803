"""As a new user would, with nothing but a ComfyUI folder: `python app.py --models-dir ...` makes an image."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gradio_client import Client
from PIL import Image

from tests.catalog import comfy_folder as comfy
from tests.serving import REPLY_SECONDS, Served, clean_environment, serve
from uso_core.runtime import doctor
from uso_core.settings import ROOT


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return comfy.build(tmp_path_factory.mktemp("new") / "ComfyUI")


@pytest.fixture(scope="module")
def served(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("server")
    with serve(folder, "--models-dir", str(whole), "--weights", str(folder / "weights"), name=None) as running:
        yield running


def made(client: Client, **values: object) -> tuple[np.ndarray, dict[str, object]]:
    job = client.submit(
        prompt="A red mug on the beach.",
        width=256,
        height=256,
        steps=3,
        seed=1,
        sampler="euler",
        **values,
        api_name="/generate",
    )
    images, settings, _, _ = job.result(timeout=REPLY_SECONDS)
    with Image.open(images[0]) as image:
        return np.asarray(image, dtype=np.float32), settings


def test_an_image_from_nothing_but_a_comfyui_folder(served, tmp_path):
    client = Client(served.url, verbose=False, analytics_enabled=False, download_files=str(tmp_path))
    try:
        image, settings = made(client)
        embedded, _ = made(client, model="uso-tiny")
    finally:
        client.close()
    assert settings["model"] == "flux-dev"
    assert image.shape == (256, 256, 3)
    assert np.abs(image - embedded).mean() < 1  # the same weights, T5 rounded to float16
    assert embedded.std() > 10


def as_users_do(folder: Path, *flags: str) -> int:
    command = [sys.executable, str(ROOT / "weights" / "downloader.py"), "--doctor", *flags]
    return subprocess.run(command, cwd=folder, env=clean_environment(folder), check=False).returncode


def in_this_process(folder: Path, *flags: str) -> int:
    return doctor.main(flags)


@pytest.mark.parametrize(("ask", "inner", "code"), [(in_this_process, "", 0), (as_users_do, "models/vae", 2)])
def test_the_doctor_says_what_is_there_and_what_to_do(whole, ask, inner, code, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    weights = str(tmp_path / "weights")
    assert ask(tmp_path, "--device", "cpu", "--models-dir", str(whole / inner), "--weights", weights) == code
    said = capfd.readouterr()
    assert said.err == ""
    lines = said.out.splitlines()
    assert any(line.startswith("Python ") and "torch" in line for line in lines)
    assert any(str(whole / comfy.VAE) in line and line.strip().startswith("found") for line in lines)
    assert any("sdxl_vae" in line and "does not fit" in line for line in lines)
    commands = [line.split("--only ")[1].split()[0] for line in lines if "--only" in line]
    assert commands == ([] if code == 0 else ["transformer", "lora", "projector", "t5", "clip", "siglip"])
