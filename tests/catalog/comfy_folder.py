"""A ComfyUI folder at toy size: the embedded model in the files, names and dialects that people have there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from uso_core.settings import ROOT

TINY = ROOT / "weights" / "uso-tiny"
Tensors = dict[str, torch.Tensor]
KOHYA = "lora_unet_double_blocks_0_img_attn_qkv"

# What a file of a reduced model notes, because published models have it in common: see `loaders.encoders.NOTED`.
CLIP_NOTES = {"clip": {"num_attention_heads": 4}}
T5_NOTES = {"t5": {"relative_attention_max_distance": 32}}
SIGLIP_NOTES = {"siglip": {"num_attention_heads": 4}}

DEV = "models/diffusion_models/flux1-dev.safetensors"
LORA = "models/loras/uso-flux1-dit-lora-v1.safetensors"
PROJECTOR = "models/model_patches/uso-flux1-projector-v1.safetensors"
VAE = "models/vae/ae.safetensors"
CLIP, T5 = "models/text_encoders/clip_l.safetensors", "models/text_encoders/t5xxl_fp16.safetensors"
SIGLIP = "models/clip_vision/sigclip_vision_patch14_384.safetensors"
TOKENIZERS = {"clip": "comfy/sd1_tokenizer", "t5": "comfy/text_encoders/t5_tokenizer"}


def noted(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return json.loads((file.metadata() or {}).get("uso", "{}"))


def write(path: Path, tensors: Tensors, notes: dict[str, Any] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"uso": json.dumps(notes)} if notes else None
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path, metadata)
    return path


def flux() -> Tensors:
    return load_file(TINY / "flux.safetensors")


def clip() -> Tensors:
    """CLIP-L as in clip_l.safetensors: transformers' names below text_model, and the projection."""
    tensors = {f"text_model.{name}": tensor for name, tensor in load_file(TINY / "clip" / "model.safetensors").items()}
    return tensors | {"text_projection.weight": torch.eye(128), "logit_scale": torch.tensor(4.6)}


def t5() -> Tensors:
    """T5's encoder as in t5xxl_fp16.safetensors: float16, the embedding under both of its names."""
    tensors = {name: tensor.half() for name, tensor in load_file(TINY / "t5" / "model.safetensors").items()}
    return tensors | {"encoder.embed_tokens.weight": tensors["shared.weight"]}


def siglip() -> Tensors:
    return {f"vision_model.{name}": each for name, each in load_file(TINY / "siglip" / "model.safetensors").items()}


def scaled_fp8(tensors: Tensors, scale: str = ".scale_weight", mark: bool = False) -> Tensors:
    """The matrices in fp8, each with a scale; the older files also say so by a tensor, the newer by one for each."""
    made: Tensors = {} if mark else {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, tensor in tensors.items():
        if tensor.dim() != 2 or not name.endswith(".weight") or "embed" in name or "shared" in name:
            made[name] = tensor
            continue
        factor = (tensor.float().abs().amax() / 448).clamp(min=1e-12)
        made[name] = (tensor.float() / factor).to(torch.float8_e4m3fn)
        made[name.removesuffix(".weight") + scale] = factor
        if mark:
            said = json.dumps({"format": "float8_e4m3fn"}).encode()
            made[name.removesuffix(".weight") + ".comfy_quant"] = torch.tensor(list(said), dtype=torch.uint8)
    return made


def build(folder: Path) -> Path:
    """The whole folder; returns it."""
    write(folder / DEV, flux(), noted(TINY / "flux.safetensors"))
    for source, target in (("dit_lora", LORA), ("projector", PROJECTOR), ("ae", VAE)):
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(TINY / f"{source}.safetensors", folder / target)
    write(folder / CLIP, clip(), CLIP_NOTES)
    write(folder / T5, t5(), T5_NOTES)
    write(folder / SIGLIP, siglip(), SIGLIP_NOTES)
    for name, target in TOKENIZERS.items():
        (folder / target).mkdir(parents=True, exist_ok=True)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(TINY / name / file, folder / target / file)
    # What else lies there, and is not used.
    write(folder / "models/vae/sdxl_vae.safetensors", small_vae(4))
    write(
        folder / "models/loras/a_style.safetensors",
        {f"{KOHYA}.lora_down.weight": torch.zeros(4, 8)},
    )
    write(folder / "models/checkpoints/sd_xl_base_1.0.safetensors", {
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.zeros(1),
        "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1)})  # fmt: skip
    (folder / "models/checkpoints/old.ckpt").write_bytes(b"PK\3\4" + bytes(64))
    (folder / "models/checkpoints/half.safetensors").write_bytes((folder / DEV).read_bytes()[:5000])
    return folder


def small_vae(channels: int) -> Tensors:
    """Enough of a VAE to be taken for one, with this many latent channels."""
    names = ("encoder.down.0.block.0.conv1.weight", "decoder.up.0.block.0.conv1.weight")
    return {name: torch.zeros(8, 8, 3, 3) for name in names} | {
        "decoder.conv_in.weight": torch.zeros(8, channels, 3, 3)
    }
