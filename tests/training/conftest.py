"""Made-up runs for the tests of training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from training import data, latent_cache


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
    (folder / "vae.json").write_text(json.dumps({"preview_matrix": rng.standard_normal((16, 3)).tolist()}))
    return folder
