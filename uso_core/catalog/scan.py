"""Looks through folders of models, such as ComfyUI's, for everything that USO can use, by file headers alone.

A header is read once: what it said is remembered by path, size and time, also on disk. No torch.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from uso_core.catalog.files import (
    LIBRARY_NAMES,
    TRANSFORMERS,
    VAES,
    Checkpoint,
    divided,
    header_of,
    inspect_shards,
    kind_of,
    problem_of,
)
from uso_core.catalog.models import TOKENIZER_ROLES
from uso_core.errors import WeightsError
from uso_core.messages import Message, message

log = logging.getLogger(__name__)

INDEX = ".safetensors.index.json"
WEIGHTS, PICKLES = (".safetensors", ".sft", ".gguf"), (".ckpt", ".pt", ".pth", ".bin")
SKIPPED = ("venv", "node_modules", "__pycache__", "site-packages", "custom_nodes", "input", "output", "outputs", "temp")
MAX_HEADER_BYTES = 16 * 2**20  # far above the largest of a real model, far below what an untrusted file may claim
MAX_JSON_BYTES, MAX_MEMORY_BYTES = 8 * 2**20, 64 * 2**20  # of a tokenizer or an index; of what is remembered
MAX_DEPTH, MAX_FILES = 10, 50_000
FRESH_SECONDS = 15.0  # for which a look through the folders serves
FORMAT = 3  # of what is remembered on disk; raise it whenever the same file would be described differently

ROLES = {  # kinds of `files.PARTS` and `files.WHOLE`, by the catalog's role
    **dict.fromkeys(TRANSFORMERS, "transformer"), **dict.fromkeys(VAES, "vae"), "lora": "lora", "foreign lora": "lora",
    "projector": "projector", "T5 text encoder": "t5", "CLIP text encoder": "clip", "SigLIP vision tower": "siglip",
}  # fmt: skip
USO_LORA, OTHER_LORA = "lora", "foreign lora"

# What must agree between parts of one model: names of tensors that tell it, and which side. Of the VAE's latent
# channels, 2 x 2 make a token's.
Sides = Mapping[str, tuple[tuple[str, ...], int]]
_WIDTH, _TOKEN = ("img_in.weight", "x_embedder.weight"), "token_embedding.weight"
_T5_TOKENS = ("shared.weight", "encoder.embed_tokens.weight", "token_embd.weight")
_CLIP_TOKENS = (f"embeddings.{_TOKEN}", f"text_model.embeddings.{_TOKEN}")
_PATCHES = "embeddings.patch_embedding.weight"
_POSITIONS = "embeddings.position_embedding.weight"
SIDES: dict[str, Sides] = {
    "transformer": {
        "width": (_WIDTH, 0), "channels": (_WIDTH, 1), "text": (("txt_in.weight", "context_embedder.weight"), 1),
        "pooled": (("vector_in.in_layer.weight", "time_text_embed.text_embedder.linear_1.weight"), 1),
    },
    "lora": {"width": (("double_blocks.0.processor.qkv_lora1.down.weight",), 1)},
    "projector": {
        "width": (("feature_embedder.high_projection.weight",), 0),
        "vision": (("feature_embedder.high_projection.weight",), 1),
        "patches": (("feature_embedder.high_embedding_linear.0.weight",), 1),
    },
    "vae": {"channels": (("decoder.conv_in.weight",), 1)},
    "t5": {"text": (_T5_TOKENS, 1), "t5_tokens": (_T5_TOKENS, 0)},
    "clip": {"pooled": (_CLIP_TOKENS, 1), "clip_tokens": (_CLIP_TOKENS, 0)},
    "siglip": {
        "vision": ((_PATCHES, f"vision_model.{_PATCHES}"), 0),
        "patches": ((_POSITIONS, f"vision_model.{_POSITIONS}"), 0),
    },
}  # fmt: skip
DEPTHS = {"double": r"^(?:double|transformer)_blocks\.(\d+)\.", "single": r"^single_(?:transformer_)?blocks\.(\d+)\."}
FLUX_WIDTH, USO_RANK = 3072, 128
TOKENIZERS = {"clip_tokenizer": "clip_tokens", "t5_tokenizer": "t5_tokens"}  # roles, and the side that they must fit
TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "vocab.json")
COMFY_TOKENIZERS = ("comfy/sd1_tokenizer", "comfy/text_encoders/t5_tokenizer")  # in ComfyUI's source


@dataclass(frozen=True)
class Found:
    """A file, a part of it, or a folder that USO could use, or may be expected to.

    `role` is the catalog's, or "" for anything else; `kind` a role of `files`; `variant` a transformer's; `sides` what
    must agree with other parts; `problem` says why it cannot be used.
    """

    path: Path
    role: str
    kind: str
    variant: str = ""
    precision: str = ""
    bytes: int = 0
    sides: Mapping[str, int] = field(default_factory=dict)
    problem: Message | None = None

    @property
    def title(self) -> Message:
        """What it is, in words."""
        if self.role == "transformer":
            return message("found_transformer", variant=self.variant, precision=self.precision)
        if self.role in TOKENIZERS:
            return message(f"role_{self.role}")
        what = message(f"role_{self.role}") if self.role and self.kind != OTHER_LORA else kind_of(self.kind)
        return message("found_part", what=what, precision=self.precision) if self.precision else what

    def fits(self, sides: Mapping[str, int]) -> bool:
        """Whether it can be part of a model with these sides."""
        if self.role in TOKENIZERS:  # a model may have more rows than its tokenizer has tokens
            side = TOKENIZERS[self.role]
            return self.sides[side] <= sides.get(side, self.sides[side])
        return all(sides.get(name, value) == value for name, value in self.sides.items())


def best(found: Iterable[Found], role: str, sides: Mapping[str, int], variant: str = "") -> Found | None:
    """The usable part of that role that fits, and of several the one with most bytes; for a LoRA only USO's."""
    fitting = [
        each for each in found
        if each.role == role and each.problem is None and each.kind != OTHER_LORA and each.fits(sides)
        and (not variant or each.variant == variant)
    ]  # fmt: skip
    return min(fitting, key=lambda each: (-each.bytes, str(each.path)), default=None)


