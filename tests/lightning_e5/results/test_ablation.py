"""An ablation's directory: what is planned, what is finished, what went wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lightning_e5.errors import UserError
from lightning_e5.results.ablation import AblationData, is_ablation
from tests.lightning_e5.results.ablations import NDCG, make_ablation

ROOT = Path(__file__).resolve().parents[3]
YAML = "ablation: negatives\nscale: laptop\nscales: {laptop: {base: a.yaml}, one_gpu: {base: b.yaml}}\nvariants: {}\n"


def test_what_was_planned_and_what_is_there(tmp_path):
    failed = {"state": "failed", "exit_code": 1, "message": "error: out of memory", "seconds": 3.0}
    path = make_ablation(
        tmp_path, {"in_batch": 0.0, "moco": -0.1}, unfinished={("moco", 2): failed, ("moco", 3): {"state": "running"}}
    )
    data = AblationData(path)
    assert (data.name, data.scale, data.baseline, data.seeds) == ("negatives", "laptop", "in_batch", [1, 2, 3])
    assert data.question.startswith("Do in-batch") and data.held_constant == ["data", "encoder"] and data.report[0] == NDCG
    assert data.variants == {"in_batch": "What in_batch is.", "moco": "What moco is."} and data.paper is None
    assert data.finished("in_batch") == [1, 2, 3] and data.finished("moco") == [1]
    assert data.missing() == [("moco", 2), ("moco", 3)]
    assert data.state("moco", 2) == "failed: error: out of memory" and data.state("moco", 3) == "running"
    assert data.run("moco", 1).name == "moco-seed1" and data.run("moco", 1) is data.run("moco", 1)
    with pytest.raises(UserError, match=r"moco-seed2: the run is not finished \(failed: error: out of memory\)"):
        data.run("moco", 2)
    with pytest.raises(UserError, match="has no variant 'mocco'; did you mean 'moco'"):
        data.run("mocco", 1)
    with pytest.raises(UserError, match="was not planned with seed 9"):
        data.run("moco", 9)
    (path / "status.json").unlink()
    assert data.status() == {} and data.state("moco", 2) == "missing"


def test_a_finished_state_without_metrics_is_not_finished(tmp_path):
    path = make_ablation(tmp_path, {"a": 0.0}, unfinished={("a", 1): {"state": "finished", "exit_code": 0}})
    assert AblationData(path).finished("a") == [2, 3] and AblationData(path).state("a", 1) == "missing"


def test_a_yaml_stands_for_its_directory(tmp_path):
    path = make_ablation(tmp_path / "runs", {"a": 0.0}, scale="one_gpu")
    file = tmp_path / "negatives.yaml"
    file.write_text(YAML)
    assert is_ablation(file) and is_ablation(path) and not is_ablation(path / "a-seed1") and not is_ablation(tmp_path / "none.yaml")
    assert AblationData(file, at_scale="one_gpu", runs_dir=tmp_path / "runs").path == path
    with pytest.raises(UserError, match="was not run at the scale 'laptop' yet"):
        AblationData(file, runs_dir=tmp_path / "runs")
    with pytest.raises(UserError, match="scale=one_gpuu: there is no such scale; did you mean 'one_gpu'"):
        AblationData(file, at_scale="one_gpuu")
    other = tmp_path / "run.yaml"
    other.write_text("name: x\n")
    with pytest.raises(UserError, match="is no ablation"):
        AblationData(other)


def test_what_is_no_ablation(tmp_path):
    with pytest.raises(UserError, match="no such ablation directory"):
        AblationData(tmp_path / "absent")
    with pytest.raises(UserError, match=r"has no ablation\.json"):
        AblationData(tmp_path)
    path = make_ablation(tmp_path, {"a": 0.0})
    (path / "ablation.json").write_text('{"ablation": "x"}')
    with pytest.raises(UserError, match="lacks the key 'scale'"):
        AblationData(path)


def test_reading_needs_no_torch(tmp_path):
    path = make_ablation(tmp_path, {"a": 0.0, "b": 0.1})
    code = (
        "import sys; from lightning_e5.__main__ import main\n"
        f"main(['compare', {str(path)!r}])\nprint([n for n in ('torch', 'lightning', 'transformers') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr
