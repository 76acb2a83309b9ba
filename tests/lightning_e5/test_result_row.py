"""A row of results goes to its file and back, and rows of older runs, which say less, are read as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_e5.errors import UserError
from lightning_e5.files.storage import write_json
from lightning_e5.result_row import Comparison, ResultRow, TextsRead, TrainingOverlap, flat
from lightning_e5.results.result_files import read_rows

RETRIEVAL = ResultRow(
    "e5", "docs", "retrieval", "ndcg@10", 0.5, 0.4, 0.6, 200, {"recall@100": 0.9, "recall@100_clean": 0.8}, "test",
    TextsRead({"query": "query: ", "passage": "passage: "}, 64, 0.25, "bf16", "dot", True),
    TrainingOverlap(640, None, "measured", {"share": 0.5, "count": 100, "exact": 100}, 100, 0.45),
    Comparison(0.1, 0.05, 0.15, 0.001, 0.002, "a is higher"), (Comparison(-0.1, -0.2, 0.1, 0.5, 0.5, "no difference shown", "start"),),
    {"ndcg@10": 0.55}, facts={"documents": 844, "tied": None, "rules": {"beir": "nq"}}, seconds=3.0,
)  # fmt: skip
STS = ResultRow("e5", "stsb", "sts", "spearman", 0.7, 0.6, 0.8, 1500, {"pearson": 0.65}, texts=TextsRead(precision="fp32"), published={"spearman": 0.8})
AVERAGE = ResultRow("bm25", "beir15", "retrieval", "ndcg@10", 0.4, 0.3, 0.5, 40_000, sets={"nq": 0.3, "fever": 0.5})
#: Rows as runs held them before they had their own figures: all that a row of retrieval says, and as little as one said.
OLD: list[dict[str, Any]] = [
    {"model": "bm25", "collection": "docs", "split": "test", "queries": 200, "documents": 844, "missing": 0, "dangling": 0, "tied": 0.0, "low": 0.4, "high": 0.6,
     "prefix": None, "max_length": None, "truncated": None, "precision": None, "pairs_seen": 0, "tokens_seen": 0, "contamination": "none",
     "contaminated": {"share": 0.0, "count": 0}, "clean_items": None, "ndcg@10_clean": None, "published": {"ndcg@10": 0.3}},
    {"model": "e5", "collection": "docs", "pairs_seen": 640, "low": 0.4, "high": 0.6, "difference": -0.1, "difference_low": -0.2, "difference_high": 0.01,
     "verdict": "no difference shown"},
]  # fmt: skip


@pytest.mark.parametrize("row", [RETRIEVAL, STS, AVERAGE])
def test_a_row_goes_to_its_file_and_back(row: ResultRow) -> None:
    assert ResultRow.of_json(json.loads(json.dumps(row.as_json()))) == row


def test_the_names_of_metrics_json() -> None:
    assert flat([RETRIEVAL, STS]) == {
        "e5/docs/ndcg@10": 0.5, "e5/docs/ndcg@10_low": 0.4, "e5/docs/ndcg@10_high": 0.6, "e5/docs/ndcg@10_clean": 0.45, "e5/docs/recall@100": 0.9,
        "e5/docs/recall@100_clean": 0.8, "e5/stsb/spearman": 0.7, "e5/stsb/spearman_low": 0.6, "e5/stsb/spearman_high": 0.8, "e5/stsb/pearson": 0.65,
    }  # fmt: skip
    assert [row.is_retrieval for row in (RETRIEVAL, STS, AVERAGE)] == [True, False, False]
    assert [c.model for c in RETRIEVAL.comparisons] == ["", "start"]


def test_rows_of_older_runs(tmp_path: Path) -> None:
    """Their figures stand in ``metrics.json`` alone; what they did not say is not said of them."""
    write_json(tmp_path / "table.json", OLD)
    figures = {"bm25/docs/ndcg@10": 0.5, "e5/docs/ndcg@10": 0.4, "e5/docs/recall@100": 0.9, "e5/docs/more/ndcg@10": 0.1, "loss": 2.0}
    write_json(tmp_path / "metrics.json", figures)
    write_json(tmp_path / "tasks.json", [STS.as_json()])
    bm25, e5, sts = read_rows(tmp_path)
    assert (e5.value, e5.others["recall@100"], e5.texts, e5.overlap) == (0.4, 0.9, None, None) and sts == STS
    assert e5.difference == Comparison(-0.1, -0.2, 0.01, None, None, "no difference shown")
    for row, old in zip((bm25, e5), OLD, strict=True):
        said = row.as_json()
        assert {key: said[key] for key in old} == old and set(said) - set(old) == {"task", "metric", "value", "others"}
    write_json(tmp_path / "metrics.json", {"bm25/docs/recall@100": 0.5})
    with pytest.raises(UserError, match=r"lacks the key 'bm25/docs/ndcg@10' of a row of table\.json; one of them is damaged"):
        read_rows(tmp_path)


def test_new_rows_need_no_other_file(tmp_path: Path) -> None:
    write_json(tmp_path / "table.json", [RETRIEVAL.as_json()])
    assert read_rows(tmp_path) == [RETRIEVAL]
