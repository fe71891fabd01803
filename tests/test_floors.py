"""Packages are floors: imports point down only, the environment has one reader, and importing costs nothing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from uso_core.settings import ROOT

# The floors, top first, by package. A module imports from its own package and from the floors below; packages on one
# floor never import each other.
FLOORS = (
    ("app", "inference", "training", "benchmarks", "weights", "deploy"),
    ("ui",),
    ("runtime",),
    ("cpu", "loaders", "memory"),
    ("model", "quantization", "catalog", "storage", "comfy"),
    ("nouns",),
)
NOUNS = ("messages", "errors", "events", "request", "settings", "images", "colors", "file_formats", "dotenv_file",
         "eval_file", "prompts_file", "text_files", "grid", "wildcards")  # fmt: skip
BESIDE = {("benchmarks", "training")}  # importer, imported: allowed on the same floor
WITHOUT_TORCH = ("nouns", "catalog", "storage", "comfy")
WITHOUT_TORCH_TOO = ("app", "uso_core.runtime.engine", "uso_core.memory.plan", "uso_core.memory.planner",
                     "uso_core.memory.sizes", "uso_core.ui")  # fmt: skip
GRADIO_ONLY_IN = "uso_core.ui"

SOURCES = [
    path
    for folder in (ROOT, *(ROOT / name for name in ("uso_core", "training", "benchmarks", "weights", "deploy")))
    for path in sorted(folder.glob("*.py") if folder == ROOT else folder.rglob("*.py"))
]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(module: str) -> str | None:
    """The package whose floor a module belongs to; None for modules that are not ours."""
    parts = module.split(".")
    if parts[0] != "uso_core":
        return parts[0] if parts[0] in FLOORS[0] else None
    if len(parts) == 1:
        return "nouns"
    return "nouns" if parts[1] in NOUNS else parts[1]


def floor_of(package: str) -> int:
    found = [number for number, packages in enumerate(FLOORS) if package in packages]
    assert found, f"{package} has no floor; give it one in FLOORS"
    return found[0]


def imports(path: Path) -> set[str]:
    """Every module imported anywhere in the file, including functions, except those only for the type checker."""
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


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_down(path):
    module = module_name(path)
    own = package_of(module)
    assert own is not None, f"{module} belongs to no package"
    for name in imports(path):
        other = package_of(name) if name != f"uso_core.{own}" else own
        if other is None or other == own or (own, other) in BESIDE or name == "uso_core.__version__":
            continue
        assert floor_of(other) > floor_of(own), f"{module} imports {name}, which does not stand below it"


def test_modules_of_one_package_do_not_import_each_other_in_a_circle():
    """Includes imports inside functions."""
    names = {module_name(path): path for path in SOURCES}
    graph = {
        module: {
            each if each in names else each.rpartition(".")[0]
            for each in imports(path)
            if each in names or each.rpartition(".")[0] in names
        }
        - {module}
        for module, path in names.items()
    }
    done: set[str] = set()

    def walk(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, f"a circle of imports: {' -> '.join((*way[way.index(module) :], module))}"
        if module not in done:
            for each in sorted(graph[module]):
                walk(each, (*way, module))
            done.add(module)

    for module in sorted(graph):
        walk(module, ())


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_gradio_has_one_place_and_no_search_path_is_changed(path):
    module = module_name(path)
    if module != GRADIO_ONLY_IN and not module.startswith(GRADIO_ONLY_IN + "."):
        assert not any(name.split(".")[0] == "gradio" for name in imports(path))
    assert "sys.path" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", [path for path in SOURCES if ROOT / "uso_core" in path.parents], ids=module_name)
def test_the_environment_is_read_once(path):
    if path.name not in ("settings.py", "dotenv_file.py"):
        assert not re.search(r"\b(environ|getenv|load_dotenv|dotenv_values)\b", path.read_text(encoding="utf-8"))


def test_importing_is_cheap_and_does_nothing(tmp_path):
    """Neither the page nor anything it imports before the first request loads the model stack.

    Importing every module of the package writes no file and prints nothing.
    """
    light = [name for name in map(module_name, SOURCES) if package_of(name) in WITHOUT_TORCH]
    every = [module_name(path) for path in SOURCES if ROOT / "uso_core" in path.parents]
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.dont_write_bytecode = True\n"
        f"import {', '.join([*light, *WITHOUT_TORCH_TOO])}\n"
        "heavy = {'torch', 'diffusers', 'transformers'} & set(sys.modules); assert not heavy, heavy\n"
        f"import {', '.join(every)}"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())
