"""The GPU benchmark runs every part without a GPU, at toy size, and saves what each has found."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.__main__ import _run, main
from benchmarks.gpu.aims import aims
from benchmarks.gpu.parts import PARTS, run_part
from benchmarks.gpu.size import TOY

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", [name for name in PARTS if name not in ("resume", "stages")])
def test_a_part_has_rows(name: str, tmp_path: Path) -> None:
    run_part(name, TOY, tmp_path / "rows")
    rows = [json.loads(line) for line in (tmp_path / "rows").read_text(encoding="utf-8").splitlines()]
    assert rows and all(row["name"] for row in rows)
    for row in rows:
        if name == "correctness":
            assert row["equal"], row
        elif name == "train_step":
            shares = [value for key, value in row.items() if key.startswith("share_")]
            assert sum(shares) == pytest.approx(1) and row["share_matrix_products"] > 0.05 and row["share_attention"] > 0
            assert row["seconds"] > 0 and row["ratio"] == pytest.approx(row["peer_s"] / row["seconds"])
        elif name == "filter":
            assert row["agreement"] == 1.0
        elif name == "encode":
            assert row["lowest_cosine"] > 0.9999
        elif name == "run":
            assert 0 <= row["input_share"] < 1 and row["steps"] == 3


def test_the_command_saves_each_part_and_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", "--size", "toy", "--json", str(file), "--parts", "filter"])
    monkeypatch.chdir(ROOT)
    assert main() == 0
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    printed = capsys.readouterr().out
    assert "toy size on the CPU" in printed and "nothing of a GPU" in found["note"] and found["aims"] == {} and found["size"] == "toy"
    (part,) = found["parts"].values()
    assert part["error"] is None and len(part["rows"]) == 1 and part["seconds"] > 0 and found["machine"]["packages"]["torch"]


def test_a_part_that_is_cut_off_or_fails_leaves_the_rows_that_it_has(tmp_path: Path) -> None:
    out = tmp_path / "part.jsonl"
    out.write_text('{"name": "first"}\n', encoding="utf-8")
    late = _run("filter", "toy", out, 0.2)
    assert late["error"] == "cut off after 0 s" and late["rows"] == [{"name": "first"}]
    assert _run("filter", "toy", out, 0.0)["error"] == "not begun: no time was left"
    wrong = _run("filter", "nothing", out, 60.0)
    assert "ended with 2" in wrong["error"] and "invalid choice: 'nothing'" in wrong["error"] and len(wrong["rows"]) == 1


@pytest.mark.slow  # test_resume.py and test_experiments.py run the same on the CPU
def test_the_parts_that_run_whole_experiments(tmp_path: Path) -> None:
    for name in ("resume", "stages"):
        part = _run(name, "toy", tmp_path / name, 500.0)
        assert part["error"] is None and all(row["equal"] for row in part["rows"]), part
    assert len(part["rows"]) > 8


def test_aims_are_said_of_what_was_measured() -> None:
    step = {"batch": 32_768, "hours_of_20000_steps": 30.0, "mfu": 0.41, "ratio": 1.9}
    parts = {
        "train_step": {"rows": [step | {"model": "E5-base"}, step | {"model": "E5-small", "ratio": 2.5}, step | {"model": "E5-large", "batch": 2048}]},
        "correctness": {"rows": [{"name": "gradients", "equal": False}]},
    }
    assert aims(parts) == {
        "MFU of E5-base >= 0.40": "0.41, met",
        "step of E5-base >= 2x sentence-transformers' cached loss": "1.9, MISSED",
        "step of E5-small >= 2x sentence-transformers' cached loss": "2.5, met",
        "20,000 steps of E5-small in under 24 hours": "30 h, MISSED",
        "correctness: gradients": "MISSED ({'name': 'gradients', 'equal': False})",
    }
    assert aims({}) == {}