def scan(folders: tuple[Path, ...], memory: Path | None = None) -> tuple[Found, ...]:
    """Everything of interest in the folders, in the order of paths; looks again after `FRESH_SECONDS`.

    `memory` is the file that remembers headers between runs; without it, or if it cannot be written, each is read once
    per run.
    """
    return _scan(folders, memory, int(time.monotonic() / FRESH_SECONDS)) if folders else ()


@lru_cache(maxsize=4)
def _scan(folders: tuple[Path, ...], memory: Path | None, moment: int) -> tuple[Found, ...]:
    known = _remembered(memory)
    before = dict(known)
    found = [each for folder in folders for what, path in _places(folder) for each in what(path, known)]
    if memory is not None and known != before:
        _remember(memory, known)
    return tuple({(each.path, each.kind, each.role): each for each in found}.values())


def describe(path: Path) -> tuple[Found, ...]:
    """What a file or a folder of weights is, part by part; a file that cannot be read is one with a problem."""
    files = [path, *model_files(path)] if path.is_dir() else [path]
    try:
        return _describe(path, tuple(file.stat().st_mtime_ns for file in files))
    except OSError as error:
        return (Found(path, "", "", problem=message("error_file_unreadable", path=path, reason=error.strerror)),)


def described_as(path: Path, role: str) -> Found | None:
    """What the file or folder given for a part holds: that part, else what comes first in it; None of a tokenizer."""
    found = () if role in TOKENIZER_ROLES else describe(path)
    return next((each for each in found if each.role == role), found[0] if found else None)


