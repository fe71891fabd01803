"""The fused cache: a transformer fused with its LoRA and quantized, kept on disk so that the next start only opens it.

One safetensors file and one manifest per (files, dtype, quantization). The manifest is written last; a file without a
matching one is ignored. Trouble with the cache never stops a loading: the weights are then converted in memory.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from uso_core.catalog.files import MAX_HEADER_BYTES, inspect
from uso_core.catalog.fused_files import LOCK, MANIFEST, PART, PREFIX, WEIGHTS
from uso_core.errors import WeightsError
from uso_core.loaders.convert import Conversion, Filling, assign, files_of
from uso_core.loaders.convert import fill as fill_in_memory
from uso_core.loaders.tensors import DTYPES, TensorWriter

log = logging.getLogger(__name__)

FORMAT = 2  # raise this whenever the same sources would give different numbers
WORTH_KEEPING = 2**30  # bytes of a source; converting less takes a moment (the embedded model's: 22 MB)
RESERVE = 2 * 2**30  # bytes left free on the disk for images
WAIT_SECONDS = 0.5  # between two checks whether the other process is done or the user wants to stop


def fill(conversion: Conversion, folder: Path) -> Filling:
    """Loads the weights into the empty model from `folder`, writing them there first if missing or outdated.

    The weights are memory-mapped: unused ones cost nothing, and the
    system can reclaim the rest. Raises what the conversion raises; trouble with the folder is only logged.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        slot = Slot.of(conversion, folder)
        if not slot.is_right(conversion):
            with ExitStack() as stack:
                yield from slot.lock(stack)
                if not slot.is_right(conversion):  # unless another process has written it meanwhile
                    yield from slot.write(conversion)
        with safe_open(slot.weights, "pt") as file:
            assign(conversion.model, [(name, file.get_tensor(name)) for name in conversion.layout()])
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        log.warning("The fused cache cannot be kept in %s (%s): converting in memory at every start.", folder, reason)
        yield from fill_in_memory(conversion)
    yield 1.0


@dataclass(frozen=True)
class Slot:
    """The place of one fused transformer; it is used only if `identity` is equal."""

    folder: Path
    name: str
    identity: dict[str, Any]

    @classmethod
    def of(cls, conversion: Conversion, folder: Path) -> Slot:
        """Derives the place from the sources' location, so that a changed source replaces its predecessor.

        With LoRAs beside USO's there is one more place, which the last such list keeps: another replaces it.
        """
        files = [*files_of(conversion.jobs)]
        files += [conversion.lora.path] if conversion.lora is not None else []
        paths = [source.resolve() for source in files]
        others = [{**sources_key(each.path.resolve()), "strength": each.strength} for each in conversion.others]
        kind = "fp8" if conversion.quantized else "plain"
        dtype = str(conversion.dtype).removeprefix("torch.")
        key = hashlib.sha256("\0".join(map(str, paths)).encode()).hexdigest()[:12]
        identity = {"format": FORMAT, "kind": kind, "dtype": dtype, "sources": [sources_key(path) for path in paths]}
        identity |= {"loras": others} if others else {}
        return cls(folder, f"{PREFIX}{kind}-{dtype}-{key}{'-loras' if others else ''}", identity)

    @property
    def weights(self) -> Path:
        return self.folder / f"{self.name}{WEIGHTS}"

    @property
    def manifest(self) -> Path:
        return self.folder / f"{self.name}{MANIFEST}"

    def is_right(self, conversion: Conversion) -> bool:
        """Whether the file is there, complete and made from these sources; logs what is wrong with it."""
        if not self.manifest.is_file() and not self.weights.is_file():
            return False
        wrong = self._what_is_wrong(conversion)
        if wrong:
            log.info("The fused weights %s %s: remaking them.", self.weights, wrong)
        return not wrong

    def _what_is_wrong(self, conversion: Conversion) -> str:
        try:
            manifest = json.loads(self.manifest.read_text(encoding="utf-8"))
            checkpoint = inspect(self.weights)
            found = self.weights.stat()
        except FileNotFoundError:
            return "are incomplete"
        except (OSError, ValueError, RecursionError):
            return "have no readable manifest"
        except WeightsError as error:
            return f"are damaged ({error.message})"
        if not isinstance(manifest, dict) or {name: manifest.get(name) for name in self.identity} != self.identity:
            return "were made of other files, or by another version"
        if [manifest.get("bytes"), manifest.get("modified_ns")] != [found.st_size, found.st_mtime_ns]:
            return "were changed since"
        held = {name: (DTYPES.get(info.dtype), info.shape) for name, info in checkpoint.tensors.items()}
        return "" if held == conversion.layout() else "hold other tensors than they should"

    def write(self, conversion: Conversion) -> Filling:
        """Converts into a temporary file, one tensor at a time, then renames it; raises OSError.

        The old file is deleted first: there may be no room for both.
        """
        for old in (self.manifest, self.weights, *self.folder.glob(f"{self.name}.*{PART}")):
            old.unlink(missing_ok=True)
        part = self.folder / f"{self.name}.{secrets.token_hex(4)}{PART}"
        writer = TensorWriter(part, conversion.layout())
        free = shutil.disk_usage(self.folder).free
        if free < writer.bytes + RESERVE:
            raise OSError(f"{writer.bytes / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
        log.info("Fusing the transformer once, for the next start: %s.", self.weights)
        try:
            with writer:
                for fraction, name, tensor in conversion.tensors():
                    yield fraction
                    writer.write(name, tensor)
            os.replace(part, self.weights)
            written = self.weights.stat()
            manifest = self.identity | {"bytes": written.st_size, "modified_ns": written.st_mtime_ns}
            part.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            os.replace(part, self.manifest)
        finally:
            part.unlink(missing_ok=True)

    def lock(self, stack: ExitStack) -> Filling:
        """Keeps a second process from the same work until the stack closes; yields while another process holds the
        lock.
        """
        lock = FileLock(self.folder / f"{self.name}{LOCK}")
        while not lock.is_locked:
            try:
                lock.acquire(timeout=WAIT_SECONDS)
            except Timeout:
                yield 0.0
            except NotImplementedError:  # a file system without locks: the renames alone keep files whole
                return
        stack.callback(lock.release)


def sources_key(source: Path) -> dict[str, Any]:
    """What identifies a weight file: its size, its time and its header (names, shapes, offsets)."""
    found = source.stat()
    with source.open("rb") as file:
        length = file.read(8)
        header = file.read(min(int.from_bytes(length, "little"), MAX_HEADER_BYTES))
    return {
        "path": str(source),
        "bytes": found.st_size,
        "modified_ns": found.st_mtime_ns,
        "header_sha256": hashlib.sha256(length + header).hexdigest(),
    }
