"""The notebook's cells, run by a real kernel: everything but the clone and the share link."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.serving import free_port
from uso_core.settings import ROOT

NOTEBOOK = ROOT / "deploy/notebook/USO.ipynb"


@pytest.mark.slow
def test_the_cells_run_in_order(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "USO").symlink_to(ROOT)  # instead of the clone
    monkeypatch.setenv("USO_OUTPUT", str(tmp_path / "output"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    port = free_port()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.source.splitlines()[0].startswith(f"# @title {number}.") for number, cell in enumerate(cells, 1))
    page = next(cell for cell in cells if "SHARE = True" in cell.source)
    page.source = page.source.replace("SHARE = True", "SHARE = False").replace("PORT = 7860", f"PORT = {port}")
    client = NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}})
    with client.setup_kernel():
        for place, cell in enumerate(notebook.cells):
            client.execute_cell(cell, place)
            if cell is page:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=240) as reply:
                    assert json.load(reply)["model"] == "uso-tiny"
    texts = ["".join(output.get("text", "") for output in cell.outputs) for cell in cells]
    assert "no GPU: uso-tiny" in texts[1]
    assert f"Open http://127.0.0.1:{port}" in texts[3]


def test_the_notebook_is_kept_without_results() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in notebook.cells)