@lru_cache(maxsize=64)  # the page asks every second while its Model tab is open
def _describe(path: Path, modified_ns: tuple[int, ...]) -> tuple[Found, ...]:
    try:
        if path.is_dir():
            if not (shards := model_files(path)):
                raise WeightsError("no_safetensors", path=path)
            whole = inspect_shards(path, shards)[0]
        else:
            whole = divided(path, *header_of(path, MAX_HEADER_BYTES))
    except WeightsError as error:
        return (Found(path, "", "", problem=error.problem),)
    return tuple(_found(path, part) for part in (whole, *whole.others))


def _found(path: Path, part: Checkpoint) -> Found:
    role = ROLES.get(part.role, "")
    sides = {}
    for side, (names, axis) in SIDES.get(role, {}).items():
        shape = next((part.tensors[name].shape for name in names if name in part.tensors), ())
        if len(shape) > axis:
            sides[side] = shape[axis] * (4 if role == "vae" else 1)
    if part.role in ("transformer", "diffusers transformer", USO_LORA):
        lines = "\n".join(part.tensors)
        sides |= {side: len(set(re.findall(pattern, lines, re.MULTILINE))) for side, pattern in DEPTHS.items()}
    kind = OTHER_LORA if part.role == USO_LORA and not _is_usos(part, sides) else part.role
    problem = problem_of(part)
    variant = part.variant if role == "transformer" else ""
    size = sum(info.bytes for info in part.tensors.values())
    said = None if problem is None else problem.problem
    return Found(path, role, kind, variant, part.precision, size, sides, said)


Known = dict[str, list[Any]]  # by path: size, time, and what was found there
Place = tuple[Callable[[Path, Known], tuple[Found, ...]], Path]  # a path, and how to describe it


def _is_usos(part: Checkpoint, sides: Mapping[str, int]) -> bool:
    """Whether a LoRA covers both kinds of blocks, at full width with USO's rank: XLabs' LoRAs have such names too."""
    rank = part.tensors["double_blocks.0.processor.qkv_lora1.down.weight"].shape[0] if "width" in sides else 0
    return sides["single"] > 0 and (sides.get("width") != FLUX_WIDTH or rank == USO_RANK)


def _places(folder: Path) -> Iterator[Place]:
    """Files of weights below a folder, folders that are one model, and tokenizers' folders, in order."""
    seen: set[tuple[int, int]] = set()
    left = MAX_FILES
    source = folder.parent if folder.name == "models" else folder  # ComfyUI/models: the source lies beside it
    if source != folder:
        yield from ((_tokenizer, source / name) for name in COMFY_TOKENIZERS if (source / name).is_dir())
    for place, below, names in os.walk(folder, followlinks=True):
        here, depth = Path(place), len(Path(place).parts) - len(folder.parts)
        left -= len(names)
        try:
            key = (here.stat().st_dev, here.stat().st_ino)
        except OSError:
            continue
        if key in seen or depth > MAX_DEPTH or left < 0:  # a link back up, or a disk rather than a folder of models
            below.clear()
            continue
        seen.add(key)
        below[:] = sorted(name for name in below if name not in SKIPPED and not name.startswith("."))
        if any(name in TOKENIZER_FILES for name in names):
            yield _tokenizer, here
        whole = "config.json" in names or any(name.endswith(INDEX) for name in names)
        together = {path.name for path in model_files(here)} if whole else set()
        if together:
            yield _described, here
        for name in sorted(set(names) - together):
            if name.lower().endswith((*WEIGHTS, *PICKLES)):
                yield _described, here / name


def model_files(folder: Path) -> list[Path]:
    """The files of a folder that holds one model, by its index or by the names that libraries give; else none."""
    index = next(iter(sorted(folder.glob(f"*{INDEX}"))), None)
    if index is not None:
        listed = _json(index).get("weight_map")
        names = sorted({name for name in listed.values() if isinstance(name, str)}) if isinstance(listed, dict) else []
        return [folder / name for name in names if Path(name).name == name]
    return [folder / name for name in LIBRARY_NAMES if (folder / name).is_file()][:1]


