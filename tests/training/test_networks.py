"""The networks of the recipe: LoRA, teacher, decoder, and how a model draws."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree, ignore_patterns

import numpy as np
import pytest
import torch

from training import checkpoint
from training.autoencoder import build_vae
from training.batches import BatchMaker, RecordStore
from training.decoder import DecoderTraining, Looks, draw_bank
from training.lora import Lora, fused
from training.measure import load_measurer
from training.model import Conditions, TinyUso, build_transformer
from training.published import load_published
from training.sampling import DEFAULT_STEPS, sample
from training.stages import STAGES
from training.teacher import Lessons, Teacher, accuracy_at, load_teacher, train_teacher
from training.text import read_words
from training.train import save_model
from training.trials import RELEASED, Painter, make_trial
from uso_core.catalog.models import get_model
from uso_core.model.latents import pack

from .small_run import SMALL


def test_the_lora_has_the_published_names_and_adds_up() -> None:
    torch.manual_seed(0)
    transformer = build_transformer(SMALL)
    lora = Lora(SMALL.width, 4 * SMALL.width, SMALL.doubles, SMALL.singles, SMALL.rank)
    names = set(lora.state_dict())
    assert "double_blocks.0.processor.qkv_lora1.down.weight" in names
    assert lora.state_dict()["single_blocks.0.processor.proj_lora.down.weight"].shape == (4, 5 * SMALL.width)
    for pair in lora.modules():
        if hasattr(pair, "up"):
            torch.nn.init.normal_(pair.up.weight)
    block = lora.single_blocks[0].processor["qkv_lora"]
    weights = fused(transformer, lora)
    x = torch.randn(3, SMALL.width)
    layer = transformer.single_transformer_blocks[0].attn.to_k
    apart = layer(x) + block.up(block.down(x)).chunk(3, -1)[1]
    merged = x @ weights["single_transformer_blocks.0.attn.to_k.weight"].T + layer.bias
    assert torch.allclose(apart, merged, atol=1e-5)
    assert len(weights) == 8 + 4  # q, k, v and proj of two streams; q, k, v and the second linear


def test_a_fused_model_predicts_what_the_adapted_one_does() -> None:
    torch.manual_seed(0)
    model = TinyUso(SMALL)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    with torch.no_grad():
        text, pooled = model.encode_text(read_words(["a red mug", ""]))
        style = model.encode_style(torch.randint(256, (2, 1, 128, 128, 3), dtype=torch.uint8))
        x, reference, level = torch.randn(2, 16, 4, 6), torch.randn(2, 16, 4, 4), torch.rand(2)
        adapted = model.velocity(x, level, level, Conditions(text, pooled, style, reference, True))
        model.transformer.load_state_dict(model.adapted_weights(), strict=False)
        merged = model.velocity(x, level, level, Conditions(text, pooled, style, reference, False))
    assert torch.allclose(adapted, merged, atol=1e-5)


def test_what_training_draws_is_what_the_application_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.precision.fast_dtype", lambda _kind: torch.float32)  # as `Painter` computes
    model, row, prompt = load_published(RELEASED), get_model("uso-tiny"), "a red cat on the beach"
    trial = make_trial("style", 0)
    drawn = sample(model, [prompt], style=torch.from_numpy(np.stack(trial.styles))[None], seed=3)
    painter = Painter()
    found: list[torch.Tensor] = []
    real = painter.pipeline.vae.decode
    monkeypatch.setattr(
        painter.pipeline.vae, "decode", lambda latents, *a, **k: found.append(latents) or real(latents, *a, **k)
    )
    painter.paint(prompt, styles=trial.styles, seed=3)
    vae = painter.pipeline.vae.config
    applied = (found[0] - vae.shift_factor) * vae.scaling_factor
    assert row.steps == DEFAULT_STEPS
    assert float((drawn - applied).norm()) < 0.005 * float(applied.norm())


def test_a_decoder_learns_from_the_models_own_mistakes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.decoder.DRAWN", 4)
    monkeypatch.setattr("training.decoder.BATCH", {"clean": 1, "mistaken": 1, "own": 1})
    own = Path(copytree(run, tmp_path / "run", ignore=ignore_patterns("*.pt")))
    save_model(own / "joint.safetensors", TinyUso(SMALL), {})
    checkpoint.save_tensors(own / "vae.safetensors", build_vae().state_dict())
    constants = {"block_out_channels": [32, 64, 96, 128], "scaling_factor": 0.7, "shift_factor": 0.1}
    (own / "vae.json").write_text(json.dumps(constants))
    store = RecordStore(own)
    bank = draw_bank(own, store, mistaken=4, own=4)
    assert bank["latents"].shape == (8, 16, 16, 16)

    def begin_or_go_on() -> DecoderTraining:
        return DecoderTraining(own, 3, store, load_measurer(), bank)

    whole = begin_or_go_on()
    before = {name: value.clone() for name, value in whole.vae.state_dict().items()}
    losses = [whole.train_step() for _ in range(2)]
    assert set(losses[0]) == {"rebuilt", "looks", "real", "anchor", "critic"}
    assert losses[0]["anchor"] < 1e-6 < losses[1]["anchor"]  # it begins as the decoder before
    whole.save()
    resumed = begin_or_go_on()
    assert resumed.step == 2
    for training in (whole, resumed):
        training.run_all()
    for name, value in checkpoint.load_tensors(own / "vae.safetensors").items():
        assert torch.equal(value, whole.vae.state_dict()[name]), name
        assert torch.equal(value, resumed.vae.state_dict()[name]), name
        assert torch.equal(value, before[name]) == (not name.startswith("decoder.")), name


def test_looks_tell_images_apart() -> None:
    looks = Looks(load_measurer())
    one, two = (torch.rand(2, 3, 128, 128) for _ in range(2))
    assert looks(one, one) == 0 < looks(one, two)


def test_a_teacher_learns_to_read_latents(run: Path) -> None:
    teacher = train_teacher(run, 40, batch=16)
    right = accuracy_at(teacher, RecordStore(run), 0.0, count=8)
    assert right["subject"] > 0.5  # of 12, and of latents that are noise: learnt by heart
    checkpoint.save_tensors(run / "teacher.safetensors", teacher.state_dict())
    x, times = torch.randn(2, 16, 18, 14), torch.tensor([0.2, 0.9])
    assert torch.equal(load_teacher(run).features(x, times), teacher.features(x, times))


def test_the_right_velocity_has_nothing_to_learn_about_likeness(run: Path) -> None:
    torch.manual_seed(2)
    batch = BatchMaker(RecordStore(run), 400, STAGES["joint"].mode_chance).at(0, 0, "subject")
    lessons, model = Lessons(Teacher(), SMALL.width), TinyUso(SMALL)
    lessons.listen(model)
    clean, noise = batch.clean.float(), torch.randn(batch.clean.shape)
    times = torch.linspace(0.1, 0.9, len(clean))
    level = times[:, None, None, None]
    noisy = (1 - level) * clean + level * noise
    text, pooled = model.encode_text(batch.words)
    conditions = Conditions(text, pooled, None, batch.reference.float(), True)

    def losses(velocity: torch.Tensor) -> dict[str, torch.Tensor]:
        model.velocity(noisy, times, times, conditions)
        return lessons(batch, clean, noisy, times, velocity)

    right = pack(noise - clean).requires_grad_()
    wrong = (right + 0.5 * torch.randn_like(right)).detach().requires_grad_()
    assert losses(right)["likeness"] < 1e-5 < losses(wrong)["likeness"]
    for name in ("likeness", "reading"):
        gradient = torch.autograd.grad(losses(wrong)[name], wrong)[0]
        assert gradient.abs().sum() > 0
    hidden = torch.autograd.grad(losses(wrong)["alignment"], model.transformer.x_embedder.weight)[0]
    assert hidden.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in lessons.teacher.parameters())
