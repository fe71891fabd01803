"""The recipe of the embedded model: the world draws what it says, and training is repeatable."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from training import checkpoint, data, export, inversion, latent_cache, offsets, palettes, words, world
from training.autoencoder import build_vae
from training.batches import BatchMaker, RecordStore
from training.decoder import DecoderTraining, Looks, draw_bank
from training.evaluate import worse_figures
from training.eye import features, frechet_distance, log_odds, told_alone, told_of_two
from training.foreign_images import FOREIGN_KINDS, foreign_image
from training.judge import APART, Judge, relative_outlines
from training.lora import Lora, fused
from training.measure import QUESTIONS, UNKNOWN, load_measurer, palette_distance
from training.model import REFERENCE_COLUMNS, Conditions, Shape, TinyUso, build_transformer
from training.published import begin, load_published
from training.release import release, release_vae
from training.stages import STAGES
from training.strip import SHOWN, Block, draw_strip, save_small
from training.teacher import Lessons, Teacher, accuracy_at, load_teacher, train_teacher
from training.text import TEXT_TOKENS, read_words, tokenizers
from training.train import Plan, Training, load_model, save_model
from training.trials import MODES, RELEASED, make_trial
from training.world.prompts import COLOUR_WORDS, KIND_WORDS, SCENE_WORDS, disturb, tells
from training.world.specs import MOODS, SUBJECTS, TECHNIQUES, is_held_out
from uso_core.catalog.models import EMBEDDED_FILES, get_model
from uso_core.model.latents import pack
from uso_core.runtime.load import assemble
from uso_core.settings import Settings

SMALL = Shape(heads=1, head_size=32, doubles=1, singles=1, rank=4)


def picture(seed: int = 5, kind: str = "mug", scene: str = "plain") -> world.Picture:
    rng = np.random.default_rng(seed)
    return world.Picture(world.draw_subject(rng, kind=kind), world.draw_pose(rng), world.draw_scene(rng, scene))


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_a_seed_draws_the_same_picture_in_every_format(technique: str) -> None:
    style = world.draw_style(np.random.default_rng(3), technique)
    for height, width in data.FORMATS:
        first = world.render(picture(scene="beach"), style, height, width)
        assert first.shape == (height, width, 3)
        assert np.array_equal(first, world.render(picture(scene="beach"), style, height, width))


@pytest.mark.parametrize("kind", SUBJECTS)
def test_the_subject_is_drawn_where_the_mask_says_in_its_own_colour(kind: str) -> None:
    spec = picture(kind=kind)
    spec = replace(spec, subject=replace(spec.subject, pattern="plain"))
    drawing = world.draw(spec, 128, 128)
    assert 0.08 < drawing.mask.mean() < 0.5
    colours = world.render(spec)[drawing.mask].astype(int)
    near = np.abs(colours - np.array(spec.subject.rgb)).max(1) < 12
    assert near.mean() > 0.15
    outside = world.render(spec)[~drawing.mask].astype(int)
    assert (np.abs(outside - np.array(spec.scene.backdrop)).max(1) < 12).mean() > 0.95


def test_moods_are_told_by_the_face() -> None:
    spec = picture()
    faces = [world.draw(replace(spec, subject=replace(spec.subject, mood=mood)), 128, 128).face for mood in MOODS]
    assert all(face.sum() > 20 for face in faces)
    assert all(np.abs(a - b).sum() > 10 for a, b in zip(faces, faces[1:], strict=False))


def test_a_prompt_tells_its_picture() -> None:
    for seed in range(40):
        spec = picture(seed, SUBJECTS[seed % 12], "forest")
        text = world.write_prompt(np.random.default_rng(seed), spec, detail=1.0)
        assert any(word in text for word in KIND_WORDS[spec.subject.kind])
        assert any(word in text for word in COLOUR_WORDS[spec.subject.colour])
        assert any(word in text for word in SCENE_WORDS["forest"])
    assert disturb(np.random.default_rng(0), "a red mug") != "a red mug"


def test_what_a_prompt_tells_of_a_subject_is_known() -> None:
    subject = replace(picture().subject, colour="red", second_colour="yellow", pattern="striped", mood="sleepy")
    for prompt, told in {
        "a tired scarlet mug with yellow stripes in space": {"colour", "second_colour", "pattern", "mood"},
        "A Red striped mug": {"colour", "pattern"},
        "a mug with very yellow stripes": {"second_colour", "pattern"},
        "a red and golden striped mug": {"colour", "second_colour", "pattern"},
        "a yellow mug with stripes": {"pattern"},
        "a mug with yellow dots": set(),
        "a yellow mug, sleeping": {"mood"},
        "": set(),
    }.items():
        assert {name for name, known in tells(prompt, subject).items() if known} == told, prompt
    assert tells("a mug", replace(subject, pattern="plain"))["pattern"]
    rng, subject = np.random.default_rng(0), replace(subject, mood="happy", pattern="dotted")
    prompts = [world.write_prompt(rng, replace(picture(), subject=subject), detail=1.0) for _ in range(200)]
    shares = {name: np.mean([tells(prompt, subject)[name] for prompt in prompts]) for name in tells("", subject)}
    assert shares["colour"] == shares["pattern"] == shares["second_colour"] == 1.0
    assert 0.7 < shares["mood"] < 0.9
    sparing = [world.write_prompt(rng, replace(picture(), subject=subject), detail=0.5) for _ in range(200)]
    assert 0.15 < np.mean([tells(prompt, subject)["second_colour"] for prompt in sparing]) < 0.35


def test_records_are_repeatable_and_held_out_identities_are_kept_out() -> None:
    data.make_record.cache_clear()
    first = [data.make_record(seed, split) for seed in range(60) for split in ("train", "held_out")]
    data.make_record.cache_clear()
    assert first == [data.make_record(seed, split) for seed in range(60) for split in ("train", "held_out")]
    for number, record in enumerate(first):
        s = record.target.subject
        assert is_held_out(s.kind, s.colour, s.second_colour, s.pattern, s.mood) == bool(number % 2)
        assert record.target.subject == record.content.subject
        assert record.other.subject.kind != s.kind


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


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a few records and made-up latents."""
    folder = tmp_path_factory.mktemp("run")
    shard = data.Shard("train-000", 0, 8, 128, 128, "train")
    data.render_shard(folder / "records", shard)
    rng = np.random.default_rng(0)
    for kind in data.LATENT_KINDS:
        latents = rng.standard_normal((8, 16, 16, 16)).astype(np.float16)
        np.save(latent_cache.latents_path(folder, shard, kind), latents)
    return folder


