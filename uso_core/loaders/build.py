"""Builds a module from a checkpoint: reads its shape off the tensors, then fills it strictly."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from torch import nn

from uso_core.catalog.files import LIBRARY_NAMES, TRANSFORMERS, VAES, Checkpoint, expect, inspect, inspect_shards
from uso_core.errors import WeightsError
from uso_core.loaders import fused_cache, keys
from uso_core.loaders.convert import Conversion, fill, finished, match
from uso_core.loaders.lora import LoRA
from uso_core.model import latents, preview
from uso_core.model.style_projector import DEPTHS, StyleProjector
from uso_core.model.transformer import USOTransformer2DModel
from uso_core.quantization.fp8 import use_fp8
from uso_core.quantization.matrices import TRANSFORMER_MATRICES

Module = TypeVar("Module", bound=nn.Module)

QUANTO_MAPS = ("quantization_map.json", "quanto_qmap.json")
VAE_NOTES = {"scaling_factor", "shift_factor", "norm_groups"}
VAE_SCALE, VAE_SHIFT, VAE_NORM_GROUPS = 0.3611, 0.1159, 32  # FLUX.1's autoencoder


def load_transformer(
    path: Path,
    lora: Path | None,
    dtype: torch.dtype,
    fp8: bool = False,
    cache: Path | None = None,
    others: Sequence[tuple[Path, float]] = (),
) -> Generator[float, None, USOTransformer2DModel]:
    """The transformer with the LoRA fused in float32, in `dtype`, from an original file or a diffusers folder.

    Yields the fraction done. `others` are LoRAs beside USO's with their strengths, added in their order. With `fp8`
    each of the blocks' matrices is quantized as it is read. With a `cache` folder the result is kept there and used the
    next time (`fused_cache`). Raises `WeightsError` if a file is not what it should be or they do not fit each other.
    """
    model = empty_transformer(path)
    if fp8:
        use_fp8(model, TRANSFORMER_MATRICES)
    conversion = transformer_conversion(model, path, lora, dtype, others)
    if cache is None:
        yield from fill(conversion)
    else:
        yield from fused_cache.fill(conversion, cache)
    return model


def transformer_conversion(
    model: USOTransformer2DModel,
    path: Path,
    lora: Path | None,
    dtype: torch.dtype,
    others: Sequence[tuple[Path, float]] = (),
) -> Conversion:
    """How the files become this transformer's weights, with the LoRAs fused."""
    adapter = LoRA(expect(inspect(lora), "lora")) if lora is not None else None
    whole, files = read_headers(path, *TRANSFORMERS)
    return match(model, files, keys.TRANSFORMER if whole.role == "transformer" else (), dtype, adapter, others=others)


def load_vae(path: Path, dtype: torch.dtype) -> Generator[float, None, AutoencoderKL]:
    """The VAE in `dtype`, from an original file or a diffusers folder; yields the fraction done."""
    whole, files = read_headers(path, *VAES)
    model = empty_vae(path, whole)
    levels = len(model.config.block_out_channels)
    yield from fill(match(model, files, keys.VAE if whole.role == "vae" else (), dtype, levels=levels))
    return model


def build_transformer(
    path: Path, lora: Path | None, dtype: torch.dtype, fp8: bool = False, cache: Path | None = None
) -> USOTransformer2DModel:
    """`load_transformer` without progress."""
    return finished(load_transformer(path, lora, dtype, fp8, cache))


def build_vae(path: Path, dtype: torch.dtype) -> AutoencoderKL:
    """`load_vae` without progress."""
    return finished(load_vae(path, dtype))


def empty_transformer(path: Path, whole: Checkpoint | None = None) -> USOTransformer2DModel:
    """The transformer described by a file or folder, on the meta device; raises `WeightsError` if there is none."""
    whole = whole or read_headers(path, *TRANSFORMERS)[0]
    if not has_config(path):
        return _empty(lambda: USOTransformer2DModel(**transformer_config(whole)), path)
    config = _config(path)
    model = _empty(lambda: USOTransformer2DModel.from_config(config), path)
    _check_rope(model, path)
    return model


def empty_vae(path: Path, whole: Checkpoint | None = None) -> AutoencoderKL:
    """Like `empty_transformer`, for the VAE."""
    whole = whole or read_headers(path, *VAES)[0]
    if has_config(path):
        return _empty(lambda: AutoencoderKL.from_config(_config(path)), path)
    return _empty(lambda: AutoencoderKL(**vae_config(whole)), path)


