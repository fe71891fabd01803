"""From a run to released files, and back."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from training import checkpoint, export, latent_cache
from training.autoencoder import build_vae
from training.batches import BatchMaker, RecordStore
from training.lora import fused
from training.model import REFERENCE_COLUMNS, TinyUso
from training.published import begin
from training.release import release, release_vae
from training.stages import STAGES
from training.strip import SHOWN, Block, draw_strip, save_small
from training.teacher import Teacher
from training.text import TEXT_TOKENS, read_words
from training.train import Plan, Training, load_model, save_model
from training.trials import RELEASED, make_trial
from uso_core.catalog.models import EMBEDDED_FILES, get_model
from uso_core.runtime.load import assemble
from uso_core.settings import Settings

from .small_run import SMALL


def test_a_saved_model_is_the_same_model(tmp_path: Path) -> None:
    model = TinyUso(SMALL)
    save_model(tmp_path / "joint.safetensors", model, {"step": 3})
    again = load_model(tmp_path / "joint.safetensors")
    assert checkpoint.read_facts(tmp_path / "joint.safetensors")["step"] == 3
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_released_model_is_what_was_trained_to_the_ordinary_loader(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TinyUso(SMALL)
    for parameter in model.parameters():  # a fresh LoRA and fresh modulations would be zero
        torch.nn.init.normal_(parameter, std=0.05)
    model.to(torch.bfloat16).float()  # so that the release rounds nothing but the fused weights
    expected = model.transformer.state_dict() | fused(model.transformer, model.lora)
    release(model, tmp_path)
    export.export_vae(build_vae((32, 64, 96, 128), 0.7, 0.1), tmp_path / "ae.safetensors")
    paths = {role: tmp_path / name for role, name in EMBEDDED_FILES.items()}
    pipeline = assemble(paths, Settings(device="cpu", dtype="float32"), get_model("uso-tiny"))[0]
    for name, weight in pipeline.transformer.state_dict().items():
        torch.testing.assert_close(weight, expected[name].detach(), rtol=1e-6, atol=1e-7)
    assert pipeline.config.text_tokens == TEXT_TOKENS
    assert pipeline.config.reference_columns == REFERENCE_COLUMNS
    assert pipeline.vae.config.scaling_factor == 0.7
    asked = "a sleepy red mug"
    text, pooled = pipeline.encode_prompt(asked)
    read = read_words([asked])
    torch.testing.assert_close(text, model.t5.float()(input_ids=read.t5).last_hidden_state, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pooled, model.clip.float()(input_ids=read.clip).pooler_output, rtol=1e-4, atol=1e-4)
    image = pipeline(asked, width=64, height=48, num_inference_steps=1, seed=1).images[0]
    assert image.size == (64, 48)


def test_a_run_begins_at_the_published_weights(tmp_path: Path) -> None:
    """What a release is read into is released as the very same tensors and notes."""
    begin(RELEASED, tmp_path)
    release(load_model(tmp_path / "joint.safetensors"), tmp_path / "again")
    release_vae(tmp_path, tmp_path / "again")
    for path in sorted(RELEASED.rglob("*.safetensors")):
        with safe_open(path, "pt") as there, safe_open(tmp_path / "again" / path.relative_to(RELEASED), "pt") as here:
            tensors = set(there.keys())
            assert set(here.keys()) == tensors, path
            assert all(torch.equal(here.get_tensor(name), there.get_tensor(name)) for name in tensors), path
            notes = [json.loads(file.metadata().get("uso", "{}")) for file in (here, there)]
            assert notes[0] == notes[1], path


def test_a_run_that_has_gone_on_is_not_begun_anew(tmp_path: Path) -> None:
    checkpoint.save_state(tmp_path / "joint_state.pt", {"step": 7})
    with pytest.raises(FileExistsError, match="step 7"):
        begin(RELEASED, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["joint_state.pt"]


def test_training_goes_on_from_published_weights(run: Path, tmp_path: Path) -> None:
    model = TinyUso(SMALL)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    release(model, tmp_path)
    export.export_vae(
        build_vae((32, 64, 96, 128), 0.7, 0.1), tmp_path / "ae.safetensors", {"preview": [[0.0] * 3] * 17}
    )
    begun = tmp_path / "run"
    copytree(run, begun, ignore=ignore_patterns("*state.pt", "latents_*", "vae.*"))
    begin(tmp_path, begun)
    latent_cache.encode_records(begun, "cpu")
    store = RecordStore(begun)
    for stage in ("joint", "adapter"):
        maker = BatchMaker(store, 400, STAGES[stage].mode_chance)
        training = Training(begun, Plan(steps=3, stage=STAGES[stage]), maker, Teacher(), "cpu", SMALL)
        training.resume()
        assert (training.step, training.began) == (0, 0)
        name = "single_blocks.0.processor.qkv_lora.up.weight"
        before = training.model.lora.state_dict()[name].clone()
        torch.testing.assert_close(before, model.lora.state_dict()[name], rtol=0.01, atol=0)
        training.train_step(maker.at(0, 0, "subject"))
        assert not torch.equal(training.model.lora.state_dict()[name], before)


def test_what_did_not_change_is_released_as_the_same_file(tmp_path: Path) -> None:
    path, tensors = tmp_path / "dit_lora.safetensors", {"block": (torch.randn(2, 8), torch.randn(8, 2))}
    export.export_lora(tensors, path)
    once = path.stat().st_mtime_ns
    export.export_lora(tensors, path)
    assert path.stat().st_mtime_ns == once
    down, up = tensors["block"]
    for other in (down, up + 1), (down[:1], up[:, :1]):
        export.export_lora({"block": other}, path)
        assert torch.equal(load_file(path)["block.up.weight"], other[1].bfloat16())
    export.export_vae(build_vae((8, 8, 8, 8), 0.7, 0.1), path)
    assert "block.up.weight" not in load_file(path)


def test_a_strip_shows_what_was_given_and_stays_small(tmp_path: Path) -> None:
    blocks = [Block(trial, trial.truth) for trial in (make_trial(mode, 2) for mode in SHOWN)]
    strip = draw_strip(blocks)
    assert strip.width > 6 * 256
    save_small(strip, tmp_path / "strip.png")
    assert (tmp_path / "strip.png").stat().st_size <= 300_000
    with Image.open(tmp_path / "strip.png") as image:
        assert image.size == strip.size
