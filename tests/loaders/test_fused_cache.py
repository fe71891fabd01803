"""The fused cache: equal to direct loading bit for bit, made once, remade when needed, never in the way."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks import loading
from tests.conftest import GOLDEN
from tests.test_golden import FILES
from uso_core.catalog import download, fused_files
from uso_core.catalog.models import get_model
from uso_core.errors import WeightsError
from uso_core.loaders import build, fused_cache
from uso_core.loaders.convert import finished
from uso_core.loaders.tensors import TensorWriter
from uso_core.model.transformer import USOTransformer2DModel
from uso_core.runtime.load import assemble
from uso_core.settings import ROOT, Settings


@dataclasses.dataclass
class Sources:
    """Copies of the golden transformer and LoRA, and the folder for their fused cache."""

    transformer: Path
    lora: Path
    cache: Path

    def load(self, cache: bool = True, fp8: bool = True, dtype: torch.dtype = torch.float32) -> Any:
        return build.load_transformer(self.transformer, self.lora, dtype, fp8, self.cache if cache else None)

    def build(self, **options: Any) -> USOTransformer2DModel:
        return finished(self.load(**options))

    def files(self, suffix: str) -> list[Path]:
        return sorted(self.cache.glob(f"*{suffix}"))

    @property
    def weights(self) -> Path:
        return self.files(".safetensors")[0]

    @property
    def manifest(self) -> Path:
        return self.files(".json")[0]


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    for name in ("flux", "dit_lora"):
        shutil.copy(GOLDEN / f"{name}.safetensors", tmp_path)
    return Sources(tmp_path / "flux.safetensors", tmp_path / "dit_lora.safetensors", tmp_path / "prepared")


def same(one: USOTransformer2DModel, other: USOTransformer2DModel) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(*(one.contiguous().reshape(-1).view(torch.uint8) for one in (tensor, right[name]))), name


def conversions(caplog: pytest.LogCaptureFixture) -> int:
    return sum("Fusing the transformer" in record.getMessage() for record in caplog.records)


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="uso_core.loaders.fused_cache")


# --- made once --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fp8", [True, False], ids=["fp8", "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_weights_equal_the_direct_ones(sources, fp8, dtype, caplog):
    direct = sources.build(cache=False, fp8=fp8, dtype=dtype)
    for _ in range(2):
        model = sources.build(fp8=fp8, dtype=dtype)
        same(model, direct)
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert conversions(caplog) == 1
    assert not sources.files(".part")


def test_a_diffusers_folder_is_fused_too(sources, tmp_path):
    folder = tmp_path / "transformer"
    build.build_transformer(sources.transformer, None, torch.float32).save_pretrained(folder, max_shard_size="300KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    same(
        build.build_transformer(folder, sources.lora, torch.float32, fp8=True, cache=sources.cache),
        sources.build(cache=False),
    )
    assert len(json.loads(sources.manifest.read_text())["sources"]) == len(list(folder.glob("*.safetensors"))) + 1


def test_each_kind_has_its_own_place(sources, caplog):
    for _ in range(2):
        for fp8 in (True, False):
            for dtype in (torch.float32, torch.bfloat16):
                sources.build(fp8=fp8, dtype=dtype)
    assert conversions(caplog) == len(sources.files(".safetensors")) == 4


def test_other_programs_can_read_the_file(sources):
    sources.build(dtype=torch.bfloat16)
    tensors = load_file(sources.weights)
    assert tensors["transformer_blocks.0.attn.to_q.weight"].dtype == torch.float8_e4m3fn
    assert tensors["transformer_blocks.0.attn.to_q.scale"].dtype == torch.float32
    assert tensors["x_embedder.weight"].dtype == torch.bfloat16


def test_the_progress_reaches_the_end(sources):
    for _ in range(2):
        fractions = list(sources.load())
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1.0


def test_a_model_can_be_changed_without_changing_the_file(sources):
    model = sources.build()
    for tensor in model.state_dict().values():
        tensor.zero_()
    same(sources.build(), sources.build(cache=False))


# --- remade ----------------------------------------------------------------------------------------------------------


def change_values(path: Path) -> None:
    """Different numbers under the same header, in a file of the same size."""
    save_file({name: tensor * 2 for name, tensor in load_file(path).items()}, path)


def change_names_time(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


@pytest.mark.parametrize("which", ["transformer", "lora"])
@pytest.mark.parametrize("change", [change_values, change_names_time], ids=["values", "time"])
def test_a_changed_source_is_fused_anew(sources, which, change, caplog):
    sources.build()
    change(getattr(sources, which))
    same(sources.build(), sources.build(cache=False))
    assert conversions(caplog) == 2
    assert "made of other files" in caplog.text
    assert len(sources.files(".safetensors")) == 1  # the outdated one is gone
    sources.build()
    assert conversions(caplog) == 2


def cut(sources: Sources) -> None:
    os.truncate(sources.weights, sources.weights.stat().st_size - 5)


def empty(sources: Sources) -> None:
    sources.weights.write_bytes(b"")


def overwrite(sources: Sources) -> None:
    """Changes some bytes of a tensor in place, keeping size and header."""
    with sources.weights.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"\1" * 50)
    change_names_time(sources.weights)


def break_header(sources: Sources) -> None:
    kept = sources.weights.stat()
    with sources.weights.open("r+b") as file:
        file.seek(20)
        file.write(b"\0\0\0\0")
    os.utime(sources.weights, ns=(kept.st_atime_ns, kept.st_mtime_ns))


def other_tensors(sources: Sources) -> None:
    """A complete file that matches its manifest, but of another model."""
    save_file({"a": torch.zeros(3)}, sources.weights)
    found = sources.weights.stat()
    manifest = json.loads(sources.manifest.read_text())
    manifest |= {"bytes": found.st_size, "modified_ns": found.st_mtime_ns}
    sources.manifest.write_text(json.dumps(manifest))


DAMAGES = {
    "cut": cut,
    "empty": empty,
    "overwritten": overwrite,
    "header": break_header,
    "tensors": other_tensors,
    "no weights": lambda sources: sources.weights.unlink(),
    "no manifest": lambda sources: sources.manifest.unlink(),
    "manifest text": lambda sources: sources.manifest.write_text("{"),
    "manifest bytes": lambda sources: sources.manifest.write_bytes(b"\xff\xfe\0"),
    "manifest list": lambda sources: sources.manifest.write_text("[]"),
    "manifest deep": lambda sources: sources.manifest.write_text("[" * 100_000),
    "manifest empty": lambda sources: sources.manifest.write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_one_is_remade(sources, damage, caplog):
    sources.build()
    damage(sources)
    same(sources.build(), sources.build(cache=False))
    assert conversions(caplog) == 2
    assert sum("remaking them" in record.getMessage() for record in caplog.records) >= 1
    sources.build()
    assert conversions(caplog) == 2


def test_another_version_of_the_format_is_remade(sources, caplog, monkeypatch):
    sources.build()
    monkeypatch.setattr(fused_cache, "FORMAT", fused_cache.FORMAT + 1)
    sources.build()
    assert conversions(caplog) == 2


def test_stopping_leaves_nothing_half_written(sources):
    loading = sources.load()
    while next(loading) < 0.5:
        pass
    loading.close()
    assert not [path for path in sources.cache.iterdir() if path.suffix != ".lock"]
    same(sources.build(), sources.build(cache=False))


def test_leftovers_of_a_killed_process_are_removed(sources):
    sources.build()
    left = sources.cache / f"{sources.weights.stem}.0123abcd.part"
    left.write_bytes(b"half")
    sources.manifest.unlink()
    same(sources.build(), sources.build(cache=False))
    assert not left.exists()


# --- never in the way -------------------------------------------------------------------------------------------------


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_a_full_disk_is_no_obstacle(sources, caplog, monkeypatch):
    monkeypatch.setattr(fused_cache, "RESERVE", 2**62)
    same(sources.build(), sources.build(cache=False))
    assert len(warned(caplog)) == 1
    assert "are free" in warned(caplog)[0]
    assert not sources.files(".safetensors") + sources.files(".part")


def test_a_disk_that_fills_up_meanwhile_is_no_obstacle(sources, caplog, monkeypatch):
    class Full(TensorWriter):
        def write(self, name: str, tensor: torch.Tensor) -> None:
            if len(self._left) < len(self._layout) // 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            super().write(name, tensor)

    monkeypatch.setattr(fused_cache, "TensorWriter", Full)
    same(sources.build(), sources.build(cache=False))
    assert "No space left" in warned(caplog)[0]
    assert not sources.files(".safetensors") + sources.files(".part")


def test_a_folder_that_cannot_be_created_is_no_obstacle(sources, caplog):
    sources.cache.write_text("a file where the folder should be")
    same(sources.build(), sources.build(cache=False))
    assert len(warned(caplog)) == 1


def test_two_at_once_fuse_once(sources, caplog):
    """The second waits for the first, and reports while waiting."""
    models: list[USOTransformer2DModel] = []

    def build_slowly() -> None:
        loading = sources.load()
        while True:
            try:
                time.sleep(0.02 * (next(loading) < 1))
            except StopIteration as end:
                models.append(end.value)
                return

    together = [threading.Thread(target=build_slowly) for _ in range(2)]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join()
    assert conversions(caplog) == 1
    direct = sources.build(cache=False)
    for model in models:
        same(model, direct)


def test_two_processes_at_once_leave_whole_files(sources):
    code = (
        "import sys, torch; from pathlib import Path; from optimum import quanto\n"
        "from uso_core.loaders.build import build_transformer\n"
        "flux, lora, cache = map(Path, sys.argv[1:])\n"
        "print(input(), flush=True)\n"
        "build_transformer(flux, lora, torch.float32, fp8=True, cache=cache)"
    )
    command = [sys.executable, "-c", code, sources.transformer, sources.lora, sources.cache]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdin.write("go\n")
        other.stdin.flush()
        assert other.stdout.readline() == "go\n"  # its libraries are imported
        model = sources.build()
        assert other.wait(240) == 0
    same(model, sources.build(cache=False))
    same(sources.build(), model)
    assert not sources.files(".part")


def test_waiting_for_another_can_be_stopped(sources):
    sources.build()
    slot = sources.weights.with_suffix("")
    sources.manifest.unlink()
    with fused_cache.FileLock(f"{slot}.lock"):
        began = time.monotonic()
        loading = sources.load()
        assert next(loading) == 0
        loading.close()
    assert time.monotonic() - began < 60


def test_faults_of_the_sources_are_reported_as_usual(sources):
    sources.lora.write_bytes(b"")
    with pytest.raises(WeightsError, match="is empty"):
        sources.build()


# --- where and when ---------------------------------------------------------------------------------------------------


def test_a_small_model_is_not_kept(tmp_path, monkeypatch):
    """The embedded model gains nothing either: it is converted in a moment."""
    paths = {role: GOLDEN / name for role, name in FILES.items()}
    settings = Settings(device="cpu", dtype="float32", weights=str(tmp_path))
    assemble(paths, settings, get_model("flux-dev-fp8"))
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(fused_cache, "WORTH_KEEPING", 10**6)
    assemble(paths, settings, get_model("flux-dev-fp8"))
    assert len(list((tmp_path / "prepared").glob("*.safetensors"))) == 1


def test_one_command_removes_the_cache(tmp_path, sources, capsys):
    sources.build()
    stranger = sources.cache / "mine.safetensors"
    stranger.write_bytes(b"not ours")
    assert download.main(["--weights", str(tmp_path), "--remove-prepared"]) == 0
    assert list(sources.cache.iterdir()) == [stranger]
    assert "Deleted" in capsys.readouterr().out
    assert sources.transformer.is_file()
    assert download.main(["--weights", str(tmp_path / "elsewhere"), "--remove-prepared"]) == 0


def test_a_model_in_use_survives_the_removal(sources):
    model = sources.build()
    assert fused_files.remove(sources.cache) > 0
    same(model, sources.build(cache=False))


# --- the writer -------------------------------------------------------------------------------------------------------


def test_tensors_may_come_in_any_order(tmp_path):
    tensors = {"c": torch.randn(3, 5), "a": torch.randn(7).bfloat16(), "b": torch.randn(3).to(torch.float8_e4m3fn)}
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with TensorWriter(tmp_path / "t.safetensors", layout) as writer:
        for name in ("b", "c", "a"):
            writer.write(name, tensors[name])
    found = load_file(tmp_path / "t.safetensors")
    assert all(torch.equal(found[name].float(), tensor.float()) for name, tensor in tensors.items())
    assert (tmp_path / "t.safetensors").stat().st_size == writer.bytes


@pytest.mark.parametrize("wrong", [{}, {"a": torch.zeros(3)}, {"a": torch.zeros(2).double()}])
def test_a_file_other_than_planned_is_refused(tmp_path, wrong):
    def write() -> None:
        with TensorWriter(tmp_path / "t", {"a": (torch.float32, (2,))}) as writer:
            for name, tensor in wrong.items():
                writer.write(name, tensor)

    with pytest.raises(ValueError, match="not written|planned as"):
        write()


# --- memory -----------------------------------------------------------------------------------------------------------

MID_SIZE = loading.FLUX_DEV | {"num_layers": 2, "num_single_layers": 4, "num_attention_heads": 8}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_file_is_converted_in_a_fraction_of_its_size(tmp_path, monkeypatch):
    """It never holds the source or the result: only the current tensor and the LoRAs, two beside USO's."""
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "262144")  # glibc then gives back at once what is no longer held
    source = loading.write_sparse(tmp_path / "flux.safetensors", loading.original_shapes(MID_SIZE))
    lora = loading.write_sparse(tmp_path / "lora.safetensors", loading.lora_shapes(MID_SIZE, 16))
    assert source > 2.5e8
    for number in (1, 2):
        shapes = loading.other_lora_shapes(MID_SIZE, 16)
        lora += loading.write_sparse(tmp_path / f"other-{number}.safetensors", shapes)
    names = ("flux.safetensors", "lora.safetensors", "prepared", "other-1.safetensors", "other-2.safetensors")
    figures = loading.start_in_a_process(*(str(tmp_path / name) for name in names))
    assert figures["weights_bytes"] > source / 2
    assert figures["peak_above_interpreter_bytes"] < 0.35 * source + lora


def test_the_shapes_of_the_full_size_file_are_those_of_flux_dev():
    shapes = loading.original_shapes(loading.FLUX_DEV)
    assert len(shapes) == 780
    assert shapes["single_blocks.37.linear1.weight"] == (21504, 3072)
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) * 2 == 23_802_816_640
    assert len(loading.lora_shapes(loading.FLUX_DEV, 128)) == 304
