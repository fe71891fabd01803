"""What is this file? Learnt from its first bytes and its tensors' names, never from its own name.

safetensors and GGUF; everything else is recognised so that it can be refused by name.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from uso_core.errors import WeightsError
from uso_core.loaders import gguf

MAX_HEADER_BYTES = 100 * 2**20  # the format's own limit
DTYPE_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
DOWNLOAD_AGAIN = "Delete it and download it again."

# What the names of its tensors say a file is; the first row of which every pattern occurs wins.
ROLES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("projector", (r"^feature_embedder\.",)),
    ("lora", (r"\.processor\.(qkv|proj)_lora1?\.(down|up)\.weight$",)),
    ("foreign lora", (r"(lora_(A|B|up|down)|lora\.(up|down))\b",)),
    ("SDXL checkpoint", (r"^conditioner\.embedders\.",)),
    ("Stable Diffusion checkpoint", (r"input_blocks\.\d+\.", r"output_blocks\.\d+\.")),
    ("Stable Diffusion U-Net", (r"^down_blocks\.\d+\.attentions\.",)),
    ("Stable Diffusion 3 checkpoint", (r"joint_blocks\.\d+\.",)),
    ("transformer", (r"^(model\.diffusion_model\.)?double_blocks\.\d+\.img_attn\.", r"single_blocks\.\d+\.linear1\.")),
    ("diffusers transformer", (r"^transformer_blocks\.\d+\.attn\.add_q_proj\.", r"^single_transformer_blocks\.\d+\.")),
    ("vae", (r"^(vae\.)?encoder\.down\.\d+\.block\.", r"^(vae\.)?decoder\.up\.\d+\.block\.")),
    ("diffusers vae", (r"^encoder\.down_blocks\.\d+\.resnets\.", r"^decoder\.up_blocks\.\d+\.resnets\.")),
    ("T5 text encoder", (r"^encoder\.block\.\d+\.layer\.0\.SelfAttention\.",)),
    ("SigLIP vision tower", (r"^(vision_model\.)?encoder\.layers\.\d+\..*", r"patch_embedding\.bias$")),
    ("CLIP text encoder", (r"^(text_model\.)?encoder\.layers\.\d+\.", r"token_embedding\.weight$")),
)
SPOKEN = {
    "projector": "USO's style projector",
    "lora": "USO's LoRA",
    "foreign lora": "a LoRA in another format",
    "transformer": "a FLUX transformer",
    "diffusers transformer": "a FLUX transformer in the diffusers layout",
    "vae": "a VAE",
    "diffusers vae": "a VAE in the diffusers layout",
}


@dataclass(frozen=True)
class TensorInfo:
    """`offset`: of the tensor's first byte in the file, `bytes`: from there on, all of them in the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    bytes: int


@dataclass(frozen=True)
class Checkpoint:
    """One file as its header describes it. `role` is a key of `ROLES`, or "unknown"."""

    path: Path
    role: str
    tensors: dict[str, TensorInfo] = field(repr=False)
    metadata: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def spoken(self) -> str:
        """What the file seems to be, in words."""
        if self.role == "unknown":
            first = next(iter(self.tensors), "no tensor at all")
            return f"something unknown (first tensor: {first})"
        return SPOKEN.get(self.role, f"a {self.role}")

    def shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        """The shape of a tensor; raises `WeightsError` if the file lacks it or it has other dimensions, or none."""
        if name not in self.tensors:
            raise WeightsError(f"{self.path} lacks the tensor {name}.", DOWNLOAD_AGAIN)
        shape = self.tensors[name].shape
        if len(shape) != dimensions or 0 in shape:
            raise WeightsError(
                f"{self.path} holds {name} with shape {list(shape)}, {dimensions} dimensions are needed.",
                DOWNLOAD_AGAIN,
            )
        return shape

    def count(self, pattern: str) -> int:
        """How many numbers from 0 the pattern's group matches in the tensors' names.

        Raises `WeightsError` where one is missing: nothing is sized by an untrusted number.
        """
        matches = {int(match[1]): match[0] for name in self.tensors if (match := re.match(pattern, name))}
        last = max(matches, default=-1)
        if last + 1 != len(matches):
            raise WeightsError(
                f"{self.path} goes up to {matches[last]} but has only {len(matches)} of these.", DOWNLOAD_AGAIN
            )
        return len(matches)


def inspect(path: Path) -> Checkpoint:
    """Reads the header of a safetensors or GGUF file; raises `WeightsError` that says what the file is instead.

    Nothing in the file is trusted: sizes are checked against the file's own before anything is allocated.
    """
    if path.is_dir():
        raise WeightsError(f"{path} is a folder, a safetensors file is needed here.", "Point to the file inside it.")
    if not path.is_file():
        raise WeightsError(f"{path} is not there.", "Check the path, or download the file again.")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(512)
            if start.startswith(gguf.MAGIC):
                tensors, metadata = _read_gguf(path, file, size)
                return Checkpoint(path, role_of(tensors), tensors, metadata)
            _refuse_other_formats(path, start, size)
            header_bytes = int.from_bytes(start[:8], "little")
            if header_bytes > size - 8:
                raise WeightsError(
                    f"{path} is cut off: its header names {header_bytes} bytes, the file has {size}.", DOWNLOAD_AGAIN
                )
            file.seek(8)
            header = json.loads(file.read(header_bytes))
        tensors, metadata = _read_header(path, header, 8 + header_bytes, size)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from None
    except (ValueError, RecursionError):
        raise WeightsError(f"{path} is damaged: its header is not readable.", DOWNLOAD_AGAIN) from None
    return Checkpoint(path, role_of(tensors), tensors, metadata)


