"""USO's LoRA: the matrices it adds to, and the sums."""

from __future__ import annotations

import math

import torch

from uso_core.catalog.files import Checkpoint, misfit
from uso_core.loaders import keys
from uso_core.loaders.tensors import TensorReader

ALPHA = ".alpha"


class LoRA:
    """USO's LoRA by target matrix; its pairs are read when they are added, in float32.

    A pair counts by alpha / rank if the file holds an alpha for it, as programs that convert LoRAs write them.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.path = checkpoint, checkpoint.path
        self._pairs: dict[
            str, tuple[str, int, int]
        ] = {}  # target -> name of the pair, which chunk of `up`, of how many
        self._shapes: dict[str, tuple[int, ...]] = {}  # target -> shape of what is added to it
        stems = dict.fromkeys(name.removesuffix(".weight").removesuffix(".down").removesuffix(".up")
                              .removesuffix(ALPHA) for name in checkpoint.tensors)  # fmt: skip
        rows = {stem: keys.row_of(stem, keys.LORA) for stem in stems}
        missing = [f"{stem}.{part}.weight" for stem in rows for part in ("down", "up")
                   if rows[stem] and f"{stem}.{part}.weight" not in checkpoint.tensors]  # fmt: skip
        unknown = [stem for stem in rows if rows[stem] is None]
        if missing or unknown:
            raise misfit(self.path, "fit_lora_format", missing, unknown, [])
        for stem, (row, values) in ((stem, found) for stem, found in rows.items() if found):
            down, up = (checkpoint.tensors[f"{stem}.{part}.weight"].shape for part in ("down", "up"))
            targets = row.target_names(values)
            alpha = checkpoint.tensors.get(stem + ALPHA)
            fits = alpha is None or math.prod(alpha.shape) == 1
            if not fits or len(down) != 2 or len(up) != 2 or not up[1] == down[0] > 0 or up[0] % len(targets):
                raise misfit(self.path, "fit_lora_format", [], [], [stem])
            for index, target in enumerate(targets):
                self._pairs[target] = (stem, index, len(targets))
                self._shapes[target] = (up[0] // len(targets), down[1])

    def check(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Raises `WeightsError` unless the LoRA covers exactly the right matrices of a transformer of these shapes."""
        stems = {name: keys.original_name(name, keys.LORA) for name in shapes}
        missing = [stems[name] for name in shapes if stems[name] != name and name not in self._pairs]
        extra = [keys.original_name(name, keys.LORA) for name in self._pairs if name not in shapes]
        misshapen = [
            f"{stems[name]} adds {shape[0]} x {shape[1]} to {list(shapes[name])}"
            for name, shape in self._shapes.items()
            if name in shapes and shapes[name] != shape
        ]
        if missing or extra or misshapen:
            raise misfit(self.path, "fit_transformer", missing, extra, misshapen)

    def fuse(self, target: str, weight: torch.Tensor) -> torch.Tensor:
        """`weight` plus the LoRA's part of it, in float32; weights without one are returned unchanged."""
        if target not in self._pairs:
            return weight
        stem, index, count = self._pairs[target]
        with TensorReader(self.checkpoint) as file:
            down, up = (file.read(f"{stem}.{part}.weight").float() for part in ("down", "up"))  # (r, in), (out, r)
            alpha = file.number(stem + ALPHA) if stem + ALPHA in self.checkpoint.tensors else len(down)
        return torch.addmm(weight.float(), up.chunk(count)[index], down, alpha=alpha / len(down))
