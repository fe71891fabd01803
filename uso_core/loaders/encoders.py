"""Loads text encoders, tokenizers and the vision tower from transformers folders, offline and strictly."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
    SiglipVisionModel,
    T5EncoderModel,
    T5Tokenizer,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.utils import logging

from uso_core.errors import WeightsError
from uso_core.messages import message

# Tensors of the other half of a published model, by model type: T5's decoder, the other tower of CLIP and SigLIP.
OTHER_HALF = {
    "t5": ("decoder.", "lm_head."),
    "clip": ("vision_model.", "visual_projection.", "text_projection.", "logit_scale"),
    "siglip": ("text_model.", "logit_scale", "logit_bias"),
}
POSITION_IDS = "position_ids"  # a buffer that older files still contain
_ONE_AT_A_TIME = threading.Lock()  # transformers changes global state during loading: T5 lost its tied embedding
TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "vocab.json")


def build_t5(folder: Path, dtype: torch.dtype) -> tuple[T5EncoderModel, PreTrainedTokenizerBase]:
    """T5's encoder and tokenizer (spiece.model or tokenizer.json)."""
    return _pretrained(T5EncoderModel, folder, dtype, "t5"), _tokenizer(T5Tokenizer, folder)


def build_clip(folder: Path, dtype: torch.dtype) -> tuple[CLIPTextModel, PreTrainedTokenizerBase]:
    """CLIP's text model and tokenizer."""
    return _pretrained(CLIPTextModel, folder, dtype, "clip"), _tokenizer(CLIPTokenizer, folder)


def build_siglip(folder: Path, dtype: torch.dtype) -> tuple[SiglipVisionModel, SiglipImageProcessorPil]:
    """SigLIP's vision tower and the preprocessing that squashes an image to its square."""
    model = _pretrained(SiglipVisionModel, folder, dtype, "siglip")
    try:
        processor = SiglipImageProcessorPil.from_pretrained(folder, local_files_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file surfaces as whatever its reader raises
        raise _broken(folder, "part_image_preprocessing", error) from None
    return model, processor


def empty_encoders(t5: Path, clip: Path, siglip: Path) -> dict[str, Any]:
    """The three encoders in these folders, on the meta device, by role; raises `WeightsError` for a bad one."""
    return {
        role: _empty(kind, folder, role)
        for role, kind, folder in (
            ("t5", T5EncoderModel, t5),
            ("clip", CLIPTextModel, clip),
            ("siglip", SiglipVisionModel, siglip),
        )
    }


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
    if not folder.is_dir():
        raise WeightsError("encoder_is_file", hint="encoder_folder", folder=folder)
    if not (folder / "config.json").is_file():
        raise WeightsError("no_config", hint="encoder_folder", folder=folder)


def _pretrained(kind: type[Any], folder: Path, dtype: torch.dtype, model_type: str) -> Any:
    _check_folder(folder)
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

    found = str(PretrainedConfig.get_config_dict(folder, local_files_only=True)[0].get("model_type", "nothing"))
    if not found.startswith(model_type) and not (model_type == "t5" and found == "umt5"):
        raise WeightsError("encoder_type", folder=folder, found=found, model_type=model_type)


def _tokenizer(kind: type[PreTrainedTokenizerBase], folder: Path) -> PreTrainedTokenizerBase:
    place = folder
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        place = folder.parent / folder.name.replace("text_encoder", "tokenizer")  # the diffusers layout
    if not any((place / name).is_file() for name in TOKENIZER_FILES):
        raise WeightsError("no_tokenizer", hint="encoder_folder", folder=folder, choices=", ".join(TOKENIZER_FILES))
    try:
        return kind.from_pretrained(place, local_files_only=True)
    except Exception as error:  # a damaged tokenizer file surfaces as whatever its parser raises
        raise _broken(place, "part_tokenizer", error) from None


def _broken(folder: Path, part: str, error: Exception) -> WeightsError:
    first = str(error).strip().split("\n")[0][:200].rstrip(".") or type(error).__name__
    return WeightsError("encoder_unreadable", hint="encoder_folder", part=message(part), folder=folder, reason=first)
