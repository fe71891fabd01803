"""The last stage: a finished run as the original files that every loader of USO reads.

python -m training.release --run RUN --to weights/uso-tiny
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from training import export
from training.autoencoder import load_vae
from training.command import run_command
from training.model import REFERENCE_COLUMNS, VISION_SIZE, TinyUso
from training.text import TEXT_TOKENS
from training.train import load_model


def release(model: TinyUso, folder: Path) -> None:
    """All parts but the VAE, in bfloat16: flux, dit_lora and projector, the folders t5, clip and siglip."""
    notes = {"text_tokens": TEXT_TOKENS, "reference_columns": REFERENCE_COLUMNS}
    export.export_transformer(model.transformer, folder / "flux.safetensors", notes)
    export.export_projector(model.projector, folder / "projector.safetensors")
    state = model.lora.state_dict()
    stems = sorted({name.removesuffix(".weight").rpartition(".")[0] for name in state})
    pairs = {stem: (state[f"{stem}.down.weight"], state[f"{stem}.up.weight"]) for stem in stems}
    export.export_lora(pairs, folder / "dit_lora.safetensors")
    for part, tokenizer, name in (
        (model.t5, model.t5_tokenizer, "t5"),
        (model.clip, model.clip_tokenizer, "clip"),
        (model.siglip, None, "siglip"),
    ):
        part.to("cpu", torch.bfloat16).save_pretrained(folder / name)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder / name)
    size = {"height": VISION_SIZE, "width": VISION_SIZE}
    SiglipImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder / "siglip")


def release_vae(run: Path, folder: Path) -> None:
    """ae.safetensors with its constants and its latents-to-RGB map noted."""
    facts = json.loads((run / "vae.json").read_text(encoding="utf-8"))
    preview = [*facts["preview_matrix"], facts["preview_bias"]]
    export.export_vae(load_vae(run), folder / "ae.safetensors", {"preview": preview})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="the folder of the run")
    parser.add_argument("--to", type=Path, default=Path("weights/uso-tiny"), help="default: %(default)s")
    arguments = parser.parse_args()
    release(load_model(arguments.run / "joint.safetensors"), arguments.to)
    release_vae(arguments.run, arguments.to)


if __name__ == "__main__":
    run_command(main)
