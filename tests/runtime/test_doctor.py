"""The doctor's verdict on files that are there and cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from uso_core.runtime.doctor import examine
from uso_core.settings import ROOT, Settings

WEIGHTS = ROOT / "weights/uso-tiny"
PARTS = {"flux_dev": "flux.safetensors", "ae": "ae.safetensors", "t5": "t5", "clip": "clip", "siglip_path": "siglip",
         "projection_model": "projector.safetensors", "lora": "dit_lora.safetensors"}  # fmt: skip


@pytest.mark.parametrize(("damage", "code"), [("", 0), ("cut off", 2), ("another part", 2)])
def test_a_file_that_cannot_be_used_is_something_to_do(
    damage: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {name: str(WEIGHTS / file) for name, file in PARTS.items()}
    if damage == "cut off":
        given["lora"] = str(tmp_path / "lora.safetensors")
        Path(given["lora"]).write_bytes((WEIGHTS / PARTS["lora"]).read_bytes()[:20_000])
    elif damage:
        given["lora"] = given["projection_model"]
    assert examine(Settings(name="flux-dev", device="cpu", dtype="float32", **given)) == code
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if line.strip().startswith(("found", "problem"))]
    assert [line.split(":")[0].split() for line in lines if " lora:" in line] == [
        ["problem" if damage else "found", "lora"]
    ]
    assert (f"lora: put another file in place of {given['lora']}, or correct LORA" in said) == bool(damage)
    assert ("Nothing is missing." in said) == (not damage)


def test_a_variable_that_lacks_its_part_is_something_to_correct(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {name: str(WEIGHTS / file) for name, file in PARTS.items()} | {"lora": str(tmp_path)}
    assert examine(Settings(name="flux-dev", device="cpu", dtype="float32", **given)) == 2
    assert "lora: correct LORA in .env or in the environment, or unset it" in capsys.readouterr().out


def test_damaged_files_in_the_model_folders_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cut.safetensors").write_bytes((WEIGHTS / PARTS["lora"]).read_bytes()[:20_000])
    (tmp_path / "old.ckpt").write_bytes(b"not for us")
    examine(Settings(name="flux-dev", device="cpu", dtype="float32", models_dir=str(tmp_path), weights=str(tmp_path)))
    said = capsys.readouterr().out.partition("Also in the model folders")[2].partition("Memory plan")[0]
    assert "cut.safetensors" in said
    assert "old.ckpt" not in said
