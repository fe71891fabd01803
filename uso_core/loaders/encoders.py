"""Loads text encoders, tokenizers and the vision tower, offline and strictly.

From transformers folders, or from single files as ComfyUI has them: safetensors, GGUF, or part of an all-in-one
checkpoint. A single file's configuration is read off its tensors.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.utils import logging

from uso_core.catalog.files import SIGLIP2_WORDS, Checkpoint, expect, inspect
from uso_core.errors import WeightsError
from uso_core.loaders import keys
from uso_core.loaders.build import has_config, notes, refuse_quantized
from uso_core.loaders.convert import fill, finished, match
from uso_core.messages import message

# Tensors of the other half of a published model, by model type: T5's decoder, the other tower of CLIP and SigLIP.
OTHER_HALF = {
    "t5": ("decoder.", "lm_head.", "dec.", "spiece_model", "logit_scale"),
    "clip": ("vision_model.", "visual_projection.", "text_projection", "logit_scale", "logit_bias"),
    "siglip": ("text_model.", "logit_scale", "logit_bias"),
}
POSITION_IDS = "position_ids"  # a buffer that older files still contain
_ONE_AT_A_TIME = threading.Lock()  # transformers changes global state during loading: T5 lost its tied embedding
T5_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")
TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "vocab.json")


IN_FILES = {"t5": "T5 text encoder", "clip": "CLIP text encoder", "siglip": "SigLIP vision tower"}
WRAPPED = {"t5": "", "clip": "text_model.", "siglip": "vision_model."}  # before the names, in some files and versions
# What tensors do not tell: published CLIP models have heads of 64; SigLIP's heads by width.
CLIP_WIDTHS, CLIP_HEAD, SIGLIP_HEADS = (512, 768, 1024, 1280), 64, {768: 12, 1024: 16, 1152: 16}
# A reduced model's file may note these beside its tensors, as {"clip": {"num_attention_heads": 4}}.
NOTED = ("num_attention_heads", "relative_attention_max_distance", "image_size", "bos_token_id", "eos_token_id",
         "pad_token_id")  # fmt: skip


def build_t5(
    path: Path, dtype: torch.dtype, tokenizer: Path | None = None
) -> tuple[T5EncoderModel, PreTrainedTokenizerBase]:
    """T5's encoder and tokenizer (spiece.model or tokenizer.json), from a folder or a file.

    `tokenizer` is the tokenizer's folder if it is neither in the folder nor beside the file.
    """
    model = _loaded(T5EncoderModel, path, dtype, "t5")
    return model, _tokenizer(T5Tokenizer, path, tokenizer, model.config.vocab_size)


def build_clip(
    path: Path, dtype: torch.dtype, tokenizer: Path | None = None
) -> tuple[CLIPTextModel, PreTrainedTokenizerBase]:
    """CLIP's text model and tokenizer, as `build_t5`."""
    model = _loaded(CLIPTextModel, path, dtype, "clip")
    return model, _tokenizer(CLIPTokenizer, path, tokenizer, model.config.vocab_size)


