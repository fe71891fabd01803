"""Changes the LoRAs of a loaded transformer: reads again only the weights that the change concerns.

Each is fused in float32 from the unfused source, so the result is that of loading with these LoRAs.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import torch

from uso_core.cpu.accelerate import accelerate_again
from uso_core.loaders import build
from uso_core.loaders.convert import shapes_of
from uso_core.loaders.other_lora import OtherLoRA
from uso_core.memory.machine import look_at
from uso_core.memory.streaming import BlockStream
from uso_core.model.pipeline import USOPipeline

Added = tuple[tuple[Path, float, str], ...]  # files, strengths and hashes, in the order in which they are added
IN_CHANGE = "in change"
RESERVE_PART = 0.8  # of the free memory, for weights that lie in a mapped file until they are written to


class FusedLoRAs:
    """Which LoRAs each weight of a pipeline's transformer holds."""

    def __init__(self, pipeline: USOPipeline, paths: dict[str, Path], dtype: torch.dtype, added: Added = ()) -> None:
        self._pipeline, self._paths, self._dtype = pipeline, paths, dtype
        self._held = self._by_target(added)

    def change(self, wanted: Added) -> Generator[float, None, bool]:
        """Yields the fraction done; returns whether it was done. If not, memory is too short: load again instead.

        Whoever stops iterating leaves some weights changed; the next change puts them right.
        """
        transformer = self._pipeline.transformer
        after = self._by_target(wanted)
        names = {name for name in self._held | after if self._held.get(name) != after.get(name)}
        if not names:
            return True
        self._pipeline._prepared = None
        if isinstance(transformer.blocks, BlockStream):
            transformer.blocks.release()  # the parameters point to their weights on the host again
        weights = dict(transformer.state_dict(keep_vars=True))
        on_host = sum(weights[name].nbytes for name in names if weights[name].device.type == "cpu")
        if on_host > RESERVE_PART * look_at(torch.device("cpu")).free_ram_bytes:
            return False
        lora = self._paths.get("lora")
        conversion = build.transformer_conversion(
            transformer, self._paths["transformer"], lora, self._dtype, files(wanted)
        )
        self._held |= dict.fromkeys(names, IN_CHANGE)
        for fraction, name, tensor in conversion.tensors(only=names):
            weights[name].data.copy_(tensor)
            yield fraction
        self._held = after
        accelerate_again(self._pipeline)
        return True

    def _by_target(self, added: Added) -> dict[str, Any]:
        """The LoRAs of each weight that has any, with their strengths."""
        shapes = shapes_of(self._pipeline.transformer)
        held: dict[str, Any] = {}
        for each in added:
            for target in OtherLoRA(each[0], each[1], shapes).targets:
                held[target] = (*held.get(target, ()), each)
        return held


def files(added: Added) -> list[tuple[Path, float]]:
    """Without the hashes, as they are read."""
    return [(path, strength) for path, strength, _ in added]


def added_by(loras: Sequence[Any]) -> Added:
    """A request's LoRAs as files, strengths and hashes: a file may be written over under its name."""
    return tuple((lora.path, lora.strength, lora.sha256) for lora in loras if lora.path is not None)
