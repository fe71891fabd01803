"""Two lines for every error that the user can fix: flags, .env, weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.command_line.runs import CASES, CONTENT, GOLDEN_FLAGS, STYLE, TINY, assert_refused, flags_of
from tests.conftest import GOLDEN
from uso_core.settings import ROOT

# --- what the user can put right --------------------------------------------------------------------------------------

BAD_FLAGS = {
    "width 0": ("--width", "0"),
    "an address": ("--image_paths", "https://example.org/a.png"),
    "a strength of nothing": ("--content_strength", "0.5"),
    "width -1": ("--width", "-1"),
    "width 10^9": ("--width", "1000000000"),
    "width nan": ("--width", "nan"),
    "width 64.5": ("--width", "64.5"),
    "width of 5000 digits": ("--width", "9" * 5000),
    "height 0": ("--height", "0"),
    "height inf": ("--height", "inf"),
    "height 8": ("--height", "8"),
    "steps 0": ("--num_steps", "0"),
    "steps 10^9": ("--num_steps", "1000000000"),
    "steps x": ("--num_steps", "x"),
    "guidance nan": ("--guidance", "nan"),
    "guidance inf": ("--guidance", "inf"),
    "guidance -1": ("--guidance", "-1"),
    "guidance text": ("--guidance", "strong"),
    "seed -2": ("--seed", "-2"),
    "seed 2^64": ("--seed", str(2**64)),
    "seed text": ("--seed", "lucky"),
    "content size 0": ("--content_ref", "0"),
    "content size nan": ("--content_ref", "nan"),
    "no images": ("--num_images_per_prompt", "0"),
    "too many images": ("--num_images_per_prompt", "1000000"),
    "unknown flag": ("--cfg", "3"),
    "flag without its value": ("--width",),
    "stray word": ("cat",),
    "unknown model": ("--name", "flux-pro"),
    "unknown model type": ("--model_type", "flux-pro"),
    "unknown device": ("--device", "abacus"),
    "device that is not there": ("--device", "cuda:99"),
    "device that computes nothing": ("--device", "meta"),
    "unknown dtype": ("--dtype", "float8"),
    "unknown schedule": ("--schedule", "karras"),
    "offload maybe": ("--offload=maybe",),
    "missing image": ("--image_paths", "missing.png"),
    "missing style": ("--image_paths", "", "missing.png"),
    "image that is text": ("--image_paths", "notes.txt"),
    "image that is empty": ("--image_paths", "empty.png"),
    "image that is cut": ("--image_paths", "cut.png"),
    "image that is a folder": ("--image_paths", "folder"),
    "image of a long name": ("--image_paths", "x" * 300),
    "image of an unknown home": ("--image_paths", "~nobody-of-this-name/a.png"),
    "nine style images": ("--image_paths", "", *[str(STYLE)] * 9),
    "extreme content": ("--image_paths", "extreme.png"),
    "extreme content, kept": ("--image_paths", "extreme.png", "--instruct_edit"),
    "keep size without content": ("--instruct_edit",),
    "too strong": ("--image_paths", "", str(STYLE), "--style_strengths", "2.5"),
    "one strength for no style": ("--style_strengths", "1.5"),
    "keep size of a style": ("--image_paths", "", str(STYLE), "--instruct_edit"),
    "save path is a file": ("--save_path", "notes.txt"),
    "save path below a file": ("--save_path", "notes.txt/results"),
    "save path of a long name": ("--save_path", "x" * 300),
    "prompt too long": ("--prompt", "x" * 20_001),
    "prompt with half a character": ("--prompt", "\udcff"),
    "LoRA without a name": ("--lora", ""),
    "empty save path": ("--save_path", ""),
    "LoRA of a strength alone": ("--lora", ":0.5"),
    "endless eval file": ("--eval_json_path", "/dev/zero"),
}


@pytest.fixture
def images_here(workplace: Path) -> None:
    (workplace / "notes.txt").write_text("a red mug on the beach")
    (workplace / "empty.png").touch()
    (workplace / "cut.png").write_bytes(CONTENT.read_bytes()[:500])
    (workplace / "folder").mkdir()
    Image.new("RGB", (4000, 10)).save(workplace / "extreme.png")


@pytest.mark.usefixtures("images_here")
@pytest.mark.parametrize("kind", BAD_FLAGS)
def test_a_bad_flag_is_refused_in_two_lines(kind, command, workplace):
    before = sorted(workplace.rglob("*"))
    assert_refused(command("--prompt", "a cat", *TINY, *BAD_FLAGS[kind]))
    assert sorted(workplace.rglob("*")) == before


def test_the_range_of_a_guidance_is_the_models(command):
    for given in ("-1", "50"):
        _, hint = assert_refused(command("--prompt", "a cat", *TINY, "--name", "uso-tiny", "--guidance", given))
        assert "from 1 to 7" in hint


def test_a_file_whose_name_begins_like_a_home_is_a_file(command, workplace):
    shutil.copy(CONTENT, workplace / "~nobody-of-this-name.png")
    assert command("--prompt", "a cat", *TINY, "--image_paths", "~nobody-of-this-name.png").code == 0


@pytest.mark.parametrize("flags", [(), ("--image_paths", CONTENT), ("--prompt",)])
def test_a_missing_prompt_is_refused(flags, command):
    error, _ = assert_refused(command(*TINY, *flags))
    assert "prompt" in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_refused(command):
    error, hint = assert_refused(command("--prompt", "a cat", *TINY, "--device", "cuda"))
    assert "cuda" in error
    assert "cpu" in hint


@pytest.mark.parametrize(
    "line", ["USO_PORT=abc", "USO_PORT=0", "USO_DTYPE=half", "USO_OFFLOAD=maybe", "USO_NAME=flux-pro"]
)
def test_a_bad_line_in_dotenv_is_refused(line, command, workplace):
    (workplace / ".env").write_text(line + "\n")
    flags = [flag for flag in TINY if flag not in ("--name", "uso-tiny")]
    error, _ = assert_refused(command("--prompt", "a cat", *flags))
    assert line.split("=")[1] in error


def test_a_dotenv_in_another_encoding_is_refused(command, workplace):
    (workplace / ".env").write_text("USO_OUTPUT=Bücher\n", encoding="cp1252")
    error, _ = assert_refused(command("--prompt", "a cat", *TINY))
    assert ".env" in error


def spoilt_encoder(folder: Path) -> Path:
    """T5 without one of its tensors."""
    copy = Path(shutil.copytree(GOLDEN / "t5", folder / "t5-spoilt"))
    tensors = load_file(copy / "model.safetensors")
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    return copy


def cut_vae(folder: Path) -> Path:
    path = folder / "ae.safetensors"
    path.write_bytes((GOLDEN / "ae.safetensors").read_bytes()[:100_000])
    return path


def web_page(folder: Path) -> Path:
    path = folder / "flux1-dev.safetensors"
    path.write_text("<!DOCTYPE html><html><body>Access denied</body></html>")
    return path


TINY_FOLDER = ROOT / "weights" / "uso-tiny"


def clip_without_config(folder: Path) -> Path:
    shutil.copytree(GOLDEN / "clip", folder, dirs_exist_ok=True)
    (folder / "config.json").unlink()
    return folder / "model.safetensors"


BAD_WEIGHTS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "transformer is not there": ("FLUX_DEV", lambda folder: folder / "missing.safetensors"),
    "transformer's path is too long": ("FLUX_DEV", lambda folder: folder / ("x" * 300)),
    "transformer in no one's home": ("FLUX_DEV", lambda folder: Path("~nobody-of-this-name/flux.safetensors")),
    "transformer is an empty folder": ("FLUX_DEV", lambda folder: folder),
    "transformer is a web page": ("FLUX_DEV", web_page),
    "transformer is the VAE": ("FLUX_DEV", lambda folder: GOLDEN / "ae.safetensors"),
    "VAE is the LoRA": ("AE", lambda folder: GOLDEN / "dit_lora.safetensors"),
    "VAE is cut": ("AE", cut_vae),
    "LoRA is the projector": ("LORA", lambda folder: GOLDEN / "projector.safetensors"),
    "LoRA of another depth": ("LORA", lambda folder: TINY_FOLDER / "dit_lora.safetensors"),
    "projector is the LoRA": ("PROJECTION_MODEL", lambda folder: GOLDEN / "dit_lora.safetensors"),
    "projector for another vision tower": ("PROJECTION_MODEL", lambda folder: TINY_FOLDER / "projector.safetensors"),
    "T5 is not there": ("T5", lambda folder: folder / "t5"),
    "T5 is CLIP": ("T5", lambda folder: GOLDEN / "clip"),
    "T5 lacks a tensor": ("T5", spoilt_encoder),
    "CLIP is a file of unknown heads": ("CLIP", clip_without_config),
    "CLIP is an empty folder": ("CLIP", lambda folder: folder),
    "CLIP of another width": ("CLIP", lambda folder: TINY_FOLDER / "clip"),
    "SigLIP is T5": ("SIGLIP_PATH", lambda folder: GOLDEN / "t5"),
    "SigLIP of another size": ("SIGLIP_PATH", lambda folder: TINY_FOLDER / "siglip"),
}


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_bad_weights_are_refused_in_two_lines(kind, command, golden_environment, monkeypatch, tmp_path):
    variable, make = BAD_WEIGHTS[kind]
    (tmp_path / "made").mkdir()
    path = make(tmp_path / "made")
    monkeypatch.setenv(variable, str(path))
    error, _ = assert_refused(command(*flags_of(CASES["style_subject"] | {"num_steps": 1}), *GOLDEN_FLAGS))
    assert str(path) in error
    if "not there" in kind:
        assert variable in error


def test_without_weights_a_named_model_says_what_is_missing(command, workplace, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(workplace))
    error, hint = assert_refused(command("--prompt", "a cat", "--name", "flux-krea-dev", "--weights", workplace))
    assert "FLUX_KREA_DEV" in error
    assert "downloader.py --variant flux-krea-dev" in hint


def test_usos_own_lora_is_not_applied_twice(command):
    own = ROOT / "weights" / "uso-tiny" / "dit_lora.safetensors"
    run = command("--prompt", "a cat", *TINY, "--lora", own)
    error, _ = assert_refused(run)
    assert "dit_lora is USO's own" in error
