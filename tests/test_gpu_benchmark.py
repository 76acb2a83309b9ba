"""The GPU benchmark runs every part without a GPU, at toy size, and saves what each has found."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.common import make_encoder, real_pairs, sentence_transformer
from benchmarks.gpu import inference, training
from benchmarks.gpu.__main__ import _rows, _run, main
from benchmarks.gpu.aims import aims
from benchmarks.gpu.parts import PARTS, run_part
from benchmarks.gpu.size import TOY
from benchmarks.train_step import Peer
from tests.processes import alive

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable


@pytest.mark.parametrize("name", [name for name in PARTS if name not in ("resume", "stages")])
def test_a_part_has_rows(name: str, tmp_path: Path) -> None:
    run_part(name, TOY, tmp_path / "rows")
    rows = _rows(tmp_path / "rows")
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
    *before, late = _run("filter", "toy", out, 1.0)
    assert late["error"] == "cut off after 1 s" and late["rows"] == [{"name": "first"}]
    assert [part["error"] for part in before] == ["still running"] and before[0]["rows"] == late["rows"], "what is there is saved at once"
    assert [part["error"] for part in _run("filter", "toy", out, 0.0)] == ["not begun: no time was left"]
    *_, wrong = _run("filter", "nothing", out, 60.0)
    assert "ended with 2" in wrong["error"] and "invalid choice: 'nothing'" in wrong["error"] and len(wrong["rows"]) == 1


def test_a_row_stands_for_an_earlier_one_of_its_name_and_half_a_row_for_nothing(tmp_path: Path) -> None:
    out = tmp_path / "part.jsonl"
    assert _rows(out) == []
    out.write_text('{"name": "a"}\n{"name": "b"}\n{"name": "a", "ratio": 2}\n{"name": "c", "rat', encoding="utf-8")
    assert _rows(out) == [{"name": "a", "ratio": 2}, {"name": "b"}]


def test_a_part_that_is_cut_off_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its own nor one that it has started."""
    started = tmp_path / "started"
    child = f"import os, time; open({str(started)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (tmp_path / "python").write_text(f'#!/bin/sh\n"{PYTHON}" -c "{child}" &\nwait\n', encoding="utf-8")
    (tmp_path / "python").chmod(0o755)
    *_, part = _run("filter", "toy", tmp_path / "part.jsonl", 5.0)
    assert part["error"] == "cut off after 5 s" and started.exists()
    for _ in range(100):
        if not alive(int(started.read_text())):
            return
        time.sleep(0.1)
    raise AssertionError("the process that it started goes on")


def test_a_peer_that_fails_takes_no_figure_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any) -> Any:
        raise OSError("libcublas.so.12: cannot open\nand more")

    monkeypatch.setattr(inference, "peer_encodes", broken)
    monkeypatch.setattr(inference, "peer_filters", broken)
    monkeypatch.setattr(training, "peer_seconds", broken)
    for name, key in (("encode", "texts_per_s"), ("filter", "queries_per_s"), ("train_step", "pairs_per_s")):
        run_part(name, TOY, tmp_path / name)
        for row in _rows(tmp_path / name):
            assert row[key] > 0 and row["peer"] == "failed: OSError: libcublas.so.12: cannot open" and "ratio" not in row


def test_the_peers_model_multiplies_in_bfloat16_in_both_passes() -> None:
    """The cached loss calls it again in the backward pass."""
    pytest.importorskip("sentence_transformers")
    pairs = real_pairs(32, TOY.packages)
    queries, passages = pairs.batch(8)
    with tempfile.TemporaryDirectory() as folder:
        model = sentence_transformer(make_encoder("2x128", pairs.tokenizer), Path(folder) / "model")
    seen: list[torch.dtype] = []
    layer = model[0].auto_model.encoder.layer[0].intermediate.dense
    layer.register_forward_hook(lambda module, given, output: seen.append(output.dtype))
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        seen.clear()
        Peer(model, queries, passages, precision, 4)()
        assert seen == [dtype] * 8, "two passes over two chunks of queries and of passages"


@pytest.mark.slow  # test_resume.py and test_experiments.py run the same on the CPU
def test_the_parts_that_run_whole_experiments(tmp_path: Path) -> None:
    for name in ("resume", "stages"):
        *_, part = _run(name, "toy", tmp_path / name, 500.0)
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
