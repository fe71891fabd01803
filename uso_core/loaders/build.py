"""A module out of a checkpoint: its shape read off the tensors, strictly filled, one tensor at a time.

Files are memory-mapped; each tensor is read, fused and cast before the next, so that no second copy of a model builds
up. `Progress` is called with the fraction done; what it raises ends the loading.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from safetensors import safe_open
from torch import nn

from uso_core.errors import WeightsError
from uso_core.loaders import keys
from uso_core.loaders.files import DOWNLOAD_AGAIN, Checkpoint, TensorInfo, expect, inspect, role_of
from uso_core.model import latents, preview
from uso_core.model.style import DEPTHS, StyleProjector
from uso_core.model.transformer import USOTransformer2DModel

Progress = Callable[[float], None]
Module = TypeVar("Module", bound=nn.Module)

COMFY_PREFIX = "model.diffusion_model."
VAE_SCALE, VAE_SHIFT, VAE_NORM_GROUPS = 0.3611, 0.1159, 32  # FLUX.1's autoencoder
FLOATS = ("F64", "F32", "F16", "BF16")
FP8 = ("F8_E4M3", "F8_E5M2")
FP8_SCALES = (".scale_weight", ".weight_scale")  # ComfyUI's older and newer name
FP8_IGNORED = (".scale_input", ".input_scale")


def no_progress(fraction: float) -> None:
    """For callers who do not watch."""


def build_transformer(
    path: Path, lora: Path | None, dtype: torch.dtype, progress: Progress = no_progress
) -> USOTransformer2DModel:
    """The transformer with the LoRA fused in float32, in `dtype`, from an original file or a diffusers folder.

    Raises `WeightsError` where a file is not what it should be, or the two do not fit each other.
    """
    adapter = LoRA(expect(inspect(lora), "lora")) if lora is not None else None
    files = _files(path, "transformer", "diffusers transformer")
    if path.is_dir():
        config = _config(path)
        model = _empty(lambda: USOTransformer2DModel.from_config(config), path)
        _check_rope(model, path)
        fill(model, files, (), dtype, progress, adapter)
    else:
        model = _empty(lambda: USOTransformer2DModel(**transformer_config(files[0])), path)
        fill(model, files, keys.TRANSFORMER, dtype, progress, adapter)
    return model


def build_vae(path: Path, dtype: torch.dtype, progress: Progress = no_progress) -> AutoencoderKL:
    """The VAE in `dtype`, from an original file or a diffusers folder."""
    files = _files(path, "vae", "diffusers vae")
    if path.is_dir():
        model = _empty(lambda: AutoencoderKL.from_config(_config(path)), path)
        fill(model, files, (), dtype, progress)
    else:
        config = vae_config(files[0])
        model = _empty(lambda: AutoencoderKL(**config), path)
        fill(model, files, keys.VAE, dtype, progress, levels=len(config["block_out_channels"]))
    return model


def build_projector(path: Path, dtype: torch.dtype) -> StyleProjector:
    """The style projector in `dtype` from projector.safetensors."""
    checkpoint = expect(inspect(path), "projector")
    tokens_out, tokens_in = checkpoint.shape("feature_embedder.high_embedding_linear.0.weight", 2)
    width, vision_width = checkpoint.shape("feature_embedder.high_projection.weight", 2)
    depths = notes(checkpoint).get("depths", list(DEPTHS))
    if not (isinstance(depths, list) and len(depths) == 3 and all(isinstance(depth, int) for depth in depths)):
        raise WeightsError(f"{path} names the depths {depths!r}, three numbers are needed.", DOWNLOAD_AGAIN)
    model = _empty(lambda: StyleProjector(tokens_in, tokens_out, vision_width, width, depths), path)
    rows = tuple(keys.Rename(f"feature_embedder.{name}", (name,)) for name in model.state_dict())
    fill(model, [checkpoint], rows, dtype)
    return model


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Euler along FLUX.1's exponentially shifted schedule; mu comes with each call of `set_timesteps`."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        time_shift_type="exponential",
        base_shift=latents.BASE_MU,
        max_shift=latents.MAX_MU,
        base_image_seq_len=latents.BASE_TOKENS,
        max_image_seq_len=latents.MAX_TOKENS,
    )


def text_tokens(path: Path) -> int:
    """The number of T5 tokens that a transformer was trained with: 512, or what its file notes."""
    tokens = notes(inspect(path)).get("text_tokens", 512) if path.is_file() else 512
    if not (isinstance(tokens, int) and 1 <= tokens <= 512):
        raise WeightsError(f"{path} names {tokens!r} text tokens, 1 to 512 are possible.", DOWNLOAD_AGAIN)
    return tokens


def preview_factors(path: Path) -> list[list[float]]:
    """The VAE's map from latents to RGB (`preview.FLUX_FACTORS`), or the one that its file notes."""
    factors = notes(inspect(path)).get("preview") if path.is_file() else None
    if factors is None:
        return [list(row) for row in preview.FLUX_FACTORS]
    rows = factors if isinstance(factors, list) else []
    if not rows or not all(
        isinstance(row, list) and len(row) == 3 and all(isinstance(value, float | int) for value in row) for row in rows
    ):
        raise WeightsError(f"{path} holds an unreadable preview map.", DOWNLOAD_AGAIN)
    return rows


