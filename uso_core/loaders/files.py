"""Identifies a file by its first bytes and its tensors' names, never by its own name.

Reads safetensors and GGUF; recognises other formats in order to refuse them by name.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO

from uso_core.errors import WeightsError
from uso_core.loaders import gguf
from uso_core.messages import Message, message

MAX_HEADER_BYTES = 100 * 2**20  # the format's own limit
DTYPE_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip

# What a file's tensor names say it is; the first row whose patterns all occur wins.
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
SPOKEN = ("projector", "lora", "foreign lora", "transformer", "diffusers transformer", "vae", "diffusers vae")


@dataclass(frozen=True)
class TensorInfo:
    """`offset` of the tensor's first byte in the file; `bytes` from there on, all within the file."""

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
    def kind(self) -> Message:
        """What the file appears to be."""
        if self.role == "unknown":
            first = next(iter(self.tensors), None)
            return message("kind_empty") if first is None else message("kind_unknown", tensor=first)
        return kind_of(self.role)

    def shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        """A tensor's shape; raises `WeightsError` if the file lacks it, or its number of dimensions is wrong or 0."""
        if name not in self.tensors:
            raise WeightsError("tensor_missing", hint="download_again", path=self.path, name=name)
        shape = self.tensors[name].shape
        if len(shape) != dimensions or 0 in shape:
            raise WeightsError(
                "tensor_dimensions",
                hint="download_again",
                path=self.path,
                name=name,
                shape=list(shape),
                dimensions=dimensions,
            )
        return shape

    def count(self, pattern: str) -> int:
        """How many numbers, counting from 0, the pattern's group matches in the tensors' names.

        Raises `WeightsError` if one is missing: an untrusted number sizes nothing.
        """
        matches = {int(match[1]): match[0] for name in self.tensors if (match := re.match(pattern, name))}
        last = max(matches, default=-1)
        if last + 1 != len(matches):
            raise WeightsError(
                "tensors_not_consecutive",
                hint="download_again",
                path=self.path,
                tensor=matches[last],
                count=len(matches),
            )
        return len(matches)


def inspect(path: Path) -> Checkpoint:
    """Reads the header of a safetensors or GGUF file; otherwise raises `WeightsError` saying what the file is.

    Nothing in the file is trusted: sizes are checked against the file's own before anything is allocated.
    """
    if path.is_dir():
        raise WeightsError("folder_not_file", path=path)
    if not path.is_file():
        raise WeightsError("weights_missing", path=path)
    try:
        found = path.stat()
        return _inspected(path, found.st_size, found.st_mtime_ns)
    except OSError as error:
        raise WeightsError("file_unreadable", hint="check_permissions", path=path, reason=error.strerror) from None


@lru_cache(maxsize=16)  # one loading asks several times for the same header, which can be megabytes
def _inspected(path: Path, size: int, modified_ns: int) -> Checkpoint:
    try:
        with path.open("rb") as file:
            start = file.read(512)
            if start.startswith(gguf.MAGIC):
                tensors, metadata = _read_gguf(path, file, size)
                return Checkpoint(path, role_of(tensors), tensors, metadata)
            _refuse_other_formats(path, start, size)
            header_bytes = int.from_bytes(start[:8], "little")
            if header_bytes > size - 8:
                raise WeightsError(
                    "header_cut_off", hint="download_again", path=path, header_bytes=header_bytes, size=size
                )
            file.seek(8)
            header = json.loads(file.read(header_bytes))
        tensors, metadata = _read_header(path, header, 8 + header_bytes, size)
    except (ValueError, RecursionError):
        raise WeightsError("header_unreadable", hint="download_again", path=path) from None
    return Checkpoint(path, role_of(tensors), tensors, metadata)


def role_of(names: dict[str, TensorInfo]) -> str:
    """The role that a file's tensor names indicate, or "unknown"."""
    for role, patterns in ROLES:
        if all(any(re.search(pattern, name) for name in names) for pattern in patterns):
            return role
    return "unknown"


def expect(checkpoint: Checkpoint, *roles: str) -> Checkpoint:
    """Returns the checkpoint if it has one of the roles; else raises `WeightsError` saying what it appears to be."""
    if checkpoint.role in roles:
        return checkpoint
    hint = "wanted_kind_of_two" if checkpoint.role in ("lora", "projector") else "wanted_kind"
    raise WeightsError("wrong_kind", hint=hint, path=checkpoint.path, wanted=kind_of(roles[0]), found=checkpoint.kind)


def kind_of(role: str) -> Message:
    """Names a role of `ROLES` in a sentence."""
    return message(f"kind_{role.replace(' ', '_')}") if role in SPOKEN else message("kind_other", role=role)


def misfit(path: Path, what: str, missing: list[str], unknown: list[str], misshapen: list[str]) -> WeightsError:
    """An error that says how many tensors of a file do not fit, giving the first of each kind.

    `what` is the key of what they should fit.
    """
    parts = tuple(
        message(f"tensors_{kind}", count=len(names), first=names[0])
        for kind, names in (("missing", missing), ("unknown", unknown), ("misshapen", misshapen))
        if names
    )
    return WeightsError("misfit", hint="right_file", path=path, what=message(what), parts=parts)


def _refuse_other_formats(path: Path, start: bytes, size: int) -> None:
    header_bytes = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and 2 <= header_bytes <= MAX_HEADER_BYTES:
        return
    text = start.lstrip().lower()
    if size == 0:
        key, hint = "file_empty", "download_again"
    elif text.startswith((b"<!doctype", b"<html", b"<?xml")):
        key, hint = "web_page", ""
    elif start.startswith(b"version https://git-lfs"):
        key, hint = "lfs_pointer", ""
    elif start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")):
        key, hint = "pickle", ""
    elif text.startswith((b"{", b"[")):
        key, hint = "json_file", ""
    elif size < 8:
        key, hint = "cut_off_early", "download_again"
    else:
        key, hint = "no_safetensors_file", ""
    raise WeightsError(key, hint=hint, path=path, size=size)


def _cut_off(path: Path, name: str, end: int, size: int) -> WeightsError:
    return WeightsError("tensor_cut_off", hint="download_again", path=path, name=name, end=end, size=size)


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
    damaged = WeightsError("header_invalid", hint="download_again", path=path)
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
    if edges[::2] != edges[1::2]:  # the format allows no overlap, no gap and nothing after the last tensor
        raise damaged
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise damaged
    return tensors, metadata
