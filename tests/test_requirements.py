"""Imports are declared, declarations are used, and nothing installed is below a known advisory."""

from __future__ import annotations

import ast
import re
import sys
from importlib.metadata import packages_distributions, version

import pytest
from packaging.requirements import Requirement

from uso_core.settings import ROOT

FILES = ("requirements.txt", "requirements-mcp.txt", "requirements-ray.txt", "requirements-metrics.txt",
         "requirements-test.txt", "training/requirements.txt")  # fmt: skip
# Imported by other libraries where our files or calls need them: T5's spiece.model, its error without protobuf, and
# diffusers' own offloading, which library users call.
BY_OTHERS = {"sentencepiece", "protobuf", "accelerate"}
# The first versions without a published advisory that concerns what this program does (November 2026), and the last
# ones with one.
FLOORS = {"gradio": ("6.16", "6.15"), "pillow": ("12.3", "12.2")}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(name: str) -> dict[str, Requirement]:
    lines = [line.strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
    parsed = [Requirement(line) for line in lines if line and not line.startswith(("#", "-r"))]
    return {normal(each.name): each for each in parsed}


def imported() -> set[str]:
    """Distributions that the application imports, anywhere in its files."""
    paths = [*ROOT.glob("*.py"), *(ROOT / "uso_core").rglob("*.py"), *(ROOT / "weights").glob("*.py")]
    modules: set[str] = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module.split(".")[0])
    known = packages_distributions()
    others = modules - set(sys.stdlib_module_names) - {"uso_core", "optimum"}
    return {normal(known[module][0]) for module in others} | {"optimum-quanto"}


def test_imports_are_declared_and_declarations_are_used():
    found, known = imported(), set(declared("requirements.txt"))
    assert found - known == {
        "mcp",
        "pillow-heif",
        "ray",
        "prometheus-client",
        "spaces",
    }  # extras, imported where they are used
    assert known - found == BY_OTHERS


@pytest.mark.parametrize("name", FLOORS)
def test_floors_are_above_known_advisories(name):
    good, bad = FLOORS[name]
    assert declared("requirements.txt")[name].specifier.contains(good)
    assert not declared("requirements.txt")[name].specifier.contains(bad)


@pytest.mark.parametrize("file", FILES)
def test_installed_versions_meet_the_requirements(file):
    for name, wanted in declared(file).items():
        assert wanted.specifier.contains(version(name)), f"{name} {version(name)} is not {wanted.specifier}"
        assert "<" in str(wanted.specifier), f"{name} has no upper bound"