def build_projector(path: Path, dtype: torch.dtype) -> StyleProjector:
    """The style projector in `dtype`, from projector.safetensors."""
    checkpoint = expect(inspect(path), "projector")
    tokens_out, tokens_in = checkpoint.shape("feature_embedder.high_embedding_linear.0.weight", 2)
    width, vision_width = checkpoint.shape("feature_embedder.high_projection.weight", 2)
    depths = notes(checkpoint).get("depths", list(DEPTHS))
    if not (isinstance(depths, list) and len(depths) == 3 and all(isinstance(depth, int) for depth in depths)):
        raise WeightsError("projector_depths", hint="download_again", path=path, depths=depths)
    model = _empty(lambda: StyleProjector(tokens_in, tokens_out, vision_width, width, depths), path)
    rows = tuple(keys.Rename(f"feature_embedder.{name}", (name,)) for name in model.state_dict())
    finished(fill(match(model, [checkpoint], rows, dtype)))
    return model


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Euler along FLUX.1's exponentially shifted schedule; each call of `set_timesteps` passes mu."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        time_shift_type="exponential",
        base_shift=latents.BASE_MU,
        max_shift=latents.MAX_MU,
        base_image_seq_len=latents.BASE_TOKENS,
        max_image_seq_len=latents.MAX_TOKENS,
    )


def text_tokens(path: Path) -> int:
    """The number of T5 tokens that a transformer was trained with: 512, or the number in its file's notes."""
    tokens = notes(inspect(path)).get("text_tokens", 512) if path.is_file() else 512
    if not (isinstance(tokens, int) and 1 <= tokens <= 512):
        raise WeightsError("text_tokens", hint="download_again", path=path, tokens=tokens)
    return tokens


def reference_columns(path: Path) -> int | None:
    """The maximum distance from the target's first column to a reference's, in tokens (`latents.image_ids`).

    None, as in USO, or the number in the transformer's file notes.
    """
    columns = notes(inspect(path)).get("reference_columns") if path.is_file() else None
    if not (columns is None or (isinstance(columns, int) and columns >= 1)):
        raise WeightsError("reference_columns", hint="download_again", path=path, columns=columns)
    return columns


def preview_factors(path: Path) -> list[list[float]]:
    """The VAE's map from latents to RGB: `preview.FLUX_FACTORS`, or the one in its file's notes."""
    factors = notes(inspect(path)).get("preview") if path.is_file() else None
    if factors is None:
        return [list(row) for row in preview.FLUX_FACTORS]
    rows = factors if isinstance(factors, list) else []
    if not rows or not all(
        isinstance(row, list) and len(row) == 3 and all(isinstance(value, float | int) for value in row) for row in rows
    ):
        raise WeightsError("preview_map", hint="download_again", path=path)
    return rows


