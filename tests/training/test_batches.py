"""What a step learns from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from training import data, latent_cache
from training.batches import BatchMaker, RecordStore
from training.model import TinyUso
from training.stages import STAGES
from training.trials import MODES, make_trial

from .small_run import SMALL


def test_only_what_an_image_tells_is_drawn_from_records_that_are_not_settled(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, settled in (("train-000", True), ("train-001", False)):
        shard = data.Shard(name, 0, 4, 128, 128, "train", settled)
        data.render_shard(tmp_path / "records", shard)
        for kind in data.LATENT_KINDS:
            np.save(latent_cache.latents_path(tmp_path, shard, kind), np.zeros((4, 16, 16, 16), np.float16))
    store = RecordStore(tmp_path)
    assert {store.draw_shard(rng, settled=True).name for _ in range(9)} == {"train-000"}
    assert {store.draw_shard(rng, settled=False).name for _ in range(9)} == {"train-001"}
    assert {store.draw_shard(rng).name for _ in range(30)} == {"train-000", "train-001"}
    for name in ("train-000", "train-001"):
        for kind in data.LATENT_KINDS:
            store.latents[name, kind] = np.full((4, 16, 16, 16), name == "train-000", np.float16)
    maker = BatchMaker(store, 400, STAGES["joint"].mode_chance)
    for mode in MODES:
        trial = make_trial(mode, 0)
        assert bool(maker.draw(rng, mode).clean.all()) == trial.settled == (mode not in ("layout", "blend"))


def test_a_foreign_style_image_asks_for_the_tinted_picture(run: Path) -> None:
    stage = STAGES["shape"]
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


def test_batches_drawn_ahead_are_the_same(run: Path) -> None:
    maker = BatchMaker(RecordStore(run), 400, STAGES["joint"].mode_chance)
    ahead = maker.stream(seed=3, first=5, workers=1)
    for step in (5, 6):
        given, drawn = next(ahead), maker.at(3, step)
        assert (given.mode, given.prompts) == (drawn.mode, drawn.prompts)
        assert torch.equal(given.clean, drawn.clean)


def test_words_are_whole_and_case_and_punctuation_do_not_matter() -> None:
    model = TinyUso(SMALL)
    told = [model.t5_tokenizer.tokenize(text) for text in ("A Red mug, on the BEACH!", "a red mug on the beach")]
    assert told[0] == told[1] == ["▁a", "▁red", "▁mug", "▁on", "▁the", "▁beach"]
    assert model.clip_tokenizer.tokenize("A Red mug") == ["a</w>", "red</w>", "mug</w>"]
