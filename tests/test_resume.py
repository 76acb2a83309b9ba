"""Killed and resumed trainings are bit-equal to uninterrupted ones: weights, optimizer and every logged loss."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.kill_loop import differences

ROOT = Path(__file__).resolve().parents[1]


def kill_loop(*options: str) -> str:
    command = [sys.executable, "-m", "benchmarks.kill_loop", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow  # test_runs.py kills a whole run
def test_two_kills_and_resumes_are_bit_equal() -> None:
    printed = kill_loop("--kills", "2", "--schemes", "moco", "--workers", "0")
    assert "while a checkpoint was written" in printed and printed.endswith("2 resumes: bit-equal\n")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_kills_and_resumes_of_every_scheme_are_bit_equal() -> None:
    printed = kill_loop("--kills", "60", "--seed", "1")
    assert printed.count("\nresume ") + printed.startswith("resume ") == 60
    assert printed.endswith("60 resumes: bit-equal\n")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_kills_of_a_teacher_and_of_its_scores_leave_the_same_files() -> None:
    command = [sys.executable, "-m", "benchmarks.kill_stages", "--kills", "30"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert re.search(r"^30 kills, \d+ runs: equal$", done.stdout, re.M)


def test_a_cross_encoders_files_are_the_same_from_every_process(small_bert, small_tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """Their temporary names hold the process's number, after which torch names what is inside of a file that it opens itself."""
    from lightning_e5.models.cross_encoder import CrossEncoder
    from lightning_e5.models.encoder import TextEncoder

    model = CrossEncoder.from_encoder(TextEncoder(small_bert, small_tokenizer))
    for process in (7, 12345):
        monkeypatch.setattr("os.getpid", lambda process=process: process)
        model.save_pretrained(tmp_path / str(process))
    files = [{p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()} for n in ("7", "12345")]
    assert files[0] == files[1] and len(files[0]) > 5


def test_the_comparison_after_a_resume_notices_one_bit(tmp_path: Path) -> None:
    """The control of the two above."""
    weights = torch.ones(4)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        torch.save({"module": {"w": weights}, "optimizer": {"state": [0.5]}}, tmp_path / name / "final.pt")
        rows = [{"step": 1, "loss": 0.25, "seconds": 1.0}, {"step": 2, "loss": 0.125, "seconds": 2.0}]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert differences(tmp_path / "whole", tmp_path / "killed") is None
    other = weights.clone()
    other.view(torch.int32)[2] ^= 1
    torch.save({"module": {"w": other}, "optimizer": {"state": [0.5]}}, tmp_path / "killed" / "final.pt")
    assert differences(tmp_path / "whole", tmp_path / "killed") == "final state.module.w"
    torch.save({"module": {"w": weights}, "optimizer": {"state": [0.5]}}, tmp_path / "killed" / "final.pt")
    (tmp_path / "killed" / "metrics.jsonl").write_text('{"step": 1, "loss": 0.25}\n{"step": 2, "loss": 0.12500001}\n')
    assert "step 2" in str(differences(tmp_path / "whole", tmp_path / "killed"))
    (tmp_path / "killed" / "metrics.jsonl").write_text('{"step": 1, "loss": 0.25}\n')
    assert "logged steps: 2 rows and 1" in str(differences(tmp_path / "whole", tmp_path / "killed"))