def role_of(names: dict[str, TensorInfo]) -> str:
    """The role that a file's tensor names speak of, or "unknown"."""
    for role, patterns in ROLES:
        if all(any(re.search(pattern, name) for name in names) for pattern in patterns):
            return role
    return "unknown"


def expect(checkpoint: Checkpoint, *roles: str) -> Checkpoint:
    """The checkpoint itself if it has one of the roles; else raises `WeightsError` saying what it seems to be."""
    if checkpoint.role in roles:
        return checkpoint
    wanted = SPOKEN.get(roles[0], f"a {roles[0]}")
    hint = f"Give {wanted} here."
    if checkpoint.role in ("lora", "projector"):
        hint += " LORA takes dit_lora.safetensors, PROJECTION_MODEL takes projector.safetensors."
    raise WeightsError(f"{checkpoint.path} is not {wanted}: it seems to be {checkpoint.spoken}.", hint)


def misfit(path: Path, what: str, missing: list[str], unknown: list[str], misshapen: list[str]) -> WeightsError:
    """The error that names how many tensors of a file do not fit, each kind with its first."""
    parts = [
        f"{len(names)} {word} (first {names[0]})"
        for names, word in ((missing, "missing"), (unknown, "unknown"), (misshapen, "misshapen"))
        if names
    ]
    return WeightsError(
        f"{path} does not fit {what}: tensors {', '.join(parts)}.",
        "Use the file of this model, or download it again if it is damaged.",
    )


def _refuse_other_formats(path: Path, start: bytes, size: int) -> None:
    header_bytes = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and 2 <= header_bytes <= MAX_HEADER_BYTES:
        return
    text = start.lstrip().lower()
    if size == 0:
        what, hint = "is empty", DOWNLOAD_AGAIN
    elif text.startswith((b"<!doctype", b"<html", b"<?xml")):
        what = "is a web page saved under this name, not weights"
        hint = "Log in, accept the model's licence, and download the file itself (python weights/downloader.py)."
    elif start.startswith(b"version https://git-lfs"):
        what = "is a Git LFS pointer, not the weights themselves"
        hint = "Run `git lfs pull` in its repository, or download the file again."
    elif start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")):
        what = "is a pickled PyTorch checkpoint, which could run code when opened"
        hint = "Use the safetensors file of the same model."
    elif text.startswith((b"{", b"[")):
        what, hint = "is a JSON file, not weights", "Point to the .safetensors file."
    elif size < 8:
        what, hint = f"is cut off after {size} bytes", DOWNLOAD_AGAIN
    else:
        what, hint = "is not a safetensors file", "Use the safetensors file of the model."
    raise WeightsError(f"{path} {what}.", hint)


def _cut_off(path: Path, name: str, end: int, size: int) -> WeightsError:
    return WeightsError(f"{path} is cut off: {name} ends at byte {end}, the file has {size}.", DOWNLOAD_AGAIN)


def _read_gguf(path: Path, file: IO[bytes], size: int) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    entries, metadata = gguf.read_header(file, min(size, MAX_HEADER_BYTES))
    tensors = {name: TensorInfo(*entry) for name, entry in entries.items()}
    end = 0
    for name, info in sorted(tensors.items(), key=lambda each: each[1].offset):
        if info.offset < end:  # two tensors in one place
            raise ValueError(name)
        end = info.offset + info.bytes
        if end > size:
            raise _cut_off(path, name, end, size)
    return tensors, metadata


def _read_header(
    path: Path, header: object, data_begin: int, size: int
) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    data_bytes = size - data_begin
    damaged = WeightsError(f"{path} is damaged: its header is not a safetensors header.", DOWNLOAD_AGAIN)
    if not isinstance(header, dict):
        raise damaged
    metadata = header.pop("__metadata__", None) or {}
    tensors: dict[str, TensorInfo] = {}
    spans = []
    for name, entry in header.items():
        try:
            dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            right = all(type(n) is int and n >= 0 for n in (*shape, begin, end)) and isinstance(dtype, str)
        except (TypeError, KeyError, ValueError):
            raise damaged from None
        if not right or (dtype in DTYPE_BYTES and end - begin != math.prod(shape) * DTYPE_BYTES[dtype]):
            raise damaged
        spans.append((begin, end))
        if end > data_bytes:
            raise _cut_off(path, name, data_begin + end, size)
        tensors[name] = TensorInfo(dtype, shape, data_begin + begin, end - begin)
    edges = [0, *(edge for span in sorted(spans) for edge in span), data_bytes]
    if edges[::2] != edges[1::2]:  # the format allows no overlap, no hole and nothing behind the last tensor
        raise damaged
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise damaged
    return tensors, metadata