def train(run: Path, steps: int, stage: str = "joint") -> Training:
    plan = Plan(steps, token_budget=400, guided_from=2, stage=STAGES[stage])
    torch.manual_seed(1)
    maker = BatchMaker(RecordStore(run), plan.token_budget, plan.stage.mode_chance)
    training = Training(run, plan, maker, Teacher(), "cpu", SMALL)
    training.resume()
    return training


def test_every_mode_trains_and_a_resumed_run_equals_an_uninterrupted_one(run: Path) -> None:
    whole = train(run, 6)
    modes = list(whole.plan.stage.mode_chance)
    losses = [whole.train_step(whole.maker.at(0, whole.step, mode)) for mode in modes]
    assert all(torch.stack(list(parts.values())).isfinite().all() for parts in losses)
    unanswered = [parts["reading"] == 0 for parts in losses]
    assert unanswered == [mode == "blend" for mode in modes]  # no answer is right about a blend
    halves = train(run, 6)
    for mode in modes[:4]:
        halves.train_step(halves.maker.at(0, halves.step, mode))
    halves.save()
    resumed = train(run, 6)
    assert resumed.step == 4
    for mode in modes[4:]:
        resumed.train_step(resumed.maker.at(0, resumed.step, mode))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    for name, value in whole.ema.state_dict().items():
        assert torch.equal(value, resumed.ema.state_dict()[name]), name


@pytest.mark.parametrize("name", ["adapter", "palettes"])
def test_the_loras_own_stages_leave_the_base_as_it_is(run: Path, tmp_path: Path, name: str) -> None:
    own = Path(copytree(run, tmp_path / "run", ignore=ignore_patterns("*.pt")))
    joint = train(own, 6)
    for _ in range(3):
        joint.train_step(joint.maker.at(0, joint.step))
    joint.save()
    before = {part: value.clone() for part, value in joint.model.state_dict().items()}
    stage = train(own, 7, name)
    assert (stage.step, stage.began) == (3, 3)
    for mode in ("text", "both"):
        stage.train_step(stage.maker.at(0, stage.step, mode))
    stage.save()
    resumed = train(own, 7, name)
    assert (resumed.step, resumed.began) == (5, 3)
    for model in (resumed.model, resumed.ema):
        changed = {part.split(".")[0] for part, value in model.state_dict().items() if not value.equal(before[part])}
        assert changed == {"lora", "projector"}
    joint.train_step(joint.maker.at(0, joint.step))
    joint.save()
    assert train(own, 7, name).began == 4


