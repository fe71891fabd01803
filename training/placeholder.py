"""Writes an untrained model in the original layout: python -m training.placeholder FOLDER

Random weights of a reduced size. It shows every part of the path at work before the embedded model is trained.
"""

from __future__ import annotations

import string
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from training import export
from uso_core.loaders import keys
from uso_core.model.style import StyleProjector
from uso_core.model.transformer import USOTransformer2DModel

WIDTH, HEAD, RANK, TEXT_TOKENS, TEXT_WIDTH, POOLED, VISION, SIDE, PATCH = 64, 32, 4, 64, 48, 48, 48, 112, 14


def write(folder: Path, seed: int = 0) -> None:
    """All seven parts under `folder`, the same bytes for the same seed and library versions."""
    torch.manual_seed(seed)
    transformer = USOTransformer2DModel(
        num_layers=1, num_single_layers=2, attention_head_dim=HEAD, num_attention_heads=WIDTH // HEAD,
        joint_attention_dim=TEXT_WIDTH, pooled_projection_dim=POOLED, guidance_embeds=True,
        axes_dims_rope=(HEAD // 8, HEAD * 7 // 16, HEAD * 7 // 16),
    )  # fmt: skip
    export.export_transformer(transformer, folder / "flux.safetensors", {"text_tokens": TEXT_TOKENS})
    export.export_lora(_lora(transformer), folder / "dit_lora.safetensors")
    projector = StyleProjector((SIDE // PATCH) ** 2, 8, VISION, WIDTH, (-2, -3, -4))
    export.export_projector(projector, folder / "projector.safetensors")
    export.export_vae(_vae(), folder / "ae.safetensors")
    _text_encoders(folder)
    _vision_tower(folder / "siglip")


def _lora(transformer: USOTransformer2DModel) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    state, pairs = transformer.state_dict(), {}
    for target in state:
        stem = keys.original_name(target, keys.LORA)
        if stem != target and stem not in pairs:
            row, values = keys.row_of(stem, keys.LORA) or (None, {})
            rows = sum(state[name].shape[0] for name in row.target_names(values)) if row else 0
            pairs[stem] = torch.randn(RANK, state[target].shape[1]) * 0.1, torch.randn(rows, RANK) * 0.1
    return pairs


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 32, 32), layers_per_block=1, latent_channels=16, use_quant_conv=False,
        use_post_quant_conv=False, scaling_factor=0.3611, shift_factor=0.1159,
    )  # fmt: skip


def _text_encoders(folder: Path) -> None:
    letters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("▁", -2.0), *((letter, -3.0) for letter in letters)]
    T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=TEXT_TOKENS).save_pretrained(folder / "t5")
    config = T5Config(
        vocab_size=len(pieces), d_model=TEXT_WIDTH, d_kv=12, d_ff=96, num_layers=1, num_heads=4,
        feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    T5EncoderModel(config).to(torch.bfloat16).save_pretrained(folder / "t5")

    marks = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {mark: index for index, mark in enumerate([*marks, *letters, *(f"{x}</w>" for x in letters)])}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
    tokenizer.save_pretrained(folder / "clip")
    clip = CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=POOLED, intermediate_size=96, num_hidden_layers=1,
        num_attention_heads=4, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    CLIPTextModel(clip).to(torch.bfloat16).save_pretrained(folder / "clip")


def _vision_tower(folder: Path) -> None:
    config = SiglipVisionConfig(
        hidden_size=VISION, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, image_size=SIDE,
        patch_size=PATCH,
    )  # fmt: skip
    SiglipVisionModel(config).to(torch.bfloat16).save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    SiglipImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "weights/uso-tiny"))
