"""LoRAs beside USO's, in every dialect: diffusers and PEFT, kohya, XLabs, ai-toolkit, BFL's names, ComfyUI's prefixes.

Names are resolved by the transformer's own: each of its matrices is known by its diffusers name, its original name (of
which several diffusers matrices are rows), XLabs' processor, and any of these with underscores for dots.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import regex
import torch

from uso_core.catalog.files import PEFT_CONFIG, PEFT_FILE, Checkpoint, expect, inspect
from uso_core.errors import WeightsError
from uso_core.loaders import keys
from uso_core.loaders.tensors import TensorReader

PREFIXES = (
    "base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "unet.", "lora_unet_",
    "lora_transformer_", "lycoris_",
)  # fmt: skip
TEXT_ENCODERS = (  # "bundle_emb.": words that are trained along
    "text_encoder", "text_encoders.", "lora_te", "te1.", "te2.", "clip_l.", "t5xxl.", "clip.", "t5.", "bundle_emb.",
)  # fmt: skip
_UP, _DOWN = r"(?:lora_B(?:\.\w+)?|lora_up|lora\.up|up)", r"(?:lora_A(?:\.\w+)?|lora_down|lora\.down|down)"
_NAME = re.compile(
    rf"(?P<stem>.+?)\.(?:(?P<down>{_DOWN}\.weight)|(?P<up>{_UP}\.weight)|(?P<bias>{_UP}\.bias)"
    r"|(?P<alpha>alpha)|(?P<diff>diff)|(?P<diff_b>diff_b))"
)
PEFT_NOTES = "lora_adapter_metadata"  # where diffusers keeps PEFT's configuration, as JSON
PATTERN_SECONDS = 1.0  # and no longer for one of them
Targets = tuple[tuple[str, ...], bool]  # matrices whose rows are stacked, and whether the halves are swapped


def changes_text(path: Path) -> bool:
    """Whether a LoRA's file also changes text encoders; raises `WeightsError` for a file that is none."""
    return any(name.startswith(TEXT_ENCODERS) for name in inspect(path).tensors)


@dataclass(frozen=True)
class Module:
    """What a LoRA has for one name of its own: the names of its tensors by part."""

    parts: dict[str, str]
    targets: tuple[str, ...]
    swapped: bool
    scale: float | None  # None: alpha / rank, alpha being a tensor of the file


