"""Text encoders and the vision tower from transformers folders: valid, damaged and hostile ones."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, T5EncoderModel

from tests.conftest import GOLDEN
from tests.loaders.weight_files import EMBEDDED, same, write
from uso_core.errors import WeightsError
from uso_core.loaders import encoders


def t5(folder: Path) -> Any:
    return encoders.build_t5(folder, torch.float32)


def clip(folder: Path) -> Any:
    return encoders.build_clip(folder, torch.float32)


def siglip(folder: Path) -> Any:
    return encoders.build_siglip(folder, torch.float32)


ENCODERS = {"t5": t5, "clip": clip, "siglip": siglip}
PROMPTS = ["a red mug on the beach.", "", "  Two   blanks, ÄÖÜ ß é 東京 🎨", "x" * 3000, "<pad> </s> <extra_id_0>"]


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(GOLDEN / name, tmp_path / name))


def test_encoders_hold_exactly_the_weights_of_their_files():
    for folder in (GOLDEN, EMBEDDED):
        for name, maker in ENCODERS.items():
            state = maker(folder / name)[0].state_dict()
            stored = load_file(folder / name / "model.safetensors")
            endings = {key.removeprefix("vision_model.").removeprefix("text_model."): key for key in state}
            for key, tensor in stored.items():
                short = key.removeprefix("vision_model.").removeprefix("text_model.")
                assert torch.equal(state[endings[short]], tensor.float()), key


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize(
    "text", [None, "", "[]", "{", '"t5"', "{}"], ids=["none", "empty", "list", "cut", "text", "{}"]
)
def test_an_encoder_needs_its_config(name, text, copied):
    folder = copied(name)
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    with pytest.raises(WeightsError) as failure:
        ENCODERS[name](folder)
    assert str(folder) in failure.value.message
    assert failure.value.hint


@pytest.mark.parametrize(
    ("maker", "given"), [(clip, "t5"), (t5, "clip"), (siglip, "clip"), (clip, "siglip"), (t5, "siglip"), (siglip, "t5")]
)
def test_a_folder_of_another_encoder_is_refused(maker, given):
    with pytest.raises(WeightsError) as failure:
        maker(GOLDEN / given)
    kind = json.loads((GOLDEN / given / "config.json").read_text())["model_type"]
    assert failure.value.message.startswith(f"{GOLDEN / given} holds a model of type {kind!r}")
    assert "variable" in failure.value.hint


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("kept", [0, 5, 1000, 0.5])
def test_a_cut_encoder_is_refused(name, kept, copied):
    folder = copied(name)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: kept if isinstance(kept, int) else int(len(content) * kept)])
    with pytest.raises(WeightsError) as failure:
        ENCODERS[name](folder)
    assert str(folder) in failure.value.message
    assert "download it again" in failure.value.hint


@pytest.mark.parametrize("name", ENCODERS)
def test_missing_unknown_and_misshapen_tensors_of_an_encoder_are_refused(name, copied):
    folder = copied(name)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    first = next(key for key in sorted(tensors) if key.endswith("weight") and tensors[key].dim() == 2)
    for change in (
        {key: tensor for key, tensor in tensors.items() if key != first},
        tensors | {"stranger.weight": torch.zeros(2)},
        tensors | {first: torch.zeros(3, 5)},
    ):
        write(file, change, {"format": "pt"})
        with pytest.raises(WeightsError) as failure:
            ENCODERS[name](folder)
        assert str(folder) in failure.value.message


def test_the_other_half_of_a_published_model_is_left_out(copied):
    folder = copied("t5")
    file = folder / "model.safetensors"
    write(file, load_file(file) | {"decoder.final_layer_norm.weight": torch.ones(48)}, {"format": "pt"})
    same(t5(folder)[0], t5(GOLDEN / "t5")[0])


def test_an_encoder_in_shards_is_the_same(copied):
    folder = copied("t5")
    model = T5EncoderModel.from_pretrained(folder, local_files_only=True)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    same(t5(folder)[0], t5(GOLDEN / "t5")[0])


class Payload:
    """Creates a folder when unpickled, as a hostile pickle could."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_pickle_is_not_run(name, copied, tmp_path):
    folder = copied(name)
    (folder / "model.safetensors").unlink()
    torch.save({"shared.weight": Payload(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError):
        ENCODERS[name](folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "file"), [("t5", "spiece.model"), ("clip", "vocab.json"), ("clip", "merges.txt")], ids=str
)
def test_a_missing_tokenizer_is_refused(name, file, copied):
    folder = copied(name)
    (folder / file).unlink()
    with pytest.raises(WeightsError, match="tokenizer") as failure:
        ENCODERS[name](folder)
    assert str(folder) in failure.value.message


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\0garbage", b"{"], ids=["empty", "garbage", "cut"])
@pytest.mark.parametrize(("name", "file"), [("t5", "spiece.model"), ("t5", "tokenizer.json"), ("clip", "vocab.json")])
def test_a_damaged_tokenizer_is_refused(name, file, content, copied):
    folder = copied(name)
    (folder / file).write_bytes(content)
    with pytest.raises(WeightsError, match="tokenizer") as failure:
        ENCODERS[name](folder)
    assert str(folder) in failure.value.message


@pytest.mark.parametrize(
    ("name", "encoder", "tokenizer"), [("t5", "text_encoder_2", "tokenizer_2"), ("clip", "text_encoder", "tokenizer")]
)
def test_the_tokenizer_may_be_beside_it_as_in_the_diffusers_layout(name, encoder, tokenizer, copied, tmp_path):
    folder = copied(name).rename(tmp_path / encoder)
    (tmp_path / tokenizer).mkdir()
    for file in folder.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            file.rename(tmp_path / tokenizer / file.name)
    model, beside = ENCODERS[name](folder)
    original, inside = ENCODERS[name](GOLDEN / name)
    assert [beside(prompt).input_ids for prompt in PROMPTS] == [inside(prompt).input_ids for prompt in PROMPTS]
    same(model, original)


def test_t5s_tokenizer_is_the_same_from_spiece_model_and_from_tokenizer_json(copied, tmp_path):
    folder = copied("t5")
    from_spiece = t5(folder)[1]
    from_spiece.save_pretrained(tmp_path / "json")
    (folder / "spiece.model").unlink()
    shutil.copy(tmp_path / "json" / "tokenizer.json", folder)
    from_json = t5(folder)[1]
    padded = {"padding": "max_length", "max_length": 512, "truncation": True}
    for prompt in PROMPTS:
        assert from_json(prompt, **padded).input_ids == from_spiece(prompt, **padded).input_ids
    ids = from_spiece(PROMPTS[0], **padded).input_ids
    assert len(ids) == 512
    assert ids[-1] == 0  # <pad>
    assert 1 in ids  # </s>


def test_clips_tokenizer_is_that_of_transformers():
    theirs = AutoTokenizer.from_pretrained(GOLDEN / "clip", local_files_only=True)
    ours = clip(GOLDEN / "clip")[1]
    assert [ours(prompt).input_ids for prompt in PROMPTS] == [theirs(prompt).input_ids for prompt in PROMPTS]


@pytest.mark.parametrize("text", [None, "", "[]", "{"], ids=["none", "empty", "list", "cut"])
def test_siglip_needs_its_preprocessing(text, copied):
    folder = copied("siglip")
    (folder / "preprocessor_config.json").unlink()
    if text is not None:
        (folder / "preprocessor_config.json").write_text(text)
    with pytest.raises(WeightsError, match="preprocessing") as failure:
        siglip(folder)
    assert str(folder) in failure.value.message
