"""Every notebook runs from top to bottom on finished runs, from either directory, and is kept without outputs; what a run
lacks is said in a sentence."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient import NotebookClient

from lightning_e5.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
ABLATIONS = "03_ablations"
#: Of each notebook on a run: pictures at least, and what the outputs say.
OF_A_RUN = {
    "01_quickstart": (4, ["bm25", "Precision", "shortest path"]),
    "02_data_and_filter": (5, ["held out for the test", "together", "injected mismatch", "dropped", "Precision", "query is a test text"]),
    "04_embedding_space": (3, ["uniformity of passages", "e5-noisy", "split a string", "nearest passage is of the same source"]),
    "05_error_analysis": (2, ["first of bm25", "of its words", "better than", "queries won"]),
}


def execute(path: Path, start: Path):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(start)}}).execute()
    return notebook


def outputs(notebook):
    found = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    harmless = "IProgress not found"  # progress bars as text
    assert not [o for o in found if o.output_type == "error" or (o.get("name") == "stderr" and harmless not in o["text"])]
    pictures = [o["data"]["image/svg+xml"] for o in found if "image/svg+xml" in o.get("data", {})]
    return pictures, "\n".join(o.get("data", {}).get(kind, "") for o in found for kind in ("text/markdown", "text/html"))


def named(name: str) -> Path:
    return FOLDER / f"{name}.ipynb"


@pytest.fixture(scope="session")
def smoke_ablation(tmp_path_factory):
    """The directory of a finished ablation: two variants with two seeds."""
    runs = tmp_path_factory.mktemp("ablation_runs")
    command = [sys.executable, "-m", "lightning_e5", "ablate", "experiments/ablations/smoke.yaml", f"runs_dir={runs}", "logger.mode=disabled"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stdout + done.stderr
    return runs / "ablations" / "smoke-laptop"


def test_all_notebooks_are_tested():
    assert {p.stem for p in NOTEBOOKS} == {*OF_A_RUN, ABLATIONS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert cell.cell_type != "code" or (cell.outputs == [] and cell.execution_count is None)


@pytest.mark.parametrize("name", OF_A_RUN)
def test_runs_on_a_finished_run(name, smoke_run, monkeypatch):
    monkeypatch.setenv("LIGHTNING_E5_RUN", str(Path(smoke_run).resolve()))
    pictures, shown = outputs(execute(named(name), FOLDER))
    least, expected = OF_A_RUN[name]
    assert len(pictures) >= least
    assert [text for text in expected if text not in shown] == []


def test_shows_an_ablation(smoke_ablation, monkeypatch):
    monkeypatch.setenv("LIGHTNING_E5_ABLATION", str(smoke_ablation))
    pictures, shown = outputs(execute(named(ABLATIONS), FOLDER))
    assert len(pictures) >= 3  # bars, query by query, learning curves
    for text in ("warm", "cold", "temperature 0.01, as in E5", "1: finished, 2: finished", "quotes no figure", "e5-pt/python-docs/ndcg@10"):
        assert text in shown


def test_what_a_run_lacks_is_said(smoke_run, tmp_path, monkeypatch):
    """A run that only evaluates models on a collection from elsewhere: no data stage, no filter, one model on its own."""
    run = tmp_path / "evaluated"
    config = yaml.safe_load((smoke_run / "config.yaml").read_text())
    evaluate = config["stages"]["evaluate"]
    test = smoke_run / "stages" / evaluate["inputs"]["collections"]["python-docs"]
    evaluate["inputs"] = {"collections": {"python-docs": f"path:{test}"}, "encoders": {}}
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "name": "evaluated", "stages": {"evaluate": evaluate}}))
    shutil.copy(smoke_run / "metrics.json", run)
    (run / "stages" / "evaluate").mkdir(parents=True)
    shutil.copy(smoke_run / "stages" / "evaluate" / "metrics.json", run / "stages" / "evaluate")
    shutil.copytree(smoke_run / "stages" / "evaluate" / "bm25", run / "stages" / "evaluate" / "bm25")
    table = yaml.safe_load((smoke_run / "stages" / "evaluate" / "table.json").read_text())
    rows = [{k: v for k, v in row.items() if not k.startswith("difference")} for row in table if row["model"] == "bm25"]
    (run / "stages" / "evaluate" / "table.json").write_text(str(rows).replace("'", '"').replace("None", "null"))
    monkeypatch.setenv("LIGHTNING_E5_RUN", str(run))
    said = {name: outputs(execute(named(name), FOLDER)) for name in OF_A_RUN if not name.startswith("01")}
    assert {name: len(pictures) for name, (pictures, _) in said.items()} == dict.fromkeys(said, 0)
    assert "No stage of this run made pairs" in said["02_data_and_filter"][1]
    assert "No stage of this run filtered pairs" in said["02_data_and_filter"][1]
    assert "evaluated no encoder" in said["04_embedding_space"][1]
    assert "evaluated one model alone" in said["05_error_analysis"][1]


@pytest.mark.parametrize("name", OF_A_RUN)
def test_says_that_the_run_is_missing(name, tmp_path, monkeypatch):
    """The first cell does, whose error ends a notebook: run here, without a kernel."""
    monkeypatch.setenv("LIGHTNING_E5_RUN", str(tmp_path / "nowhere"))
    monkeypatch.chdir(FOLDER.parent)
    first = next(cell for cell in nbformat.read(named(name), as_version=4).cells if cell.cell_type == "code")
    with pytest.raises(UserError, match="no such run directory"):
        exec(first.source, {})


def test_says_that_the_ablation_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_E5_ABLATION", str(tmp_path / "nowhere"))
    pictures, shown = outputs(execute(named(ABLATIONS), FOLDER.parent))
    assert pictures == [] and "no such ablation directory" in shown
