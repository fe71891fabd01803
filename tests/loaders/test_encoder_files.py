"""Encoders in single files, as ComfyUI has them, are the same modules as those of transformers folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file

from tests.catalog import comfy_folder as comfy
from tests.catalog.comfy_folder import CLIP_NOTES, SIGLIP_NOTES, T5_NOTES, TINY, scaled_fp8, write
from tests.loaders import test_gguf
from tests.loaders.weight_files import same
from uso_core.errors import WeightsError
from uso_core.loaders import encoders

FILES = {
    "clip": (comfy.clip, CLIP_NOTES, encoders.build_clip),
    "t5": (comfy.t5, T5_NOTES, encoders.build_t5),
    "siglip": (comfy.siglip, SIGLIP_NOTES, encoders.build_siglip),
}
INPUTS = {
    "clip": torch.tensor([[1029, 5, 6, 1030]]),
    "t5": torch.tensor([[3, 4, 1]]),
    "siglip": torch.ones(1, 3, 128, 128),
}


def build(role: str, path: Path):
    tokenizer = () if role == "siglip" else (TINY / role,)
    return FILES[role][2](path, torch.float32, *tokenizer)


def from_folder(role: str) -> torch.nn.Module:
    """The encoder of the embedded model's folder, rounded as its toy file is."""
    model = FILES[role][2](TINY / role, torch.float32)[0]
    return model.half().float() if role == "t5" else model


def outputs(role: str, model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        made = model(INPUTS[role])
    return made.pooler_output if role == "clip" else made.last_hidden_state


@pytest.mark.parametrize("role", FILES)
def test_a_file_is_the_same_as_its_folder(role, tmp_path):
    make, notes, _ = FILES[role]
    model, extra = build(role, write(tmp_path / "x.safetensors", make(), notes))
    folder, other = from_folder(role), FILES[role][2](TINY / role, torch.float32)[1]
    assert torch.equal(outputs(role, model), outputs(role, folder))
    if role == "siglip":
        assert (extra.size, extra.image_mean, extra.resample) == (other.size, other.image_mean, other.resample)
    else:
        same(model, folder)
        assert extra("a red mug").input_ids == other("a red mug").input_ids


@pytest.mark.parametrize("role", FILES)
def test_a_file_with_its_config_beside_needs_no_notes(role):
    model, _ = FILES[role][2](TINY / role / "model.safetensors", torch.float32)
    same(model, FILES[role][2](TINY / role, torch.float32)[0])


@pytest.mark.parametrize("prefix", ["text_encoders.t5xxl.transformer.", "text_encoder_2."])
def test_an_encoder_inside_an_all_in_one_checkpoint(prefix, tmp_path):
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in comfy.flux().items()}
    tensors |= {f"text_encoders.clip_l.transformer.{name}": tensor for name, tensor in comfy.clip().items()}
    tensors |= {f"{prefix}{name}": tensor for name, tensor in comfy.t5().items()}
    tensors["text_encoders.t5xxl.logit_scale"] = torch.tensor(4.6)
    path = write(tmp_path / "all.safetensors", tensors, CLIP_NOTES | T5_NOTES)
    for role in ("clip", "t5"):
        same(build(role, path)[0], from_folder(role))
    with pytest.raises(WeightsError) as failure:
        build("siglip", path)
    assert failure.value.key == "wrong_kind"


@pytest.mark.parametrize(("scale", "mark"), [(".scale_weight", False), (".weight_scale", True)])
def test_a_scaled_fp8_text_encoder_is_restored(scale, mark, tmp_path):
    quantized = scaled_fp8(comfy.t5(), scale, mark)
    model, _ = build("t5", write(tmp_path / "t5xxl_fp8_e4m3fn_scaled.safetensors", quantized, T5_NOTES))
    for name, tensor in comfy.t5().items():
        held = model.state_dict()[name]
        factor = quantized.get(name.removesuffix(".weight") + scale)
        exact = tensor.float() if factor is None else quantized[name].float() * factor
        assert torch.equal(held, exact)


GGUF_NAMES = (("encoder.block.", "enc.blk."), (".layer.0.SelfAttention.relative_attention_bias", ".attn_rel_b"),
              (".layer.0.SelfAttention.", ".attn_"), (".layer.0.layer_norm", ".attn_norm"),
              (".layer.1.layer_norm", ".ffn_norm"), (".layer.1.DenseReluDense.wi_0", ".ffn_gate"),
              (".layer.1.DenseReluDense.wi_1", ".ffn_up"), (".layer.1.DenseReluDense.wo", ".ffn_down"),
              ("encoder.final_layer_norm", "enc.output_norm"), ("shared", "token_embd"))  # fmt: skip


