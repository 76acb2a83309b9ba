"""Re-ranking: MAP and MRR by hand, ties, and the format's faults."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from lightning_e5.errors import UserError
from lightning_e5.evaluation.tasks.reranking import CandidateList, RerankingTask, positive_ranks


def plane(cosine: float) -> list[float]:
    return [cosine, float(np.sqrt(1 - cosine**2))]


def test_map_and_mrr_by_hand(table) -> None:  # type: ignore[no-untyped-def]
    vectors = {"q": [1.0, 0.0], "r": [1.0, 0.0], "p1": plane(0.9), "p2": plane(0.5), "n1": plane(0.7), "n2": plane(0.95)}
    lists = [CandidateList("q", ("p1", "p2"), ("n1",)), CandidateList("r", ("p1",), ("n1", "n2"))]
    result = RerankingTask("toy", lists).evaluate(table(vectors))
    assert result.value == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)
    assert result.others["mrr"] == pytest.approx((1 + 1 / 2) / 2)
    assert result.facts["tied"] == 0.0 and result.items == 2 and result.low <= result.value <= result.high


def test_average_precision_is_scikit_learns_where_nothing_is_tied() -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        cosines = draw.permutation(10) / 10
        ranks = positive_ranks(cosines, 3)
        expected = average_precision_score([1] * 3 + [0] * 7, cosines)
        assert np.mean(np.arange(1, 4) / ranks) == pytest.approx(expected)


def test_a_model_that_tells_nothing_apart_gains_nothing(table) -> None:  # type: ignore[no-untyped-def]
    assert positive_ranks([0.5] * 5, 2).tolist() == [4, 5]
    same = {t: [1.0, 0.0] for t in ("q", "p", "n1", "n2", "n3")}
    result = RerankingTask("toy", [CandidateList("q", ("p",), ("n1", "n2", "n3"))]).evaluate(table(same))
    assert result.value == 0.25 and result.facts["tied"] == 1.0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"positive": ["a"], "negative": ["b"]}, r"lists\.jsonl:2: the key 'query'"),
        ({"query": "q", "positive": [], "negative": ["b"]}, r"lists\.jsonl:2: the key 'positive'"),
        ({"query": "q", "positive": ["a"], "negative": ["b", ""]}, r"lists\.jsonl:2: the key 'negative'"),
        ({"query": "q", "positive": ["a"], "negative": ["b", "a"]}, r"lists\.jsonl:2: the candidate 'a' is there twice"),
    ],
)  # fmt: skip
def test_faults_are_named(tmp_path: Path, row: dict[str, object], message: str) -> None:
    good = {"query": "q", "positive": ["a"], "negative": ["b"]}
    path = tmp_path / "lists.jsonl"
    path.write_text(json.dumps(good) + "\n", encoding="utf-8")
    assert RerankingTask.load(path).texts() == ["q", "a", "b"]
    path.write_text(json.dumps(good) + "\n" + json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        RerankingTask.load(path)
    path.write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="0 candidate lists"):
        RerankingTask.load(path)
