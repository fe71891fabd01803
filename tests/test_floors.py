"""Imports point down only; the environment has one reader; importing costs nothing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from uso_core.settings import ROOT

# The floors of the house, top first. A module may import from its own row or from below; rows that must never meet
# although they stand on one floor are listed in APART.
FLOORS = (
    ("app", "inference", "uso_core.ui", "training", "benchmarks", "weights"),
    ("uso_core.engine", "uso_core.assembly", "uso_core.style_tokens", "uso_core.outputs", "uso_core.history",
     "uso_core.styles", "uso_core.examples"),
    ("uso_core.model.pipeline", "uso_core.model.packed", "uso_core.model.autoencoder", "uso_core.loaders"),
    ("uso_core.memory", "uso_core.model.style", "uso_core.model.transformer"),
    ("uso_core.model.latents", "uso_core.model.preview", "uso_core.images", "uso_core.metadata", "uso_core.comfy"),
    ("uso_core.request", "uso_core.settings", "uso_core.catalog", "uso_core.inventory", "uso_core.events",
     "uso_core.errors", "uso_core.start"),
    ("uso_core.model", "uso_core"),  # package files, which hold only words
)  # fmt: skip
APART = (
    ("uso_core.model.pipeline", "uso_core.loaders"),
    ("uso_core.engine", "uso_core.outputs"),
    ("uso_core.engine", "uso_core.history"),
    ("uso_core.engine", "uso_core.styles"),
)
TOP = FLOORS[0]
WITHOUT_TORCH = (
    "app", "uso_core.engine", "uso_core.outputs", "uso_core.styles", "uso_core.examples", "uso_core.images",
    "uso_core.metadata", "uso_core.memory.layout", "uso_core.memory.plan", "uso_core.memory.sizes", *FLOORS[5],
)  # fmt: skip
GRADIO_ONLY_IN = ("uso_core.ui",)

SOURCES = [
    path
    for folder in (ROOT, *(ROOT / name for name in ("uso_core", "training", "benchmarks", "weights")))
    for path in sorted(folder.glob("*.py") if folder == ROOT else folder.rglob("*.py"))
]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Every module imported anywhere in the file, inside functions too; not those for the type checker alone."""
    names: set[str] = set()

    class Visitor(ast.NodeVisitor):
        def visit_If(self, node: ast.If) -> None:
            if "TYPE_CHECKING" not in ast.unparse(node.test):
                self.generic_visit(node)

        def visit_Import(self, node: ast.Import) -> None:
            names.update(alias.name for alias in node.names)

        def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
            package = [*path.relative_to(ROOT).parts][: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            names.update(f"{base}.{alias.name}" for alias in node.names)

    Visitor().visit(ast.parse(path.read_text(encoding="utf-8")))
    return names


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def floor(name: str) -> int | None:
    """The number of the floor on which a module stands; the longest entry that covers it decides."""
    entries = [(len(entry), row) for row, names in enumerate(FLOORS) for entry in names if within(name, entry)]
    return max(entries)[1] if entries else None


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_down(path):
    module = module_name(path)
    own = floor(module)
    assert own is not None, f"{module} has no floor; give it one in FLOORS"
    for name in imports(path):
        other = floor(name)
        if other is None:
            continue
        assert other >= own, f"{module} imports {name}, which stands above it"
        for one, two in APART:
            together = (within(module, one) and within(name, two)) or (within(module, two) and within(name, one))
            assert not together, f"{module} imports {name}; these two never meet"
    if not within(module, "training"):
        assert not any(within(name, "training") or within(name, "benchmarks") for name in imports(path)
                       if not within(module, "benchmarks"))  # fmt: skip


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_gradio_has_one_place(path):
    if not within(module_name(path), *GRADIO_ONLY_IN):
        assert not any(within(name, "gradio") for name in imports(path))


@pytest.mark.parametrize("path", [path for path in SOURCES if ROOT / "uso_core" in path.parents], ids=module_name)
def test_the_environment_is_read_once(path):
    if path.name != "settings.py":
        assert not re.search(r"\b(environ|getenv|load_dotenv|dotenv_values)\b", path.read_text(encoding="utf-8"))


def test_importing_is_cheap():
    """Neither the page nor anything it imports before the first request brings in the model stack."""
    names = ", ".join(name for name in WITHOUT_TORCH)
    code = (
        f"import sys; import {names}; import uso_core.ui\n"
        "heavy = {'torch', 'diffusers', 'transformers'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_does_nothing(tmp_path):
    """Importing every module of the package writes no file and prints nothing."""
    modules = ", ".join(module_name(path) for path in SOURCES if ROOT / "uso_core" in path.parents)
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.dont_write_bytecode = True; import {modules}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())