def test_a_gguf_text_encoder_is_the_same(tmp_path):
    arrays = {}
    for name, tensor in load_file(TINY / "t5" / "model.safetensors").items():
        for ours, theirs in GGUF_NAMES:
            name = name.replace(ours, theirs)
        arrays[name] = (tensor.float().numpy(), gguf.GGMLQuantizationType.F32)
    path = test_gguf.write(tmp_path / "t5-v1_1-xxl-encoder.gguf", arrays, uso=json.dumps(T5_NOTES))
    same(build("t5", path)[0], encoders.build_t5(TINY / "t5", torch.float32)[0])


def test_the_embedding_under_its_second_name_alone(tmp_path):
    tensors = comfy.t5()
    del tensors["shared.weight"]
    same(build("t5", write(tmp_path / "t5.safetensors", tensors, T5_NOTES))[0], from_folder("t5"))


@pytest.mark.parametrize("role", ["clip", "siglip"])
def test_heads_that_a_file_does_not_tell_are_not_guessed(role, tmp_path):
    with pytest.raises(WeightsError) as failure:
        build(role, write(tmp_path / "x.safetensors", FILES[role][0]()))
    assert (failure.value.key, failure.value.values["width"]) == ("heads_unknown", 128)


@pytest.mark.parametrize("notes", [{"clip": {"architectures": 1}}, {"clip": {"num_attention_heads": "4"}}, {"clip": 3}])
def test_notes_of_a_stranger_set_nothing_else(notes, tmp_path):
    with pytest.raises(WeightsError) as failure:
        build("clip", write(tmp_path / "x.safetensors", comfy.clip(), notes))
    assert failure.value.key == "metadata_unreadable"


@pytest.mark.parametrize("role", ["clip", "t5"])
def test_a_file_without_a_tokenizer_names_the_command(role, tmp_path):
    make, notes, maker = FILES[role]
    with pytest.raises(WeightsError) as failure:
        maker(write(tmp_path / "x.safetensors", make(), notes), torch.float32)
    assert (failure.value.key, failure.value.hint_key) == ("no_tokenizer", "get_tokenizers")


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    tensors = {name: tensor[:100] if tensor.shape[0] == 209 else tensor for name, tensor in comfy.t5().items()}
    with pytest.raises(WeightsError) as failure:
        build("t5", write(tmp_path / "x.safetensors", tensors, T5_NOTES))
    assert failure.value.key == "tokenizer_misfit"


@pytest.mark.parametrize("role", FILES)
def test_tensors_that_do_not_fit_are_named(role, tmp_path):
    make, notes, _ = FILES[role]
    prefix = {"clip": "text_model.", "t5": "", "siglip": "vision_model."}[role]
    with pytest.raises(WeightsError) as failure:
        build(role, write(tmp_path / "x.safetensors", make() | {f"{prefix}stranger.weight": torch.zeros(2)}, notes))
    assert failure.value.key == "misfit"


def test_umt5_is_not_taken_for_t5(tmp_path):
    tensors = comfy.t5() | {"encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight": torch.zeros(32, 4)}
    with pytest.raises(WeightsError, match="UMT5") as failure:
        build("t5", write(tmp_path / "umt5_xxl.safetensors", tensors, T5_NOTES))
    assert failure.value.key == "wrong_kind"


def test_a_folder_quantized_by_a_library_is_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "t5", "quantization_config": {"quant_method": "bitsandbytes"}}'
    )
    write(tmp_path / "model.safetensors", comfy.t5())
    with pytest.raises(WeightsError) as failure:
        encoders.build_t5(tmp_path, torch.float32)
    assert failure.value.values["quantization"] == "bitsandbytes"


def test_siglip_2_is_refused_by_name_though_its_shapes_fit(tmp_path):
    """Same shapes, other numbers: told by a file's name, by the text half beside it, or by a folder's configuration."""
    named = write(tmp_path / "siglip2_so400m_patch14_384.safetensors", comfy.siglip(), SIGLIP_NOTES)
    words = {"text_model.embeddings.token_embedding.weight": torch.zeros(256_000, 1)}
    whole = write(tmp_path / "model.safetensors", comfy.siglip() | words, SIGLIP_NOTES)
    folder = shutil.copytree(TINY / "siglip", tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text()) | {"text_config": {"vocab_size": 256_000}}
    (folder / "config.json").write_text(json.dumps(config))
    for path in (named, whole, folder):
        with pytest.raises(WeightsError) as failure:
            encoders.build_siglip(path, torch.float32)
        assert failure.value.key == "siglip_relative"
    words = {name: tensor[:32_000] for name, tensor in words.items()}
    encoders.build_siglip(write(tmp_path / "siglip.safetensors", comfy.siglip() | words, SIGLIP_NOTES), torch.float32)