def transformer_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The transformer's configuration, read off an original file's tensors (widths, depths, guidance, RoPE axes)."""
    prefix = _prefix(checkpoint)
    width, channels = checkpoint.shape(f"{prefix}img_in.weight", 2)
    head = checkpoint.shape(f"{prefix}double_blocks.0.img_attn.norm.query_norm.scale", 1)[0]
    if head % 32 or width % head:  # RoPE needs even axes of head x (1/8, 7/16, 7/16)
        raise WeightsError(
            f"{checkpoint.path} has width {width} and head size {head}; heads must be a multiple of 32 and divide it.",
            "Use a transformer of FLUX.1's architecture.",
        )
    return {
        "in_channels": channels,
        "num_layers": checkpoint.count(rf"{prefix}double_blocks\.(\d+)\."),
        "num_single_layers": checkpoint.count(rf"{prefix}single_blocks\.(\d+)\."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": checkpoint.shape(f"{prefix}txt_in.weight", 2)[1],
        "pooled_projection_dim": checkpoint.shape(f"{prefix}vector_in.in_layer.weight", 2)[1],
        "guidance_embeds": f"{prefix}guidance_in.in_layer.weight" in checkpoint.tensors,
        "axes_dims_rope": (head // 8, head * 7 // 16, head * 7 // 16),
    }


def vae_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The VAE's configuration, read off an original file's tensors; constants from its notes, else FLUX.1's."""
    levels = checkpoint.count(r"encoder\.down\.(\d+)\.block\.")
    widths = [checkpoint.shape(f"encoder.down.{level}.block.0.conv2.weight", 4)[0] for level in range(levels)]
    noted = notes(checkpoint)
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
            f"{checkpoint.path} cannot be built: widths {widths}, scale {scale!r}, shift {shift!r}, "
            f"{groups!r} norm groups.",
            DOWNLOAD_AGAIN,
        )
    return {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": tuple(widths),
        "layers_per_block": checkpoint.count(r"encoder\.down\.0\.block\.(\d+)\."),
        "latent_channels": checkpoint.shape("decoder.conv_in.weight", 4)[1],
        "norm_num_groups": groups,
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in checkpoint.tensors,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "scaling_factor": scale,
        "shift_factor": shift,
    }


