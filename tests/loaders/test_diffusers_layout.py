"""Folders written by diffusers become the same modules, and damaged ones are refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from diffusers import FluxTransformer2DModel

from tests.loaders.weight_files import AE, FLUX, LORA, same, transformer, vae
from uso_core.errors import WeightsError


@pytest.fixture(scope="module")
def diffusers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden transformer and VAE as written by diffusers itself, the transformer in shards."""
    folder = tmp_path_factory.mktemp("FLUX.1-dev")
    ours = transformer(FLUX)
    base = FluxTransformer2DModel.from_config(dict(ours.config))
    base.load_state_dict(ours.state_dict())
    base.bfloat16().save_pretrained(folder / "transformer", max_shard_size="200KB")
    vae(AE).save_pretrained(folder / "vae")
    return folder


@pytest.fixture
def sharded(diffusers_folder: Path, tmp_path: Path) -> Path:
    """A copy of the sharded transformer that a test may damage."""
    return Path(shutil.copytree(diffusers_folder / "transformer", tmp_path / "transformer"))


@pytest.mark.parametrize("lora", [None, LORA], ids=["plain", "lora"])
def test_the_diffusers_layout_gives_the_same_transformer(diffusers_folder, lora):
    folder = diffusers_folder / "transformer"
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert json.loads((folder / "config.json").read_text())["_class_name"] == "FluxTransformer2DModel"
    same(transformer(folder, lora), transformer(FLUX, lora))


def test_the_diffusers_layout_gives_the_same_vae(diffusers_folder):
    loaded, original = vae(diffusers_folder / "vae"), vae(AE)
    assert loaded.config.scaling_factor == original.config.scaling_factor
    same(loaded, original)


def test_links_in_a_hugging_face_cache_are_followed(diffusers_folder, tmp_path):
    if os.name == "nt":
        pytest.skip("links need a privilege there")
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0" / "transformer"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted((diffusers_folder / "transformer").iterdir())):
        shutil.copy(file, blobs / f"{number:064x}")
        (snapshot / file.name).symlink_to(blobs / f"{number:064x}")
    same(transformer(snapshot), transformer(FLUX))


def index_of(folder: Path) -> tuple[Path, dict[str, Any]]:
    path = next(folder.glob("*.index.json"))
    return path, json.loads(path.read_text())


@pytest.mark.parametrize("where", ["../elsewhere/part.safetensors", "{absolute}", "..", "sub/part.safetensors"])
def test_an_index_cannot_lead_out_of_its_folder(sharded, where, tmp_path):
    path, index = index_of(sharded)
    shard = sorted(set(index["weight_map"].values()))[0]
    for place in (tmp_path / "elsewhere", sharded / "sub"):
        place.mkdir()
        shutil.copy(sharded / shard, place / "part.safetensors")
    target = where.format(absolute=tmp_path / "elsewhere" / "part.safetensors")
    index["weight_map"] = {name: target if file == shard else file for name, file in index["weight_map"].items()}
    path.write_text(json.dumps(index))
    with pytest.raises(WeightsError):  # the tensors are there, in a file that must not be opened
        transformer(sharded)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"weight_map": []}', '{"weight_map": {"a": ["x"]}}', '{"weight_map": {"a": 1, "b": "x"}}', "{}"],
)
def test_a_damaged_index_is_refused(sharded, text):
    index_of(sharded)[0].write_text(text)
    with pytest.raises(WeightsError) as failure:
        transformer(sharded)
    assert str(sharded) in failure.value.message


def test_a_missing_shard_is_named(sharded):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(WeightsError) as failure:
        transformer(sharded)
    assert str(shard) in failure.value.message


@pytest.mark.parametrize(
    "change",
    [
        {"num_layers": "two"},
        {"num_layers": None},
        {"attention_head_dim": -32},
        {"axes_dims_rope": 5},
        {"axes_dims_rope": [1, 1, 1]},  # the tensors fit, but the model cannot run
        {"num_layers": 3},
        {"joint_attention_dim": 64},
        {"guidance_embeds": False},
    ],
    ids=str,
)
def test_a_config_that_does_not_describe_the_tensors_is_refused(sharded, change):
    config = json.loads((sharded / "config.json").read_text())
    (sharded / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(WeightsError) as failure:
        transformer(sharded)
    assert str(sharded) in failure.value.message


@pytest.mark.parametrize(
    "change",
    [{"block_out_channels": 5}, {"down_block_types": [1, 2, 3, 4]}, {"act_fn": "nonsense"}, {"latent_channels": 4},
     {"norm_num_groups": 5}, {"block_out_channels": []}],
    ids=str,
)  # fmt: skip
def test_a_vae_config_that_makes_no_vae_is_refused(diffusers_folder, change, tmp_path):
    folder = Path(shutil.copytree(diffusers_folder / "vae", tmp_path / "vae"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(WeightsError) as failure:
        vae(folder)
    assert str(folder) in failure.value.message


def test_without_a_config_the_tensors_tell_the_same(sharded):
    (sharded / "config.json").unlink()
    same(transformer(sharded), transformer(FLUX))


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000], ids=["empty", "list", "cut", "nested"])
def test_a_damaged_config_is_refused(sharded, text):
    (sharded / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"config\.json"):
        transformer(sharded)


def test_a_folder_of_another_role_is_refused(diffusers_folder, tmp_path):
    with pytest.raises(WeightsError, match="it appears to be a VAE in the diffusers layout"):
        transformer(diffusers_folder / "vae")
    with pytest.raises(WeightsError, match="it appears to be a FLUX transformer in the diffusers layout"):
        vae(diffusers_folder / "transformer")
    with pytest.raises(WeightsError, match="holds no safetensors file"):
        transformer(tmp_path)