def transformer_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The transformer's configuration, read from its tensors in either layout (widths, depths, guidance, RoPE axes)."""
    named = _names_in(checkpoint, "transformer", keys.TRANSFORMER)
    double, single = (named(f"{kind}_blocks.0.{leaf}").split(".0.")[0] for kind, leaf in _FIRST.items())
    width, channels = checkpoint.shape(named("img_in.weight"), 2)
    head = checkpoint.shape(named("double_blocks.0.img_attn.norm.query_norm.scale"), 1)[0]
    if head % 32 or width % head:  # RoPE needs even axes: head x (1/8, 7/16, 7/16)
        raise WeightsError("head_size", path=checkpoint.path, width=width, head=head)
    return {
        "in_channels": channels,
        "num_layers": checkpoint.count(rf"{double}\.(\d+)\."),
        "num_single_layers": checkpoint.count(rf"{single}\.(\d+)\."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": checkpoint.shape(named("txt_in.weight"), 2)[1],
        "pooled_projection_dim": checkpoint.shape(named("vector_in.in_layer.weight"), 2)[1],
        "guidance_embeds": named("guidance_in.in_layer.weight") in checkpoint.tensors,
        "axes_dims_rope": (head // 8, head * 7 // 16, head * 7 // 16),
    }


_FIRST = {"double": "img_mod.lin.weight", "single": "modulation.lin.weight"}


def vae_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The VAE's configuration, read from its tensors in either layout; constants from its notes, else FLUX.1's."""
    named = _names_in(checkpoint, "vae", keys.VAE)
    down = named("encoder.down.0.block.0.conv2.weight").split(".0.")[0]
    levels = checkpoint.count(rf"{re.escape(down)}\.(\d+)\.")
    first = "block" if checkpoint.role == "vae" else "resnets"
    widths = [checkpoint.shape(f"{down}.{level}.{first}.0.conv2.weight", 4)[0] for level in range(levels)]
    noted = notes(checkpoint)
    if noted and not VAE_NOTES & set(noted):
        raise WeightsError("vae_constants", path=checkpoint.path)
    scale, shift, groups = (
        noted.get(name, default)
        for name, default in (
            ("scaling_factor", VAE_SCALE),
            ("shift_factor", VAE_SHIFT),
            ("norm_groups", VAE_NORM_GROUPS),
        )
    )
    right = all(isinstance(value, float | int) for value in (scale, shift)) and isinstance(groups, int)
    if not right or scale == 0 or groups < 1 or any(width % groups for width in widths):
        raise WeightsError(
            "vae_config",
            hint="download_again",
            path=checkpoint.path,
            widths=widths,
            scale=scale,
            shift=shift,
            groups=groups,
        )
    return {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": tuple(widths),
        "layers_per_block": checkpoint.count(rf"{re.escape(down)}\.0\.{first}\.(\d+)\."),
        "latent_channels": checkpoint.shape("decoder.conv_in.weight", 4)[1],
        "norm_num_groups": groups,
        "mid_block_add_attention": named("encoder.mid.attn_1.q.weight") in checkpoint.tensors,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "scaling_factor": scale,
        "shift_factor": shift,
    }


def _names_in(checkpoint: Checkpoint, original: str, table: tuple[keys.Rename, ...]) -> Callable[[str], str]:
    """Translates an original name to that of the checkpoint's layout; of stacked tensors to the first."""

    def named(name: str) -> str:
        found = None if checkpoint.role == original else keys.row_of(name, table)
        return found[0].target_names(found[1], levels=1)[0] if found else name

    return named


def notes(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a file of ours notes beyond its tensors: the JSON object in the metadata entry "uso"."""
    try:
        noted = json.loads(checkpoint.metadata.get("uso", "{}"))
    except (ValueError, RecursionError):
        noted = None
    if not isinstance(noted, dict):
        raise WeightsError("metadata_unreadable", hint="download_again", path=checkpoint.path)
    return noted


def read_headers(path: Path, *roles: str) -> tuple[Checkpoint, list[Checkpoint]]:
    """What a file, or a folder's files together, hold of one of these roles, and the files to read it from.

    Raises `WeightsError` if it is something else, or cannot be read.
    """
    if not path.is_dir():
        part = expect(inspect(path), *roles)
        return part, [part]
    own = [path / name for name in LIBRARY_NAMES if (path / name).is_file()][:1]
    files = own or sorted(path.glob("*.safetensors"))
    index = next(iter(sorted(path.glob("*.safetensors.index.json"))), None)
    if index is not None:
        listed = _json(index).get("weight_map")
        shards = {name for name in listed.values() if _plain(name)} if isinstance(listed, dict) else set()
        files = [path / name for name in sorted(shards)]
    if not files:
        raise WeightsError("no_safetensors", path=path)
    refuse_quantized(path)
    whole, parts = inspect_shards(path, files)
    return expect(whole, *roles), parts


def refuse_quantized(folder: Path) -> None:
    """Raises `WeightsError` if a folder's configuration says that its weights are quantized in a way of its own."""
    if not has_config(folder):
        return
    method = _config(folder).get("quantization_config")
    if method is None and any((folder / name).is_file() for name in QUANTO_MAPS):
        method = {"quant_method": "optimum-quanto"}
    if method is not None:
        name = method.get("quant_method") if isinstance(method, dict) else method
        raise WeightsError("quantization_foreign", path=folder, quantization=str(name))


def has_config(path: Path) -> bool:
    """Whether this is a folder with a configuration, as diffusers and transformers write it."""
    return (path / "config.json").is_file()


def _plain(name: object) -> bool:
    """Whether the name is that of a file beside its index; a shard's name that leads elsewhere is not opened."""
    return isinstance(name, str) and Path(name).name == name


def _config(folder: Path) -> dict[str, Any]:
    return _json(folder / "config.json")


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError("file_unreadable", hint="download_folder_again", path=path, reason=error.strerror) from None
    except (ValueError, RecursionError):
        raise WeightsError("no_json", hint="download_folder_again", path=path) from None
    if not isinstance(values, dict):
        raise WeightsError("no_json_object", hint="download_folder_again", path=path)
    return values


def _empty(make: Callable[[], Module], path: Path) -> Module:
    """The module without memory for its weights; a configuration that makes no module counts as the file's fault."""
    try:
        with torch.device("meta"):
            return make()
    except WeightsError:
        raise
    except Exception as error:  # whatever a library's constructor raises for a bad configuration
        raise WeightsError("no_model_described", hint="download_again", path=path, reason=error) from None


def _check_rope(model: USOTransformer2DModel, path: Path) -> None:
    axes, head = model.config.axes_dims_rope, model.config.attention_head_dim
    if not isinstance(axes, list | tuple) or len(axes) != 3 or sum(axes) != head or any(axis % 2 for axis in axes):
        raise WeightsError("rope_axes", hint="download_folder_again", path=path, axes=axes, head=head)
