"""Reads the header of GGUF, ggml's format: which tensors a file holds, and where.

Versions 2 and 3, little-endian, following docs/gguf.md of github.com/ggml-org/ggml. No torch.
"""

from __future__ import annotations

import math
from typing import IO

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS, MAX_DEPTH = 4, 2  # of a tensor, and of nested arrays
ALIGNMENT = 32  # bytes, of tensors in a file that states no other
_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # by value type
_TEXT, _ARRAY = 8, 9

Entry = tuple[str, tuple[int, ...], int, int]  # type, shape in PyTorch's order, offset in the file, bytes


def read_header(file: IO[bytes], most: int) -> tuple[dict[str, Entry], dict[str, str]]:
    """The tensors by name, in the file's order, and the texts in its metadata, from a header of at most `most` bytes.

    Raises ValueError if this is not a header. Checking that the tensors' bytes exist is left to the caller; a tensor of
    unknown type has none.
    """
    header = _Header(file, most)
    if header.take(4) != MAGIC or header.number(4) not in VERSIONS:
        raise ValueError("no GGUF of a known version")
    tensors, values = header.number(8), header.number(8)
    noted = {header.text(): header.value(header.number(4)) for _ in range(values)}
    alignment = noted.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError("no alignment")
    entries: dict[str, Entry] = {}
    for _ in range(tensors):
        name, dimensions = header.text(), header.number(4)
        if name in entries or not 1 <= dimensions <= MAX_DIMENSIONS:
            raise ValueError(name)
        shape = tuple(header.number(8) for _ in range(dimensions))[::-1]
        kind, count = _type(header.number(4), shape)
        entries[name] = (kind, shape, header.number(8), count)
    begin = -(-header.position // alignment) * alignment
    placed = {name: (kind, shape, begin + offset, count) for name, (kind, shape, offset, count) in entries.items()}
    return placed, {name: value for name, value in noted.items() if isinstance(value, str)}


class _Header:
    """Reads on in a file whose numbers may all be lies; raises ValueError at its end."""

    def __init__(self, file: IO[bytes], most: int) -> None:
        self._file, self._most = file, most
        self.position = 0
        file.seek(0)

    def take(self, count: int) -> bytes:
        if self.position + count > self._most:
            raise ValueError("the header ends early")
        self.position += count
        data = self._file.read(count)
        if len(data) != count:
            raise ValueError("the file ends early")
        return data

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def text(self) -> str:
        return self.take(self.number(8)).decode()

    def value(self, kind: int, depth: int = 0) -> str | int | None:
        """A text, or a number read as unsigned; None for an array, which is skipped."""
        if kind == _TEXT:
            return self.text()
        if kind in _SCALAR_BYTES:
            return self.number(_SCALAR_BYTES[kind])
        if kind != _ARRAY or depth == MAX_DEPTH:
            raise ValueError(f"a value of type {kind}")
        kind, count = self.number(4), self.number(8)
        if kind in _SCALAR_BYTES:
            self.take(count * _SCALAR_BYTES[kind])
        else:
            for _ in range(count):
                self.value(kind, depth + 1)
        return None


def _type(number: int, shape: tuple[int, ...]) -> tuple[str, int]:
    """The name of a type, and the bytes that a tensor of this shape takes in it."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if number not in GGML_QUANT_SIZES:  # newer than the library
        return f"ggml type {number}", 0
    kind = GGMLQuantizationType(number)
    block, width = GGML_QUANT_SIZES[kind]
    if shape[-1] % block:
        raise ValueError(f"rows of {shape[-1]} in blocks of {block}")
    return kind.name, math.prod(shape) // block * width
