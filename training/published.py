"""Begins a run at published weights, for going on with a model whose checkpoints are gone.

    python -m training.published --weights weights/uso-tiny --run FOLDER [--rank 96]

Writes what the joint stage and the VAE would have left: joint_state.pt without the optimizers' memory,
joint.safetensors, vae.safetensors and vae.json. The weights are those of the release, rounded to bfloat16. Records,
latents and teacher are made as for any run; the VAE's training is left out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from training import checkpoint
from training.command import StageError, positive, run_command
from training.model import Shape, TinyUso
from training.train import save_model
from uso_core.catalog.models import EMBEDDED_FILES
from uso_core.loaders import build, encoders


def load_published(folder: Path, rank: int | None = None) -> TinyUso:
    """All parts of a release but the VAE, in float32: the inverse of `release.release`. rank: of a wider LoRA.

    Raises `WeightsError` for a file that is not what it should be, `RuntimeError` where the parts are of other sizes
    than the recipe's.
    """
    paths = {role: folder / name for role, name in EMBEDDED_FILES.items()}
    for path in paths.values():
        if not path.exists():
            raise FileNotFoundError(f"{path}: no release lies there")
    transformer = build.build_transformer(paths["transformer"], None, torch.float32)
    lora = {name: tensor.float() for name, tensor in load_file(paths["lora"]).items()}
    config = transformer.config
    published = len(lora["single_blocks.0.processor.qkv_lora.down.weight"])
    if rank is not None and rank < published:
        raise StageError(f"a LoRA of rank {rank} has no room for that of the release, of rank {published}")
    shape = Shape(
        config.num_attention_heads,
        config.attention_head_dim,
        config.num_layers,
        config.num_single_layers,
        rank=rank or published,
    )
    model = TinyUso(shape)
    model.transformer.load_state_dict(transformer.state_dict())
    model.lora.load_state_dict(widen(lora, model.lora.state_dict()))
    model.projector.load_state_dict(build.build_projector(paths["projector"], torch.float32).state_dict())
    for part, encoder in (
        (model.t5, encoders.build_t5(paths["t5"], torch.float32)[0]),
        (model.clip, encoders.build_clip(paths["clip"], torch.float32)[0]),
        (model.siglip, encoders.build_siglip(paths["siglip"], torch.float32)[0]),
    ):
        part.load_state_dict(encoder.state_dict())
    return model.eval()


def widen(narrow: dict[str, torch.Tensor], wide: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A LoRA in the place of a fresh one of a rank as high or higher: it adds what it did, and has room to learn."""
    result = {name: tensor.clone() for name, tensor in wide.items()}
    for name, tensor in narrow.items():
        result[name][tuple(slice(size) for size in tensor.shape)] = tensor
    return result


def begin(folder: Path, run: Path, rank: int | None = None) -> None:
    """Writes a run's files from a release's; rank: of its LoRA, where it is to grow.

    Raises `FileExistsError` where the run has gone on: it would begin anew.
    """
    there = checkpoint.load_state(run / "joint_state.pt")
    if there is not None and there["step"]:
        raise FileExistsError(f"{run} stands at step {there['step']}; give a new folder, or remove its joint_state.pt")
    model = load_published(folder, rank)
    weights = model.state_dict()
    checkpoint.save_state(run / "joint_state.pt", {"model": weights, "ema": weights, "step": 0, "samples": 0})
    save_model(run / "joint.safetensors", model, {"step": 0, "samples": 0})
    vae = build.build_vae(folder / EMBEDDED_FILES["vae"], torch.float32)
    *matrix, bias = build.preview_factors(folder / EMBEDDED_FILES["vae"])
    constants = {
        "scaling_factor": vae.config.scaling_factor,
        "shift_factor": vae.config.shift_factor,
        "preview_matrix": matrix,
        "preview_bias": bias,
        "block_out_channels": list(vae.config.block_out_channels),
        "norm_num_groups": vae.config.norm_num_groups,
    }
    checkpoint.save_tensors(run / "vae.safetensors", vae.state_dict())
    (run / "vae.json").write_text(json.dumps(constants, indent=1), encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Begin a run at published weights.")
    parser.add_argument("--weights", type=Path, default=Path("weights/uso-tiny"), help="default: %(default)s")
    parser.add_argument("--run", type=Path, required=True, help="folder of the run, new or with records in it")
    parser.add_argument("--rank", type=positive, help="of the LoRA, where it is to grow (default: the release's)")
    arguments = parser.parse_args()
    begin(arguments.weights, arguments.run, arguments.rank)


if __name__ == "__main__":
    run_command(main)