class OtherLoRA:
    """One LoRA file at a strength, matched to a transformer; its pairs are read when they are added, in float32.

    `left_out` says whether the file also changes text encoders, which is not done. Raises `WeightsError` if it is no
    LoRA for a transformer of these shapes.
    """

    def __init__(self, path: Path, strength: float, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.path, self.strength = path, strength
        self.checkpoint = expect(inspect(path), "foreign lora", "lora")
        known, noted = known_names(shapes), _noted(self.checkpoint)
        parts: dict[str, dict[str, str]] = {}
        self.left_out, unknown = False, []
        for name in self.checkpoint.tensors:
            found = _NAME.fullmatch(name)
            if name.startswith(TEXT_ENCODERS):
                self.left_out = True
            elif found is None:
                unknown.append(name)
            else:
                other = parts.setdefault(found["stem"], {}).setdefault(found.lastgroup or "", name)
                if other != name:  # adapters of several names, say
                    raise WeightsError("lora_adapters", path=path, one=other, other=name)
        self._modules: list[Module] = []
        self._by_target: dict[str, list[tuple[Module, int]]] = {}  # with the first row of the target in it
        for stem, named in parts.items():
            if (place := known.get(_bare(stem))) is None:
                unknown.append(next(iter(named.values())))
            else:
                self._add(Module(named, *place, _scale(stem, named, self.checkpoint, noted)), shapes)
        if unknown:
            raise WeightsError("lora_names", path=path, count=len(unknown), first=unknown[0])
        if not self._modules:
            raise WeightsError("lora_only_text", path=path)

    @property
    def targets(self) -> frozenset[str]:
        """The names of the parameters that it changes."""
        return frozenset(self._by_target)

    def fuse(self, target: str, weight: torch.Tensor) -> torch.Tensor:
        """`weight` plus this LoRA's part of it, in float32; what it does not touch is returned unchanged."""
        if target not in self._by_target:
            return weight
        shape, is_bias = weight.shape, target.endswith(".bias")
        weight = weight.float().flatten(1) if not is_bias else weight.float()
        with TensorReader(self.checkpoint) as file:
            for module, first in self._by_target[target]:
                rows = slice(first, first + len(weight))
                weight = (self._with_bias if is_bias else self._with_pair)(weight, file, module, rows)
        return weight.reshape(shape)

    def _with_pair(self, weight: torch.Tensor, file: TensorReader, module: Module, rows: slice) -> torch.Tensor:
        """A matrix (rows, in) with these rows of what is added, in one copy."""
        if "diff" in module.parts:
            difference = self._read(file, module.parts["diff"])
            return torch.add(weight, _ordered(difference, module)[rows], alpha=self.strength)
        down, up = (self._read(file, module.parts[part]).flatten(1) for part in ("down", "up"))  # (r, in), (out, r)
        factor = self.strength * self._factor(file, module, len(down))
        return torch.addmm(weight, _ordered(up, module)[rows], down, alpha=factor)

    def _with_bias(self, bias: torch.Tensor, file: TensorReader, module: Module, rows: slice) -> torch.Tensor:
        if "diff_b" in module.parts:
            difference = self._read(file, module.parts["diff_b"])
            return torch.add(bias, _ordered(difference, module)[rows], alpha=self.strength)
        factor = self._factor(file, module, self.checkpoint.tensors[module.parts["down"]].shape[0])
        added = _ordered(self._read(file, module.parts["bias"]), module)[rows]
        return torch.add(bias, added, alpha=self.strength * factor)

    def _factor(self, file: TensorReader, module: Module, rank: int) -> float:
        if module.scale is not None:
            return module.scale
        alpha = file.number(module.parts["alpha"])
        if not math.isfinite(alpha):
            raise WeightsError("lora_not_finite", path=self.path, name=module.parts["alpha"])
        return alpha / rank

    def _read(self, file: TensorReader, name: str) -> torch.Tensor:
        """A tensor in float32; raises `WeightsError` if a number in it is not finite, which would spread."""
        tensor = file.read(name).float()
        if not torch.isfinite(tensor).all():
            raise WeightsError("lora_not_finite", path=self.path, name=name)
        return tensor

    def _add(self, module: Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Notes which parameters the module touches; raises `WeightsError` if it does not have their shape."""
        tensors = self.checkpoint.tensors
        shape = {part: tensors[name].shape for part, name in module.parts.items()}
        rows = [shapes[target][0] for target in module.targets]
        inputs = {shapes[target][1] for target in module.targets}
        if "diff" in shape and "down" in shape:
            one, other = module.parts["diff"], module.parts["down"]
            raise WeightsError("lora_adapters", path=self.path, one=one, other=other)
        if "diff" in shape:
            fits = len(shape["diff"]) == 2 and shape["diff"][0] == sum(rows) and {shape["diff"][1]} == inputs
        elif {"down", "up"} <= shape.keys():
            down, up = shape["down"], shape["up"]
            flat = all(0 not in each and math.prod(each[2:]) == 1 and len(each) >= 2 for each in (down, up))
            fits = flat and up[0] == sum(rows) and up[1] == down[0] and {down[1]} == inputs
        else:
            fits = shape.keys() <= {"diff_b"}
        if math.prod(shape.get("alpha", ())) != 1:
            raise WeightsError("lora_shape", path=self.path, name=module.parts["alpha"], given=list(shape["alpha"]),
                               needed=[1])  # fmt: skip
        if not fits or any(math.prod(shape[part]) != sum(rows) for part in ("bias", "diff_b") if part in shape):
            name = next(iter(module.parts.values()))
            given, needed = list(tensors[name].shape), [sum(rows), max(inputs)]
            raise WeightsError("lora_shape", path=self.path, name=name, given=given, needed=needed)
        self._modules.append(module)
        first = 0
        for target, count in zip(module.targets, rows, strict=True):
            if {"diff", "down"} & shape.keys():
                self._by_target.setdefault(target, []).append((module, first))
            bias = target.removesuffix("weight") + "bias"
            if {"bias", "diff_b"} & shape.keys() and bias in shapes:
                self._by_target.setdefault(bias, []).append((module, first))
            first += count


def known_names(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Targets]:
    """The matrices of a transformer by every name that a LoRA may have for them."""
    known: dict[str, Targets] = {}
    for target, shape in shapes.items():
        if len(shape) != 2 or not target.endswith(".weight"):
            continue
        names: dict[str, Targets] = {target.removesuffix(".weight"): ((target,), False)}
        original = keys.original_name(target, keys.TRANSFORMER)
        if original != target and (found := keys.row_of(original, keys.TRANSFORMER)):
            names[original.removesuffix(".weight")] = (found[0].target_names(found[1]), found[0].halves_swapped)
        processor = keys.original_name(target, keys.LORA)
        if processor != target and (found := keys.row_of(processor, keys.LORA)):
            names[processor] = (found[0].target_names(found[1]), False)
        for name, targets in names.items():
            if all(each in shapes for each in targets[0]):
                known[name] = known[name.replace(".", "_")] = targets
    return known


def _bare(stem: str) -> str:
    """A LoRA's name for a matrix without the prefixes that programs add."""
    while prefix := next((each for each in PREFIXES if stem.startswith(each)), ""):
        stem = stem.removeprefix(prefix)
    return stem


def _ordered(rows: torch.Tensor, module: Module) -> torch.Tensor:
    return torch.cat(rows.chunk(2)[::-1]) if module.swapped else rows


def _noted(checkpoint: Checkpoint) -> dict[str, object]:
    """PEFT's configuration in the file's notes or beside it; {} if there is none."""
    path = checkpoint.path
    text: str | bytes = checkpoint.metadata.get(PEFT_NOTES, "{}")
    if path.name == PEFT_FILE and PEFT_NOTES not in checkpoint.metadata and (path.parent / PEFT_CONFIG).is_file():
        path = path.parent / PEFT_CONFIG
    try:
        noted = json.loads(text if path == checkpoint.path else path.read_bytes())
    except OSError as error:
        raise WeightsError("file_unreadable", hint="check_permissions", path=path, reason=error.strerror) from None
    except (ValueError, RecursionError):
        raise WeightsError("metadata_unreadable", hint="download_again", path=path) from None
    values = noted.items() if isinstance(noted, dict) else ()
    return {str(name).removeprefix("transformer."): value for name, value in values}


def _matches(pattern: str, name: str, checkpoint: Checkpoint) -> bool:
    """Whether PEFT's pattern, a regular expression, is that of a module: it ends in it, at a dot."""
    try:
        return regex.fullmatch(rf"(?:.*\.)?(?:{pattern})", name, timeout=PATTERN_SECONDS) is not None
    except (regex.error, TimeoutError):  # a stranger's expression may take for ever
        raise WeightsError("metadata_unreadable", hint="download_again", path=checkpoint.path) from None


def _scale(stem: str, parts: Mapping[str, str], checkpoint: Checkpoint, noted: Mapping[str, object]) -> float | None:
    """alpha / rank if the file's notes say it, 1 if nothing does, None if a tensor does."""
    if "alpha" in parts:
        return None
    alpha = noted.get("lora_alpha")
    patterns = noted.get("alpha_pattern")
    for pattern, value in (patterns if isinstance(patterns, dict) else {}).items():
        if _matches(pattern, _bare(stem), checkpoint):
            alpha = value
            break  # as in PEFT, the first one counts
    if alpha is None or "down" not in parts:
        return 1.0
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise WeightsError("metadata_unreadable", hint="download_again", path=checkpoint.path)
    rank = checkpoint.tensors[parts["down"]].shape[0]
    return alpha / (math.sqrt(rank) if noted.get("use_rslora") else rank)
