"""Rows to pairs: several positives, negatives, scores with a stated threshold, and what is no pair is counted by its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_modules.own.own_pair import OwnPair
from data_modules.own.pair_tables import pair_table, table_pairs
from lightning_e5.errors import UserError
from lightning_e5.types import ReadReport


def pairs_of(path: Path, rows: list[dict[str, Any]], min_score: float | None = None, **options: Any) -> tuple[list[OwnPair], ReadReport, list[str]]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    report, said = ReadReport(), list[str]()
    return list(table_pairs(pair_table(path, **options), report, min_score, said)), report, said


def test_positives_and_negatives(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"query": "q", "pos": ["a", "b"], "neg": ["c", "d"], "id": 7}, {"query": "r", "pos": ["a"], "neg": []}, {"query": "", "pos": ["a"]}, {"query": "s", "pos": []},
        {"query": "x" * 2001, "pos": ["a"]},
    ]  # fmt: skip
    found, report, _ = pairs_of(tmp_path / "a.jsonl", rows)
    assert found == [
        OwnPair("q", "a", "pairs", "a.jsonl:1", "id=7", ("c", "d")), OwnPair("q", "b", "pairs", "a.jsonl:1/1", "id=7", ("c", "d")), OwnPair("r", "a", "pairs", "a.jsonl:2"),
    ]  # fmt: skip
    assert report.bad == [(f"{tmp_path}/a.jsonl:3", "no text in the column 'query'"), (f"{tmp_path}/a.jsonl:4", "no text in the column 'pos'")]
    assert report.counts["skipped: query of over 2,000 characters"] == 1


@pytest.mark.parametrize(("scores", "least", "kept"), [([0, 1, 1], None, 2), ([0.79, 0.8, 1.0], None, 2), ([5, 4, 3.9], None, 2), ([12, -3, 500], 10.0, 2)])
def test_the_threshold_of_scores_is_stated(tmp_path: Path, scores: list[float], least: float | None, kept: int) -> None:
    rows = [{"sentence1": f"a{n}", "sentence2": f"b{n}", "score": score} for n, score in enumerate(scores)]
    found, report, said = pairs_of(tmp_path / "a.jsonl", rows, least)
    assert len(found) == kept and report.counts["skipped: score below min_score"] == 3 - kept
    assert "are positives" in said[0] and str(tmp_path / "a.jsonl") in said[0]


def test_scores_of_no_known_scale_are_refused(tmp_path: Path) -> None:
    rows = [{"query": "a", "passage": "b", "score": "13"}, {"query": "a", "passage": "c", "score": "-2"}]
    with pytest.raises(UserError, match=r"a.jsonl: the column 'score' has values from -2 to 13.*min_score=.*score="):
        pairs_of(tmp_path / "a.jsonl", rows)
    assert len(pairs_of(tmp_path / "a.jsonl", rows, score="")[0]) == 2
    rows[0]["score"] = "high"
    assert pairs_of(tmp_path / "a.jsonl", rows, 0.0)[1].bad == [(f"{tmp_path}/a.jsonl:1", "no number in the column 'score'")]