def build_siglip(path: Path, dtype: torch.dtype) -> tuple[SiglipVisionModel, SiglipImageProcessorPil]:
    """SigLIP's vision tower and the preprocessing that squashes an image to its square, from a folder or a file."""
    model = _loaded(SiglipVisionModel, path, dtype, "siglip")
    if not path.is_dir():
        side, half = model.config.image_size, [0.5] * 3
        size = {"height": side, "width": side}
        return model, SiglipImageProcessorPil(size=size, resample=3, image_mean=half, image_std=half)  # 3: bicubic
    try:
        processor = SiglipImageProcessorPil.from_pretrained(path, local_files_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file surfaces as whatever its reader raises
        raise _broken(path, "part_image_preprocessing", error) from None
    return model, processor


def empty_encoders(t5: Path, clip: Path, siglip: Path) -> dict[str, Any]:
    """The three encoders at these places, on the meta device, by role; raises `WeightsError` for a bad one."""
    return {
        role: _empty(kind, path, role) if path.is_dir() else _empty_from_file(kind, path, role)[0]
        for role, kind, path in (
            ("t5", T5EncoderModel, t5),
            ("clip", CLIPTextModel, clip),
            ("siglip", SiglipVisionModel, siglip),
        )
    }


def _loaded(kind: type[Any], path: Path, dtype: torch.dtype, role: str) -> Any:
    if path.is_dir():
        return _pretrained(kind, path, dtype, role)
    model, checkpoint = _empty_from_file(kind, path, role)
    finished(fill(match(model, [checkpoint], (), dtype)))
    if role == "t5":
        model.set_input_embeddings(model.shared)  # tied again
    for name, buffer in model.named_buffers():  # positions: no weights, so still on the meta device
        owner, _, leaf = name.rpartition(".")
        model.get_submodule(owner).register_buffer(leaf, torch.arange(buffer.shape[-1])[None], persistent=False)
    return model


def _empty_from_file(kind: type[Any], path: Path, role: str) -> tuple[Any, Checkpoint]:
    """The encoder that a file describes, on the meta device, and the file's tensors by the encoder's names."""
    if not path.exists():
        raise WeightsError("weights_missing", path=path)
    checkpoint = _bare(expect(inspect(path), IN_FILES[role]), role)
    config = _config_beside(kind, path, role) or _CONFIGS[role](checkpoint)
    try:
        with torch.device("meta"):
            model = kind(config)
    except Exception as error:  # whatever a library's constructor raises for a bad configuration
        raise WeightsError("no_model_described", hint="download_again", path=path, reason=error) from None
    if any(name.startswith(WRAPPED[role]) for name in model.state_dict()):
        named = {WRAPPED[role] + name: info for name, info in checkpoint.tensors.items()}
        checkpoint = replace(checkpoint, tensors=named)
    return model, checkpoint


def _bare(checkpoint: Checkpoint, role: str) -> Checkpoint:
    """The checkpoint with transformers' names, without wrappers and without the other half of the model."""
    named = {}
    for name, info in checkpoint.tensors.items():
        if name.startswith(OTHER_HALF[role]) or name.endswith(POSITION_IDS):
            continue
        found = keys.row_of(name, keys.T5_GGUF) if role == "t5" else None
        named[found[0].target_names(found[1])[0] if found else name.removeprefix(WRAPPED[role])] = info
    if role == "t5":  # one embedding, which files keep under either name or under both
        one = next((named[name] for name in T5_EMBEDDINGS if name in named), None)
        named |= {name: one for name in T5_EMBEDDINGS if one is not None}
        scales = [name for name in named if name.startswith("encoder.embed_tokens.") and name not in T5_EMBEDDINGS]
        named |= {name.replace("encoder.embed_tokens.", "shared."): named[name] for name in scales}
    return replace(checkpoint, tensors=named)


def _config_beside(kind: type[Any], path: Path, role: str) -> Any:
    """The configuration in the file's folder, if it is that of such an encoder."""
    if not has_config(path.parent):
        return None
    try:
        _check_type(path.parent, role)
        return kind.config_class.from_pretrained(path.parent, local_files_only=True)
    except Exception:  # of another model, or damaged: the tensors tell enough
        return None


def _t5_config(checkpoint: Checkpoint) -> T5Config:
    block = "encoder.block.0.layer"
    vocabulary, width = checkpoint.shape("shared.weight", 2)
    inner = checkpoint.shape(f"{block}.0.SelfAttention.q.weight", 2)[0]
    buckets, heads = checkpoint.shape(f"{block}.0.SelfAttention.relative_attention_bias.weight", 2)
    gated = f"{block}.1.DenseReluDense.wi_0.weight" in checkpoint.tensors
    values = {
        "vocab_size": vocabulary, "d_model": width, "d_kv": inner // heads, "num_heads": heads,
        "d_ff": checkpoint.shape(f"{block}.1.DenseReluDense.wi{'_0' if gated else ''}.weight", 2)[0],
        "num_layers": checkpoint.count(r"encoder\.block\.(\d+)\."), "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu" if gated else "relu", "is_encoder_decoder": False, "use_cache": False,
    }  # fmt: skip
    return T5Config(**values | _noted(checkpoint, "t5"))


def _clip_config(checkpoint: Checkpoint) -> CLIPTextConfig:
    vocabulary, width = checkpoint.shape("embeddings.token_embedding.weight", 2)
    noted = _noted(checkpoint, "clip")
    if width not in CLIP_WIDTHS and "num_attention_heads" not in noted:
        raise WeightsError("heads_unknown", path=checkpoint.path, width=width)
    values = {
        "vocab_size": vocabulary, "hidden_size": width, "num_attention_heads": max(width // CLIP_HEAD, 1),
        "intermediate_size": checkpoint.shape("encoder.layers.0.mlp.fc1.weight", 2)[0],
        "num_hidden_layers": checkpoint.count(r"encoder\.layers\.(\d+)\."),
        "max_position_embeddings": checkpoint.shape("embeddings.position_embedding.weight", 2)[0],
        "hidden_act": "quick_gelu", "bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }  # fmt: skip
    return CLIPTextConfig(**values | noted)


def _siglip_config(checkpoint: Checkpoint) -> SiglipVisionConfig:
    width, channels, patch, _ = checkpoint.shape("embeddings.patch_embedding.weight", 4)
    noted = _noted(checkpoint, "siglip")
    if width not in SIGLIP_HEADS and "num_attention_heads" not in noted:
        raise WeightsError("heads_unknown", path=checkpoint.path, width=width)
    side = math.isqrt(checkpoint.shape("embeddings.position_embedding.weight", 2)[0]) * patch
    values = {
        "hidden_size": width, "num_channels": channels, "patch_size": patch,
        "image_size": 384 if side == 378 else side,  # so400m-patch14-384: 27 patches of 14, and 6 pixels left over
        "intermediate_size": checkpoint.shape("encoder.layers.0.mlp.fc1.weight", 2)[0],
        "num_hidden_layers": checkpoint.count(r"encoder\.layers\.(\d+)\."),
        "num_attention_heads": SIGLIP_HEADS.get(width), "vision_use_head": "head.probe" in checkpoint.tensors,
    }  # fmt: skip
    return SiglipVisionConfig(**values | noted)


_CONFIGS: dict[str, Callable[[Checkpoint], Any]] = {"t5": _t5_config, "clip": _clip_config, "siglip": _siglip_config}


def _noted(checkpoint: Checkpoint, role: str) -> dict[str, int]:
    noted = notes(checkpoint).get(role, {})
    if not isinstance(noted, dict) or not all(name in NOTED and type(noted[name]) is int for name in noted):
        raise WeightsError("metadata_unreadable", hint="download_again", path=checkpoint.path)
    return noted


def _empty(kind: type[Any], folder: Path, model_type: str) -> Any:
    _check_folder(folder)
    try:
        _check_type(folder, model_type)
        with torch.device("meta"):
            return kind(kind.config_class.from_pretrained(folder, local_files_only=True))
    except WeightsError:
        raise
    except Exception as error:  # whatever a library's constructor raises for a bad configuration
        raise _broken(folder, "part_configuration", error) from None


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise WeightsError("no_config", hint="encoder_folder", folder=folder)


def _pretrained(kind: type[Any], folder: Path, dtype: torch.dtype, model_type: str) -> Any:
    _check_folder(folder)
    refuse_quantized(folder)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        _check_type(folder, model_type)
        with _ONE_AT_A_TIME:
            model, report = kind.from_pretrained(
                folder, dtype=dtype, local_files_only=True, output_loading_info=True, weights_only=True
            )
    except (WeightsError, MemoryError):
        raise
    except Exception as error:  # transformers raises OSError, ValueError, safetensors' own and more for a bad folder
        raise _broken(folder, "part_weights", error) from None
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
    missing = sorted(report["missing_keys"])
    known = OTHER_HALF[model_type]
    unknown = sorted(
        name for name in report["unexpected_keys"] if not name.startswith(known) and not name.endswith(POSITION_IDS)
    )
    if missing or unknown or report["mismatched_keys"]:
        first = next(iter((*missing, *unknown, *map(str, report["mismatched_keys"]))))
        raise WeightsError(
            "encoder_misfit",
            hint="encoder_folder",
            folder=folder,
            missing=len(missing),
            unknown=len(unknown),
            misshapen=len(report["mismatched_keys"]),
            first=first,
        )
    return model.eval().requires_grad_(False)


def _check_type(folder: Path, model_type: str) -> None:
    from transformers import PretrainedConfig

    config = PretrainedConfig.get_config_dict(folder, local_files_only=True)[0]
    found = str(config.get("model_type", "nothing"))
    text = config.get("text_config")
    if model_type == "siglip" and isinstance(text, dict) and text.get("vocab_size") == SIGLIP2_WORDS:
        raise WeightsError("siglip_relative", path=folder)
    if not found.startswith(model_type) and not (model_type == "t5" and found == "umt5"):
        raise WeightsError("encoder_type", folder=folder, found=found, model_type=model_type)


def _tokenizer(
    kind: type[PreTrainedTokenizerBase], path: Path, given: Path | None, vocabulary: int
) -> PreTrainedTokenizerBase:
    place = given or (path if path.is_dir() else path.parent)
    if not any((place / name).is_file() for name in TOKENIZER_FILES):
        place = place.parent / place.name.replace("text_encoder", "tokenizer")  # the diffusers layout
    if not any((place / name).is_file() for name in TOKENIZER_FILES):
        hint = "encoder_folder" if path.is_dir() else "get_tokenizers"
        raise WeightsError("no_tokenizer", hint=hint, folder=path, choices=", ".join(TOKENIZER_FILES))
    try:
        tokenizer = kind.from_pretrained(place, local_files_only=True)
        largest = max(tokenizer.get_vocab().values(), default=0)
    except Exception as error:  # a damaged tokenizer file surfaces as whatever its parser raises
        raise _broken(place, "part_tokenizer", error) from None
    if given is not None and largest >= vocabulary:
        raise WeightsError("tokenizer_misfit", folder=place, path=path, largest=largest, vocabulary=vocabulary)
    return tokenizer


def _broken(folder: Path, part: str, error: Exception) -> WeightsError:
    first = str(error).strip().split("\n")[0][:200].rstrip(".") or type(error).__name__
    return WeightsError("encoder_unreadable", hint="encoder_folder", part=message(part), folder=folder, reason=first)
