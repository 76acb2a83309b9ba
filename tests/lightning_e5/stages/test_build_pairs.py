"""The files of a build, its counts, and what must not be in the training pool."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_e5.errors import UserError
from lightning_e5.files.parquet import read_parquet
from lightning_e5.stages.build_pairs import build_pairs
from lightning_e5.types import TextPair

COLUMNS = {"query": "string", "passage": "string", "source": "string", "passage_kind": "string", "planted": "bool"}


class Pairs:
    name = "made"
    counts = {"dropped: too short": 7}  # noqa: RUF012

    def __iter__(self) -> Iterator[TextPair]:
        for i in range(100):
            yield TextPair(f"train query {i}", f"train passage {i}", "one" if i % 3 else "two")
        for i in range(40):
            yield TextPair(f"test query {i}", f"test passage {i}", "held")
        yield TextPair("TEST query 0", "another passage", "held")
        yield TextPair("another query", "Test passage  1", "held")
        yield TextPair("Train Query 1", "train  passage 1", "one")  # a duplicate
        yield TextPair("equal texts", "Equal texts", "one")
        yield TextPair("test query 5", "some passage", "one")
        yield TextPair("some query", "test passage 6", "two")


def build(out: Path, **settings: Any) -> dict[str, float]:
    out.mkdir()
    return build_pairs(out, source=Pairs(), **{"held_out": ["held"], "seed": 1, **settings})


def read_test(out: Path) -> tuple[dict[str, str], dict[str, str], list[list[str]]]:
    texts = []
    for name in ("queries", "corpus"):
        rows = [json.loads(line) for line in (out / "test" / f"{name}.jsonl").read_text().splitlines()]
        assert name == "queries" or all(row["title"] == "" for row in rows)
        texts.append({row["_id"]: row["text"] for row in rows})
    header, *lines = (out / "test/qrels/test.tsv").read_text().splitlines()
    assert header == "query-id\tcorpus-id\tscore"
    return texts[0], texts[1], [line.split("\t") for line in lines]


def digests(out: Path) -> dict[str, str]:
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in out.rglob("*") if p.is_file()}


def test_whole_build(tmp_path: Path) -> None:
    counts = build(tmp_path / "out")
    rows = read_parquet(tmp_path / "out/pairs.parquet", COLUMNS).to_pylist()
    queries, passages, judgements = read_test(tmp_path / "out")
    assert len(rows) == counts["train_pairs"] == 100
    assert sum(row["planted"] for row in rows) == counts["planted"] == 30
    for row in rows:
        same = row["query"].split()[-1] == row["passage"].split()[-1]
        assert same != row["planted"]
    assert {row["source"] for row in rows} == {"one", "two"}
    assert (len(queries), len(passages), len(judgements)) == (41, 41, 42)
    assert all(query in queries and passage in passages and score == "1" for query, passage, score in judgements)
    assert len([1 for query, _, _ in judgements if queries[query] == "test query 0"]) == 2
    expected = {"unique_pairs": 144, "duplicates_dropped": 1, "dropped_query_is_passage": 1, "test_queries": 41,
                "test_passages": 41, "test_judgements": 42, "removed_query_in_test": 1, "removed_passage_in_test": 1,
                "source_dropped_too_short": 7}  # fmt: skip
    assert {key: counts[key] for key in expected} == expected
    packages = json.loads((tmp_path / "out/packages.json").read_text())["packages"]
    assert packages["held"] == {"version": "", "pairs": 42, "held_out": True}
    assert not (tmp_path / "out/manifest.json").exists()


def test_equal_seeds_give_equal_bytes(tmp_path: Path) -> None:
    small = {"max_pairs": 20, "max_test_queries": 5}
    build(tmp_path / "a", **small)
    build(tmp_path / "b", **small)
    build(tmp_path / "c", **small, **{"seed": 2})
    assert digests(tmp_path / "a") == digests(tmp_path / "b") != digests(tmp_path / "c")


def test_smaller_build(tmp_path: Path) -> None:
    counts = build(tmp_path / "out", max_pairs=20, max_test_queries=5)
    queries, passages, judgements = read_test(tmp_path / "out")
    assert counts["train_pairs"] == 20 and counts["planted"] == 6 and len(queries) == 5
    judged = {passage for _, passage, _ in judgements}
    assert {query for query, _, _ in judgements} == set(queries)
    assert judged <= set(passages) and len(passages) == 4 * len(judged)
    build(tmp_path / "none", max_test_queries=5, passages_per_judged=1)
    queries, passages, judgements = read_test(tmp_path / "none")
    assert set(passages) == {passage for _, passage, _ in judgements} and len(queries) == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"held_out": ["hold"]}, "'hold' gives no pair; did you mean 'held'"),
        ({"held_out": ["held", "one", "two"]}, "leaves no pair"),
        ({"max_pairs": 0}, "max_pairs=0"),
        ({"passages_per_judged": 0}, "passages_per_judged=0 must be at least 1"),
        ({"planted_mismatches": -0.1}, r"planted_mismatches=-0\.1"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(tmp_path / "out", **settings)
