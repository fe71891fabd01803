"""GGUF files: written by ggml's own library, read like the safetensors file of the same weights, or refused."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.loaders.weight_files import EMBEDDED, entry, raw, same, transformer
from uso_core.catalog.files import inspect
from uso_core.catalog.models import EMBEDDED_FILES, get_model
from uso_core.errors import WeightsError
from uso_core.loaders.tensors import TensorReader
from uso_core.runtime.load import assemble
from uso_core.settings import Settings

Kind = gguf.GGMLQuantizationType
SOURCE, LORA = EMBEDDED / "flux.safetensors", EMBEDDED / "dit_lora.safetensors"


def write(path: Path, tensors: Mapping[str, tuple[np.ndarray, Kind]], **notes: Any) -> Path:
    """A file written by the library; each array holds numbers, or bytes that are already blocks of its type."""
    writer = gguf.GGUFWriter(path, "flux")
    writer.add_array("comfy.gguf.orig_shape.some.weight", [3, 4])
    writer.add_array("general.tags", ["text-to-image", "a toy"])
    for name, text in notes.items():
        writer.add_string(name, text)
    for name, (array, kind) in tensors.items():
        blocks = array if array.dtype == np.uint8 else gguf.quantize(array, kind)
        writer.add_tensor(name, blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def embedded(path: Path, kind: Kind) -> Path:
    """The embedded transformer as such files are usually made: matrices in that type, everything else in float32."""
    with open(SOURCE, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    tensors = {
        name: (tensor.float().numpy(), kind if tensor.dim() == 2 else Kind.F32)
        for name, tensor in load_file(SOURCE).items()
    }
    return write(path, tensors, uso=header["__metadata__"]["uso"])


def blocks(kind: Kind, rows: int, columns: int) -> np.ndarray:
    block, width = gguf.GGML_QUANT_SIZES[kind]
    return np.random.default_rng(int(kind)).integers(0, 120, (rows, columns // block * width), dtype=np.uint8)


def readable(kind: Kind) -> bool:
    """Whether this version of the library can decode blocks of that type."""
    try:
        return gguf.dequantize(blocks(kind, 1, 256), kind).size == 256
    except NotImplementedError:
        return False


READ = [kind for kind in gguf.GGML_QUANT_SIZES if readable(kind)]
UNREAD = [kind for kind in gguf.GGML_QUANT_SIZES if kind not in (*READ, Kind.F64)]


def read(path: Path, name: str) -> torch.Tensor:
    with TensorReader(inspect(path)) as reader:
        return reader.read(name)


@pytest.mark.parametrize("kind", [Kind.F32, Kind.BF16], ids=lambda kind: kind.name)
def test_unquantized_tensors_give_the_same_weights_bit_for_bit(kind, tmp_path):
    path = embedded(tmp_path / "flux.gguf", kind)
    assert inspect(path).role == "transformer"
    same(transformer(path, LORA), transformer(SOURCE, LORA))


def test_eight_bits_give_nearly_the_same_weights_and_image(tmp_path):
    path = embedded(tmp_path / "flux1-dev-Q8_0.gguf", Kind.Q8_0)
    ours, plain = transformer(path).state_dict(), transformer(SOURCE).state_dict()
    for name, weight in plain.items():
        assert (ours[name] - weight).norm() <= 0.008 * weight.norm(), name
    images = []
    for source in (path, SOURCE):
        paths = {role: EMBEDDED / name for role, name in EMBEDDED_FILES.items()} | {"transformer": source}
        pipeline, _ = assemble(paths, Settings(device="cpu", dtype="float32"), get_model("uso-tiny"))
        made = pipeline("a red mug on the beach", None, [Image.new("RGB", (64, 64), "teal")], 128, 128, 4, seed=1)
        images.append(np.asarray(made.images[0], dtype=int))
    assert images[1].std() > 30
    assert np.abs(images[0] - images[1]).mean() < 2


@pytest.mark.parametrize("kind", READ, ids=lambda kind: kind.name)
def test_every_block_type_is_read_as_the_library_reads_it(kind, tmp_path):
    tensors = {"a": (blocks(kind, 3, 512), kind), "b": (np.arange(5, dtype=np.float32), Kind.F32),
               "c": (blocks(kind, 2, 256), kind)}  # fmt: skip
    path = write(tmp_path / "x.gguf", tensors)
    for tensor in gguf.GGUFReader(path).tensors:
        ours, theirs = read(path, tensor.name), gguf.dequantize(tensor.data, tensor.tensor_type)
        assert ours.shape == tuple(tensor.shape[::-1])
        np.testing.assert_array_equal(ours.float().numpy(), theirs.reshape(ours.shape))


@pytest.mark.parametrize("kind", UNREAD, ids=lambda kind: kind.name)
def test_a_type_that_nothing_can_dequantize_is_refused_by_name(kind, tmp_path):
    path = write(tmp_path / "x.gguf", {"a": (blocks(kind, 2, 256), kind)})
    with pytest.raises(WeightsError, match=rf"stores a as {kind.name}, a quantization that cannot be read"):
        read(path, "a")


def small(path: Path) -> bytes:
    numbers = np.arange(64, dtype=np.float32).reshape(2, 32)
    return write(path, {"a": (numbers, Kind.Q8_0), "b": (numbers, Kind.F32)}, uso="{}").read_bytes()


def test_a_file_cut_off_anywhere_is_refused(tmp_path):
    whole, path = small(tmp_path / "whole.gguf"), tmp_path / "cut.gguf"
    for length in range(4, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=r"damaged|cut off"):
            inspect(path)


def test_a_header_with_any_byte_changed_is_read_or_refused(tmp_path):
    whole, path = bytearray(small(tmp_path / "whole.gguf")), tmp_path / "changed.gguf"
    for position in range(4, 400):
        for other in (0, 255, whole[position] ^ 1):
            changed = whole.copy()
            changed[position] = other
            path.write_bytes(changed)
            with contextlib.suppress(WeightsError), TensorReader(inspect(path)) as reader:
                for name in reader.checkpoint.tensors:
                    reader.read(name)


def test_a_type_newer_than_the_library_and_two_tensors_in_one_place(tmp_path):
    whole = small(tmp_path / "whole.gguf")
    at = whole.index(b"\1\0\0\0\0\0\0\0b") + 9 + 4 + 16  # behind b's name, dimensions and shape: type, offset
    path = tmp_path / "changed.gguf"
    path.write_bytes(whole[:at] + (999).to_bytes(4, "little") + whole[at + 4 :])
    with pytest.raises(WeightsError, match=r"stores b as ggml type 999"):
        read(path, "b")
    path.write_bytes(whole[: at + 4] + bytes(8) + whole[at + 12 :])
    with pytest.raises(WeightsError, match="damaged"):
        inspect(path)


def test_another_models_file_is_refused_for_what_it_is(tmp_path):
    path = write(tmp_path / "llama.gguf", {"blk.0.attn_q.weight": (np.zeros((4, 32), np.float32), Kind.Q8_0)})
    with pytest.raises(WeightsError, match="not a FLUX transformer: .* a language model"):
        transformer(path)


@pytest.mark.parametrize("shape", [(1000, 32), (2**60, 32), (0, 32), (2, 17), ()], ids=str)
def test_a_safetensors_file_that_names_blocks_it_does_not_hold_is_refused(shape, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw({"a": entry(0, 34, shape, "Q8_0")}, bytes(34)))
    with pytest.raises(WeightsError, match="stores a as Q8_0, a quantization that cannot be read"):
        read(path, "a")
