"""``ablate`` ends with the table of ``compare``: complete, with what is missing or failed, or with why there is none."""

from __future__ import annotations

from pathlib import Path

from lightning_e5.ablation.closing import closing_text
from lightning_e5.report.compare import compare
from tests.lightning_e5.results.ablations import make_ablation


def test_the_table_is_that_of_compare(tmp_path: Path) -> None:
    directory = make_ablation(tmp_path, {"in_batch": 0.0, "queue": -0.1}, queries=40)
    said = closing_text(directory)
    assert said == f"{compare([directory])}\n\ncompare: python -m lightning_e5 compare {directory}"
    assert "lower" in said


def test_failed_and_missing_runs_are_in_it(tmp_path: Path) -> None:
    failed = {"state": "failed", "exit_code": 1, "message": "out of memory", "seconds": 3.0}
    unfinished = {("queue", 2): failed, ("queue", 3): {"state": "waiting"}, **{("large", s): failed for s in (1, 2, 3)}}
    said = closing_text(make_ablation(tmp_path, {"in_batch": 0.0, "queue": -0.1, "large": 0.0}, queries=40, unfinished=unfinished))
    assert "queue: 1 of 3 seeds finished; seed 2 failed: out of memory; seed 3 waiting." in said
    assert "no run is finished" in said and "large: 0 of 3 seeds finished; seeds 1, 2, 3 failed: out of memory." in said


def test_without_a_baseline_it_says_why_and_how_runs_stand(tmp_path: Path) -> None:
    unfinished = {("in_batch", s): {"state": "failed", "message": "no disk"} for s in (1, 2, 3)}
    said = closing_text(make_ablation(tmp_path, {"in_batch": 0.0, "queue": -0.1}, queries=40, unfinished=unfinished))
    first, *states = said.splitlines()
    assert first.startswith("no table yet: ") and "the baseline 'in_batch' has no finished run" in first
    assert states == [f"  in_batch-seed{s}: failed: no disk" for s in (1, 2, 3)] + [f"  queue-seed{s}: finished" for s in (1, 2, 3)]
