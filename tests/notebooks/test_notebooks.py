"""Every notebook runs from top to bottom on a finished run, from either directory, and is kept without outputs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def execute(path: Path, start: Path):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(start)}}).execute()
    return notebook


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert cell.cell_type != "code" or (cell.outputs == [] and cell.execution_count is None)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs_on_a_finished_run(path, smoke_run, monkeypatch):
    monkeypatch.setenv("LIGHTNING_E5_RUN", str(Path(smoke_run).resolve()))
    notebook = execute(path, FOLDER)
    outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    assert sum("image/svg+xml" in o.get("data", {}) for o in outputs) >= 4
    shown = "\n".join(o.get("data", {}).get(kind, "") for o in outputs for kind in ("text/markdown", "text/html"))
    assert "bm25" in shown and "precision" in shown and "shortest path" in shown


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_says_that_the_run_is_missing(path, tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_E5_RUN", str(tmp_path / "nowhere"))
    with pytest.raises(CellExecutionError, match="no such run directory"):
        execute(path, FOLDER.parent)