def _described(path: Path, known: Known) -> tuple[Found, ...]:
    if path.suffix.lower() in PICKLES and path.is_file():
        return (Found(path, "", "", problem=message("error_pickle", path=path)),)
    try:
        files = [file.stat() for file in (model_files(path) if path.is_dir() else [path])]
    except OSError as error:
        return (Found(path, "", "", problem=message("error_file_unreadable", path=path, reason=error.strerror)),)
    size, modified = sum(file.st_size for file in files), max(file.st_mtime_ns for file in files)
    if known.get(str(path), [])[:2] != [size, modified]:
        known[str(path)] = [size, modified, [_plain(each) for each in describe(path)]]
    return tuple(_restored(path, each) for each in known[str(path)][2])


def _plain(found: Found) -> list[Any]:
    problem = None if found.problem is None else [found.problem.key, dict(found.problem.values)]
    return [found.role, found.kind, found.variant, found.precision, found.bytes, dict(found.sides), problem]


def _restored(path: Path, values: list[Any]) -> Found:
    role, kind, variant, precision, size, sides, problem = values
    said = None if problem is None else Message(*problem)
    return Found(path, role, kind, variant, precision, size, dict(sides), said)


def _remembered(memory: Path | None) -> Known:
    """What is known of headers; what a file of another version, or a damaged one, says is not."""
    if memory not in _KNOWN:
        held = _json(memory, MAX_MEMORY_BYTES) if memory is not None else {}
        files = held.get("files") if held.get("format") == FORMAT else {}
        _KNOWN[memory] = dict(filter(_is_entry, files.items())) if isinstance(files, dict) else {}
    return _KNOWN[memory]


def _is_entry(item: tuple[str, Any]) -> bool:
    try:
        path, (size, modified, found) = item
        whole = type(size) is int and type(modified) is int
        return whole and all(isinstance(_restored(Path(path), each), Found) for each in found)
    except (TypeError, ValueError):
        return False


_KNOWN: dict[Path | None, Known] = {}


def _remember(memory: Path, known: Known) -> None:
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        part = memory.with_suffix(f".{os.getpid()}.part")
        there = {path: entry for path, entry in known.items() if os.path.exists(path)}
        part.write_text(json.dumps({"format": FORMAT, "files": there}), encoding="utf-8")
        os.replace(part, memory)
    except (OSError, TypeError, ValueError) as error:
        log.info("What the headers said cannot be kept in %s: %s", memory, error)


def _tokenizer(folder: Path, known: Known) -> tuple[Found, ...]:
    """CLIP's or T5's tokenizer, if the folder holds one."""
    said = _json(folder / "tokenizer_config.json").get("tokenizer_class", "")
    vocabulary = _json(folder / "vocab.json")
    if said in ("CLIPTokenizer", "CLIPTokenizerFast") or "<|startoftext|>" in vocabulary:
        tokens = len(vocabulary) or _tokens(folder)
        return (Found(folder, "clip_tokenizer", "", bytes=tokens, sides={"clip_tokens": tokens}),) if tokens else ()
    if said in ("T5Tokenizer", "T5TokenizerFast"):
        tokens = _tokens(folder)
        if tokens or (folder / "spiece.model").is_file():
            return (Found(folder, "t5_tokenizer", "", bytes=tokens, sides={"t5_tokens": tokens}),)
    return ()


def _tokens(folder: Path) -> int:
    """The number of tokens in tokenizer.json."""
    model = _json(folder / "tokenizer.json").get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    return len(vocabulary) if isinstance(vocabulary, dict | list) else 0


def _json(path: Path, most: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """A JSON object of at most `most` bytes; {} if there is none."""
    try:
        if path.stat().st_size > most:
            return {}
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