def test_the_reward_stage_moves_nothing_but_biases_and_learns_from_its_own_pictures(run: Path, tmp_path: Path) -> None:
    own = Path(copytree(run, tmp_path / "run", ignore=ignore_patterns("*.pt")))
    for name in ("joint", "adapter"):
        train(own, 6, name).save()
    stage = train(own, 40, "reward")
    for parameter in stage.model.parameters():  # the last layer and the modulations begin as nothing
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    before = {name: value.clone() for name, value in stage.model.state_dict().items()}
    text, layout, blend = (stage.maker.at(0, 0, mode) for mode in ("text", "layout", "blend"))
    assert set(stage.own_losses(text, np.random.default_rng(0))) == {"own reading", "own doubt"}
    assert set(stage.own_losses(layout, np.random.default_rng(0))) == {"own reading", "own likeness"}
    seen = {frozenset(stage.losses(blend, np.random.default_rng(number))) for number in range(8)}
    assert not any(name.startswith("own") for names in seen for name in names)  # nothing is right about a blend
    seen = {frozenset(stage.losses(text, np.random.default_rng(number))) for number in range(8)}
    assert len(seen) == 2  # its own pictures, and given ones
    for _ in range(4):
        stage.train_step(text)
    after = stage.model.state_dict()
    changed = {name for name, value in before.items() if not value.equal(after[name])}
    assert changed
    assert all(name.startswith("transformer.") and name.endswith(".bias") for name in changed)
    stage.save()
    assert train(own, 40, "reward").step == 4
    kept, average = load_model(own / "joint.safetensors").state_dict(), stage.ema.state_dict()
    for name, value in kept.items():
        if name in changed:
            torch.testing.assert_close(value, average[name], rtol=2**-4, atol=0)
            assert not (value.view(torch.int32) & (1 << 20) - 1).any()  # one bit in front, three of 23 behind
        else:
            assert torch.equal(value, average[name]), name


def test_the_adversary_learns_beside_the_model_and_neither_moves_the_other(run: Path, tmp_path: Path) -> None:
    own = Path(copytree(run, tmp_path / "run", ignore=ignore_patterns("*.pt")))
    stage = train(own, 40, "shape")
    text = stage.maker.at(0, 0, "text")
    drawn = (stage.losses(text, np.random.default_rng(number)) for number in range(20))
    losses = next(found for found in drawn if "critic" in found)
    heads, last = stage.adversary.heads.far.verdict.weight, stage.model.transformer.proj_out.weight
    seen = {
        name: torch.autograd.grad(losses[name], (heads, last), retain_graph=True, allow_unused=True)
        for name in ("own real", "critic")
    }
    assert (seen["own real"][0], seen["critic"][1]) == (None, None)
    assert seen["own real"][1].abs().sum() > 0
    assert seen["critic"][0].abs().sum() > 0
    hinges = [stage.train_step(text).get("critic") for _ in range(12)]
    told = [float(hinge) for hinge in hinges if hinge is not None]
    assert told[-1] < told[0]
    stage.save()
    resumed = train(own, 40, "shape")
    stage.train_step(text)
    resumed.train_step(text)
    for name, value in stage.adversary.state_dict().items():
        assert torch.equal(value, resumed.adversary.state_dict()[name]), name


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


def test_training_asks_for_its_teacher(run: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"training\.teacher"):
        load_teacher(tmp_path)


def test_batches_drawn_ahead_are_the_same(run: Path) -> None:
    maker = BatchMaker(RecordStore(run), 400, STAGES["joint"].mode_chance)
    ahead = maker.stream(seed=3, first=5, workers=1)
    for step in (5, 6):
        given, drawn = next(ahead), maker.at(3, step)
        assert (given.mode, given.prompts) == (drawn.mode, drawn.prompts)
        assert torch.equal(given.clean, drawn.clean)


