"""The documents' examples run as printed, and the things that they name exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from uso_core.settings import ROOT

FOLDERS = (".", "docs", "training", "benchmarks")
DOCUMENTS = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []


def test_files_named_in_the_architecture_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:\w+/)*\w+\.(?:py|md)|(?:\w+/)+\w+\.json)[:`]", text):
        assert any((base / name).exists() for base in (ROOT, ROOT / "uso_core")), name


def test_the_python_example_makes_its_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text[text.index("## In Python") :], flags=re.DOTALL)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "mug.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("USO_NAME", "uso-tiny")
    exec(compile(code, "docs/api.md", "exec"), {"__name__": "__main__"})
    with Image.open(tmp_path / "mug-again.png") as made:
        assert made.size == (128, 128)


def test_make_explains_itself() -> None:
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {"run", "test", "lint"} <= {line.split()[1] for line in said.splitlines()}
