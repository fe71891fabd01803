"""Reads tensors from weight files, and writes them to safetensors files, one at a time.

Plain reads: a memory-mapped file's pages would count as this process's memory, all 24 GB of them.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import TracebackType

import torch

from uso_core.catalog.files import Checkpoint
from uso_core.errors import WeightsError
from uso_core.loaders import gguf

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
WHOLE_NUMBERS = {"I64": torch.int64, "I32": torch.int32}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
ALIGNMENT = 64  # bytes, of the first tensor in files that we write
LONGEST_TEXT = 4096  # bytes of a text kept as a tensor
Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]  # what a file will hold, by name


class TensorReader:
    """Reads tensors of a file described by `inspect`; a context manager that closes it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    def __enter__(self) -> TensorReader:
        try:
            self._file = open(self.checkpoint.path, "rb", buffering=0)
        except OSError as error:
            raise self._unreadable(error) from None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def read(self, name: str) -> torch.Tensor:
        """Returns the tensor in its own memory, ggml's quantizations as float32.

        Raises `WeightsError` if it is not floating point or cannot be read.
        """
        info = self.checkpoint.tensors[name]
        data = self._bytes(info.offset, info.bytes)
        if info.dtype in DTYPES:
            return data.view(DTYPES[info.dtype]).reshape(info.shape)
        try:
            return gguf.dequantize(data, info.dtype, info.shape)
        except (KeyError, ValueError, NotImplementedError):
            raise WeightsError(
                "quantization_unreadable", path=self.checkpoint.path, name=name, dtype=info.dtype
            ) from None

    def number(self, name: str) -> float:
        """A tensor of one number, whole or not; raises `WeightsError` as `read`."""
        info = self.checkpoint.tensors[name]
        if info.dtype in WHOLE_NUMBERS:
            return float(self._bytes(info.offset, info.bytes).view(WHOLE_NUMBERS[info.dtype]).item())
        return self.read(name).float().item()

    def text(self, name: str) -> str:
        """A tensor of bytes as the text that it holds; raises ValueError if it is long, or no text."""
        info = self.checkpoint.tensors[name]
        if info.dtype != "U8" or info.bytes > LONGEST_TEXT:
            raise ValueError(name)
        return self._bytes(info.offset, info.bytes).numpy().tobytes().decode()

    def _bytes(self, offset: int, count: int) -> torch.Tensor:
        data = torch.empty(count, dtype=torch.uint8)
        space, done = data.numpy().data, 0
        try:
            self._file.seek(offset)
            while done < len(space):
                count = self._file.readinto(space[done:])
                if not count:
                    raise WeightsError("file_became_shorter", hint="download_again", path=self.checkpoint.path)
                done += count
        except OSError as error:
            raise self._unreadable(error) from None
        return data

    def _unreadable(self, error: OSError) -> WeightsError:
        return WeightsError(
            "file_unreadable", hint="check_permissions", path=self.checkpoint.path, reason=error.strerror
        )


class TensorWriter:
    """Writes a safetensors file of a known layout, its tensors in any order; a context manager.

    On exit without an error the file is complete and on disk. Raises OSError if the disk refuses.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self._path, self._layout, self._left = path, layout, set(layout)
        # Wide numbers first, so that each tensor begins at a multiple of its own width.
        order = sorted(layout, key=lambda name: -layout[name][0].itemsize)
        header, end = {}, 0
        self._offsets: dict[str, int] = {}
        for name in order:
            dtype, shape = layout[name]
            begin, end = end, end + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
            self._offsets[name] = begin
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(len(text) + 8) % ALIGNMENT)
        self._header = len(text).to_bytes(8, "little") + text
        self.bytes = len(self._header) + end

    def __enter__(self) -> TensorWriter:
        self._file = open(self._path, "xb", buffering=0)
        self._put(0, memoryview(self._header))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if error is None:
                if self._left:
                    raise ValueError(f"{len(self._left)} tensors were not written (first {min(self._left)})")
                os.fsync(self._file.fileno())  # else a crash may leave a file of the right size, full of zeros
        finally:
            self._file.close()

    def write(self, name: str, tensor: torch.Tensor) -> None:
        if (tensor.dtype, tuple(tensor.shape)) != self._layout[name]:
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, planned as {self._layout[name]}")
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        self._put(len(self._header) + self._offsets[name], data.numpy().data)
        self._left.remove(name)

    def _put(self, offset: int, data: memoryview) -> None:
        self._file.seek(offset)
        done = 0
        while done < len(data):
            done += self._file.write(data[done:]) or 0