def test_a_saved_model_is_the_same_model(tmp_path: Path) -> None:
    model = TinyUso(SMALL)
    save_model(tmp_path / "joint.safetensors", model, {"step": 3})
    again = load_model(tmp_path / "joint.safetensors")
    assert checkpoint.read_facts(tmp_path / "joint.safetensors")["step"] == 3
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_words_are_whole_and_case_and_punctuation_do_not_matter() -> None:
    model = TinyUso(SMALL)
    told = [model.t5_tokenizer.tokenize(text) for text in ("A Red mug, on the BEACH!", "a red mug on the beach")]
    assert told[0] == told[1] == ["▁a", "▁red", "▁mug", "▁on", "▁the", "▁beach"]
    assert model.clip_tokenizer.tokenize("A Red mug") == ["a</w>", "red</w>", "mug</w>"]


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


def test_a_trial_is_repeatable_and_asks_for_what_the_renderer_shows() -> None:
    for mode in MODES:
        trial = make_trial(mode, 5)
        assert np.array_equal(trial.truth, make_trial(mode, 5).truth)
        assert (trial.content is not None) == (mode in ("subject", "both", "layout"))
        assert len(trial.styles) == {"style": 1, "both": 1, "layout": 1, "blend": 2}.get(mode, 0)
        assert (trial.prompt == "") == (mode == "layout")
    assert make_trial("style", 4).inside
    assert not make_trial("style", 5).inside


def test_the_judge_tells_right_answers_from_those_to_other_trials() -> None:
    judge = Judge(load_measurer())
    trials = [make_trial("layout", number) for number in range(12)]
    truths = [trial.truth for trial in trials]
    right, wrong = judge.figures(trials, truths), judge.figures(trials, truths[1:] + truths[:1])
    for name in ("subject", "scene", "technique", "palette_is_the_styles", "identity_of_8"):
        assert right[name] >= wrong[name] + 0.3, name
    assert right["style_subject_leaks"] <= 0.1
    shown = judge.figures(trials, [trial.styles[0] for trial in trials])
    assert shown["style_subject_leaks"] >= 0.8
    assert relative_outlines(right, right) == 1
    assert relative_outlines(wrong, right) < 0.3


def test_the_eye_tells_wrong_images_from_rendered_ones() -> None:
    trials = [make_trial("subject", number) for number in range(16)]
    truths = np.stack([trial.truth for trial in trials])
    numbers = [trial.number for trial in trials]
    smeared = np.stack([cv2.GaussianBlur(truth, (0, 0), 2) for truth in truths])
    measurer = load_measurer()
    seen, wrong = features(measurer, truths), features(measurer, smeared)
    assert abs(frechet_distance(seen, seen)) < 1e-6
    assert frechet_distance(seen[:8], wrong[8:]) > frechet_distance(seen[:8], seen[8:])
    shifted = frechet_distance(seen, seen + 1)
    assert abs(shifted - seen.shape[1]) < 1e-6
    told = log_odds(measurer, numbers, smeared, truths, epochs=20)
    assert told_of_two(told) > 0.9
    same = log_odds(measurer, numbers, truths, truths, epochs=1)
    assert (told_alone(same), told_of_two(same)) == (0.5, 0.5)  # nothing is learnt where nothing differs


def test_a_picture_in_a_foreign_style_has_the_palette_of_its_image() -> None:
    assert {palettes.technique(seed) for seed in range(12)} > {"flat", "watercolour"}
    drawn = []
    for seed in range(24):
        record = data.make_record(seed, "train")
        pictures = data.render_foreign(record, 128, 128)
        assert np.array_equal(pictures["foreign"], palettes.draw_image(seed))
        shades = np.array(palettes.shades(pictures["foreign"]))
        assert (np.diff(shades @ (0.3, 0.59, 0.11)) >= 0).all()
        drawn.append(pictures)
    nearer = []
    for one, two in zip(drawn[::2], drawn[1::2], strict=True):
        if palette_distance(one["foreign"], two["foreign"]) > APART:
            for own, other in ((one, two), (two, one)):
                distances = [palette_distance(own["tinted"], each["foreign"]) for each in (own, other)]
                nearer.append(distances[0] < distances[1])
    assert len(nearer) > 8
    assert np.mean(nearer) > 0.85