def notes(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a file of ours notes that its tensors cannot tell: the JSON object in the metadata entry "uso"."""
    try:
        noted = json.loads(checkpoint.metadata.get("uso", "{}"))
    except (ValueError, RecursionError):
        noted = None
    if not isinstance(noted, dict):
        raise WeightsError(f"{checkpoint.path} has unreadable metadata.", DOWNLOAD_AGAIN)
    return noted


class LoRA:
    """USO's LoRA by the matrices that it adds to; the pairs are small and held in float32."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.path = checkpoint.path
        self.pairs: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # target -> down (r, in), up (out, r)
        stems = dict.fromkeys(name.removesuffix(".weight").removesuffix(".down").removesuffix(".up")
                              for name in checkpoint.tensors)  # fmt: skip
        rows = {stem: keys.row_of(stem, keys.LORA) for stem in stems}
        missing = [f"{stem}.{part}.weight" for stem in rows for part in ("down", "up")
                   if rows[stem] and f"{stem}.{part}.weight" not in checkpoint.tensors]  # fmt: skip
        unknown = [stem for stem in rows if rows[stem] is None]
        if missing or unknown:
            raise _misfit(self.path, "the format of USO's LoRA", missing, unknown, [])
        with safe_open(self.path, "pt") as file:
            for stem, (row, values) in ((stem, found) for stem, found in rows.items() if found):
                down, up = (file.get_tensor(f"{stem}.{part}.weight").float() for part in ("down", "up"))
                targets = row.target_names(values)
                if down.dim() != 2 or up.dim() != 2 or up.shape[1] != down.shape[0] or up.shape[0] % len(targets):
                    raise _misfit(self.path, "the format of USO's LoRA", [], [], [stem])
                self.pairs.update({target: (down, part) for target, part in
                                   zip(targets, up.chunk(len(targets)), strict=True)})  # fmt: skip

    def check(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Raises `WeightsError` unless the LoRA covers exactly what it should of a transformer of these shapes."""
        stems = {name: keys.original_name(name, keys.LORA) for name in shapes}
        missing = [stems[name] for name in shapes if stems[name] != name and name not in self.pairs]
        extra = [keys.original_name(name, keys.LORA) for name in self.pairs if name not in shapes]
        misshapen = [
            f"{stems[name]} adds {up.shape[0]} x {down.shape[1]} to {list(shapes[name])}"
            for name, (down, up) in self.pairs.items()
            if name in shapes and shapes[name] != (up.shape[0], down.shape[1])
        ]
        if missing or extra or misshapen:
            raise _misfit(self.path, "this transformer", missing, extra, misshapen)

    def fuse(self, target: str, weight: torch.Tensor) -> torch.Tensor:
        """`weight` plus the LoRA's part of it, in float32; weights without one are returned as they are."""
        if target not in self.pairs:
            return weight
        down, up = self.pairs[target]
        return torch.addmm(weight.float(), up, down)


def fill(
    model: nn.Module,
    files: list[Checkpoint],
    table: tuple[keys.Rename, ...],
    dtype: torch.dtype,
    progress: Progress = no_progress,
    lora: LoRA | None = None,
    levels: int = 0,
) -> None:
    """Gives an empty (meta) model its weights; raises `WeightsError` unless file and model fit exactly.

    With an empty table the file's names are the model's own.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if lora is not None:
        lora.check(shapes)
    jobs = _match(files, table, shapes, levels)
    weights: dict[str, torch.Tensor] = {}
    with ExitStack() as stack:
        opened = {file.path: stack.enter_context(safe_open(file.path, "pt")) for file in files}
        for done, (file, source, targets, swapped) in enumerate(jobs):
            progress(done / len(jobs))
            tensor = _read(opened[file.path], file, source)
            if swapped:
                tensor = torch.cat(tensor.chunk(2)[::-1])
            parts = tensor.split([shapes[target][0] for target in targets])
            for target, part in zip(targets, parts, strict=True):
                fused = lora.fuse(target, part) if lora is not None else part
                weights[target] = fused.reshape(shapes[target]).to(dtype)
    model.load_state_dict(weights, strict=True, assign=True)
    model.eval().requires_grad_(False)
    progress(1.0)


Job = tuple[Checkpoint, str, tuple[str, ...], bool]


def _match(
    files: list[Checkpoint], table: tuple[keys.Rename, ...], shapes: dict[str, tuple[int, ...]], levels: int
) -> list[Job]:
    """Which tensor fills which parameters; the strictness of loading is here."""
    jobs: list[Job] = []
    unknown: list[str] = []
    misshapen: list[str] = []
    filled: set[str] = set()
    for file in files:
        prefix = _prefix(file)
        for name, info in file.tensors.items():
            if not name.startswith(prefix) or _is_scale(name):
                continue
            bare = name[len(prefix) :]
            found = keys.row_of(bare, table) if table else (keys.Rename(bare, (bare,)), {})
            targets = found[0].target_names(found[1], levels) if found else ()
            if not found or any(target not in shapes for target in targets):
                unknown.append(bare)
                continue
            needed = (sum(shapes[target][0] for target in targets), *shapes[targets[0]][1:])
            if info.shape != needed and info.shape != (*needed, 1, 1):  # 1 x 1 convolutions are linear layers here
                misshapen.append(f"{bare} is {list(info.shape)}, {list(needed)} is needed")
            filled.update(targets)
            jobs.append((file, name, targets, found[0].halves_swapped))
    missing = sorted({keys.original_name(name, table, levels) for name in shapes if name not in filled})
    if missing or unknown or misshapen:
        raise _misfit(files[0].path, "what its other tensors describe", missing, unknown, misshapen)
    return jobs


def _read(opened: Any, file: Checkpoint, name: str) -> torch.Tensor:
    """One tensor as floating point; fp8 is brought back to float32 with its scale, if it has one."""
    kind = file.tensors[name].dtype
    if kind in FLOATS:
        return opened.get_tensor(name)
    if kind not in FP8:
        raise WeightsError(
            f"{file.path} holds {name} as {kind}, a quantization that cannot be read.", "Use the bf16 or fp8 file."
        )
    tensor = opened.get_tensor(name).float()
    stem = name.removesuffix(".weight")
    scale = next((stem + suffix for suffix in FP8_SCALES if stem + suffix in file.tensors), None)
    if scale is None:
        return tensor
    factor = opened.get_tensor(scale).float()
    return tensor * (factor.reshape(-1, *[1] * (tensor.dim() - 1)) if factor.numel() > 1 else factor.reshape(()))


def _is_scale(name: str) -> bool:
    return name.endswith((*FP8_SCALES, *FP8_IGNORED, "scaled_fp8"))


def _prefix(checkpoint: Checkpoint) -> str:
    return COMFY_PREFIX if any(name.startswith(COMFY_PREFIX) for name in checkpoint.tensors) else ""


def _files(path: Path, role: str, folder_role: str) -> list[Checkpoint]:
    if not path.is_dir():
        return [expect(inspect(path), role)]
    files = sorted(path.glob("*.safetensors"))
    index = next(iter(sorted(path.glob("*.safetensors.index.json"))), None)
    if index is not None:
        listed = _json(index).get("weight_map")
        shards = {name for name in listed.values() if _plain(name)} if isinstance(listed, dict) else set()
        files = [path / name for name in sorted(shards)]
    if not files:
        raise WeightsError(f"{path} holds no safetensors file.", "Point to a file, or to a complete diffusers folder.")
    checkpoints = [inspect(file) for file in files]
    names: dict[str, TensorInfo] = {}
    for checkpoint in checkpoints:
        names |= checkpoint.tensors
    expect(Checkpoint(path, role_of(names), names), folder_role)
    return checkpoints


def _plain(name: object) -> bool:
    """A shard is a file beside its index; a name that leads elsewhere is not opened."""
    return isinstance(name, str) and Path(name).name == name


def _config(folder: Path) -> dict[str, Any]:
    return _json(folder / "config.json")


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}.", "Download the whole folder again.") from None
    except (ValueError, RecursionError):
        raise WeightsError(f"{path} is not JSON.", "Download the whole folder again.") from None
    if not isinstance(values, dict):
        raise WeightsError(f"{path} is not a JSON object.", "Download the whole folder again.")
    return values


def _empty(make: Callable[[], Module], path: Path) -> Module:
    """The module without memory for its weights; a configuration that makes no module is the file's fault."""
    try:
        with torch.device("meta"):
            return make()
    except Exception as error:  # whatever a configuration provokes in a library's constructor
        raise WeightsError(f"{path} describes no model that can be built: {error}.", DOWNLOAD_AGAIN) from None


def _check_rope(model: USOTransformer2DModel, path: Path) -> None:
    axes, head = model.config.axes_dims_rope, model.config.attention_head_dim
    if not isinstance(axes, list | tuple) or len(axes) != 3 or sum(axes) != head or any(axis % 2 for axis in axes):
        raise WeightsError(f"{path} has RoPE axes {axes!r} for heads of {head}.", "Download the whole folder again.")


def _misfit(path: Path, what: str, missing: list[str], unknown: list[str], misshapen: list[str]) -> WeightsError:
    parts = [
        f"{len(names)} {word} (first {names[0]})"
        for names, word in ((missing, "missing"), (unknown, "unknown"), (misshapen, "misshapen"))
        if names
    ]
    return WeightsError(
        f"{path} does not fit {what}: tensors {', '.join(parts)}.",
        "Use the file of this model, or download it again if it is damaged.",
    )