def test_a_foreign_style_image_asks_for_the_tinted_picture(run: Path) -> None:
    stage = STAGES["palettes"]
    store = RecordStore(run)
    maker = BatchMaker(store, 4000, stage.mode_chance, foreign_share=stage.foreign_share)
    foreign = {image.tobytes() for image in store.vision["train-000", "foreign"]}
    foreign |= {image[:, ::-1].tobytes() for image in store.vision["train-000", "foreign"]}
    tinted = {latent.tobytes() for latent in store.latents["train-000", "tinted"]}
    for mode in ("style", "both"):
        batch = maker.at(0, 0, mode)
        assert batch.style is not None
        shown = [pictures[0].numpy().tobytes() in foreign for pictures in batch.style]
        assert shown == [latent.numpy().tobytes() in tinted for latent in batch.clean]
        assert 0 < sum(shown) < len(shown)


def test_foreign_images_are_repeatable_and_of_many_colours() -> None:
    for kind in FOREIGN_KINDS:
        images = [foreign_image(kind, seed) for seed in range(4)]
        assert np.array_equal(images[0], foreign_image(kind, 0))
        assert all(image.shape == (128, 128, 3) and image.std() > 10 for image in images)
    palettes = [palette_distance(foreign_image("wash", seed), foreign_image("wash", seed + 1)) for seed in range(6)]
    assert np.mean(palettes) > 20


def test_a_figure_counts_what_the_prompt_tells() -> None:
    trials = [make_trial("text", number) for number in range(12)]
    pictures = [trial.truth for trial in trials]
    judge = Judge(load_measurer())
    wrong = [replace(trial, prompt="a picture") for trial in trials]
    assert {"colour", "second_colour"} <= set(judge.figures(trials, pictures))
    untold = judge.figures(wrong, pictures)
    assert not {"colour", "second_colour", "mood"} & set(untold)
    assert untold["subject"] == 1.0


TWO_COLOURS = {
    "a red mug with white dots on a white background": ("red", "white", "dots"),
    "A scarlet and white spotted coffee mug": ("scarlet", "white", "spotted"),
}


def red_mug_with_white_dots() -> world.Subject:
    return replace(picture().subject, kind="mug", colour="red", second_colour="white", pattern="dotted")


def test_a_prompt_of_two_colours_has_places_for_what_is_told_of_them() -> None:
    subject = red_mug_with_white_dots()
    for text, expected in {**TWO_COLOURS, "a red dotted mug": None, "a mug with white dots": None}.items():
        ids = read_words([text]).t5[0].tolist()
        places = offsets.find_places(ids, text, subject)
        if expected is None:
            assert places is None, text
            continue
        assert places is not None
        known = tokenizers()[0].convert_ids_to_tokens([ids[place] for place in places[: len(offsets.WORDS)]])
        assert tuple(token.removeprefix("▁") for token in known) == expected
        assert ids[places[3] - 1] != 0
        assert [ids[place] for place in places[len(offsets.WORDS) :]] == [0] * offsets.PADDING


def test_the_padding_echoes_whose_colour_a_colour_is() -> None:
    subject = red_mug_with_white_dots()
    for text, (first, _, pattern) in TWO_COLOURS.items():
        ids = read_words([text]).t5[0].tolist()
        known = tokenizers()[0].convert_ids_to_tokens(ids)
        sources = words.find_sources(ids, text, subject)
        echoes = [known[source].removeprefix("▁") for place, source in enumerate(sources) if place != source]
        assert echoes == [{"colour": first, "pattern": pattern}[name] for name in words.ECHOES], text
        assert sources[: ids.index(0)] == list(range(ids.index(0)))  # words stay themselves


def some_offsets(size: float) -> offsets.Offsets:
    torch.manual_seed(0)
    made = offsets.Offsets().requires_grad_(False)
    for parameter in made.parameters():
        parameter.normal_(std=size)
    return made


def test_offsets_change_their_places_alone_and_no_states_size() -> None:
    old = load_published(RELEASED).t5
    drawn = words.draw_words(np.random.default_rng(3), 32)
    scales = old.encoder.final_layer_norm.weight
    with torch.no_grad():
        before = old(input_ids=drawn.words.t5).last_hidden_state
        after = drawn.goal(old, some_offsets(0.3))
        echoed = drawn.goal(old, None)
    assert 4 < int(drawn.told.sum()) < 28
    changed = drawn.changed()
    assert torch.allclose(after[~changed], before[~changed], atol=1e-4)
    assert float((after - echoed)[drawn.told].abs().amax(-1).gather(1, drawn.places).min()) > 0.01
    sizes = (after / scales).square().mean(-1)
    assert torch.allclose(sizes, torch.ones_like(sizes), atol=1e-2)


def test_the_new_t5_begins_as_the_old_one_and_learns_quickly() -> None:
    old = load_published(RELEASED).t5
    drawn = words.draw_words(np.random.default_rng(0), 64).words
    with torch.no_grad():
        before = old(input_ids=drawn.t5).last_hidden_state
        after = words.begin_as_table(old, drawn.t5, before)(input_ids=drawn.t5).last_hidden_state
    live = drawn.t5 != 0
    assert float((after - before)[live].pow(2).sum(-1).mean() / before[live].var(0).sum()) < 0.5
    _, errors = words.train_words(old, 60, some_offsets(0.3), batch=24)
    assert errors["words"] < 0.3
    assert errors["changed"] < 1.2  # of two states by chance 2


def test_inversion_finds_states_that_read_as_told(run: Path) -> None:
    """On one batch, again and again: the offsets alone learn, and what they have learnt can be used."""
    torch.manual_seed(0)
    model, teacher = load_published(RELEASED), Teacher()
    inverting = inversion.Inversion(model, teacher)
    asked = inversion.draw_asked(np.random.default_rng(0), 4)
    columns = [list(QUESTIONS).index(name) for name in ("subject", "colour", "second_colour", "pattern")]
    assert (asked.answers[:, columns] != UNKNOWN).all()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    learnt = inversion.invert(model, teacher, RecordStore(run), steps=3, batch=4)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(float(vectors.abs().max()) > 0 for vectors in learnt.parameters())
    again = inversion.invert(model, teacher, RecordStore(run), steps=3, batch=4)
    for one, other in zip(learnt.parameters(), again.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)

    made = offsets.Offsets()
    optimizer, losses = torch.optim.Adam(made.parameters(), lr=0.05), []
    for _ in range(6):
        checkpoint.chance(1, 1)
        loss, _ = inverting.loss(asked, made, np.random.default_rng(1))
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]

    checkpoint.save_tensors(run / "offsets.safetensors", made.state_dict(), {})
    loaded = offsets.load_offsets(run)
    assert loaded is not None
    facts = torch.tensor([offsets.facts_of(red_mug_with_white_dots())])
    assert torch.equal(loaded(facts), made(facts).detach())
    (run / "offsets.safetensors").unlink()
    assert offsets.load_offsets(run) is None


def test_beside_a_style_image_both_colours_are_told_and_read_where_the_technique_shows_them(run: Path) -> None:
    store, columns = RecordStore(run), {name: place for place, name in enumerate(QUESTIONS)}
    asked = inversion.draw_styled(np.random.default_rng(0), 12, store)
    shown = {image.tobytes() for image in store.vision["train-000", "style"]}
    shown |= {image[:, ::-1].tobytes() for image in store.vision["train-000", "style"]}
    assert asked.clean is None
    assert asked.styles is not None
    assert {pictures[0].numpy().tobytes() for pictures in asked.styles} <= shown
    assert (asked.answers[:, [columns["subject"], columns["technique"]]] != UNKNOWN).all()
    for prompt, answers in zip(asked.prompts, asked.answers, strict=True):
        assert (answers[columns["colour"]] == UNKNOWN) == (answers[columns["second_colour"]] == UNKNOWN), prompt


def test_a_figure_that_became_worse_is_named() -> None:
    def metrics(technique: float, leaks: float) -> dict[str, Any]:
        figures = {"technique": technique, "style_subject_leaks": leaks, "palette_to_style": 100 * technique}
        return {"count": 400, "modes": {"style": {"model": figures}}}

    assert worse_figures(metrics(0.75, 0.05), metrics(0.8, 0.02)) == []
    assert worse_figures(metrics(0.9, 0.0), metrics(0.5, 0.3)) == []
    found = worse_figures(metrics(0.5, 0.3), metrics(0.8, 0.0))
    assert found == ["style technique: 0.8 -> 0.5", "style style_subject_leaks: 0.0 -> 0.3"]


def test_a_strip_shows_what_was_given_and_stays_small(tmp_path: Path) -> None:
    blocks = [Block(trial, trial.truth) for trial in (make_trial(mode, 2) for mode in SHOWN)]
    strip = draw_strip(blocks)
    assert strip.width > 6 * 256
    save_small(strip, tmp_path / "strip.png")
    assert (tmp_path / "strip.png").stat().st_size <= 300_000
    with Image.open(tmp_path / "strip.png") as image:
        assert image.size == strip.size
