"""Won and lost queries: values per query, overlap of words and groups against small cases worked out by hand."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from lightning_e5.files.parquet import write_parquet
from lightning_e5.files.storage import write_text
from lightning_e5.report.figures import outcomes as error_figures
from lightning_e5.report.figures.drawing import svg
from lightning_e5.report.tables import outcomes as tables
from lightning_e5.results import outcomes as error_data
from lightning_e5.results.outcomes import QueryOutcome
from lightning_e5.results.run import RunData

PASSAGES = {"a 1": "Sorting a list of words", "b": "A graph has nodes", "c": "nothing"}
QUERIES = {"q0": "sort a list", "q1": "nodes of a graph", "q2": "what is it", "q3": "graph, graph"}
QRELS = {"q0": {"a 1": 1}, "q1": {"b": 2, "c": 1}, "q2": {"c": 1}, "q3": {"b": 1, "c": 0}}


@pytest.fixture
def judged(make_run):
    """A run with four queries; the encoder wins q0, loses q1 and q3, and ties q2."""
    path = make_run(queries=4)
    test = path / "stages" / "pairs" / "test"
    write_text(test / "corpus.jsonl", "".join(json.dumps({"_id": d, "title": "", "text": t}) + "\n" for d, t in PASSAGES.items()))
    write_text(test / "queries.jsonl", "".join(json.dumps({"_id": q, "text": t}) + "\n" for q, t in QUERIES.items()))
    lines = [f"{q}\t{d}\t{grade}\n" for q, grades in QRELS.items() for d, grade in grades.items()]
    write_text(test / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore\n" + "".join(lines))
    for model, values, first in (("second", [1, 0.2, 0.5, 0], "a%201"), ("bm25", [0.4, 0.6, 0.5, 1], "b")):
        folder = path / "stages" / "evaluate" / model / "docs"
        write_parquet(folder / "per_query.parquet", {"query_id": list(QUERIES), "ndcg@10": np.array(values, float)})
        ranked = [f"{q} Q0 {first} 1 2.0 lightning_e5\n{q} Q0 c 2 1.0 lightning_e5\n" for q in QUERIES if (model, q) != ("bm25", "q3")]
        write_text(folder / "run.trec", "".join(ranked))
    return RunData(path)


def test_outcomes(judged):
    assert error_data.two_models(judged, "docs") == ("second", "bm25")
    found = error_data.outcomes(judged, "second", "bm25", "docs")
    assert (found.won, found.lost, len(found.rows)) == (1, 2, 4)
    rows = {row.query_id: row for row in found.rows}
    assert [rows[q].overlap for q in QUERIES] == [pytest.approx(2 / 3), 0.75, 0, 1]  # "sort" is not "sorting"
    assert rows["q1"].relevant == "b"  # of two relevant passages the one with more of the query's words
    assert rows["q0"].our_first == "a 1" and rows["q3"].their_first is None
    assert [r.query_id for r in found.largest(5, won=True)] == ["q0"]
    assert [r.query_id for r in found.largest(5, won=False)] == ["q3", "q1"]
    assert found.passages == {"a 1": PASSAGES["a 1"], "b": PASSAGES["b"], "c": PASSAGES["c"]}
    shown = tables.example_table(found, found.largest(1, won=False)).cells
    assert [row[2] for row in shown] == ["graph, graph", PASSAGES["b"], PASSAGES["a 1"], "nothing found"]
    table = tables.outcome_table([found]).cells
    assert table[0][4:] == ["0.425", "0.625", table[0][6], "1", "2", "1"] and table[0][6].startswith("-0.200 [")


def test_other_models_where_there_is_no_bm25(judged):
    assert error_data.two_models(judged, "docs", model="bm25") == ("bm25", "first")
    assert error_data.two_models(judged, "docs", reference="first") == ("second", "first")
    assert error_data.two_models(judged, "elsewhere") is None


def row(words: int, difference: float, overlap: float = 0.5) -> QueryOutcome:
    return QueryOutcome(f"q{words}", "", difference, 0.0, words, overlap, "d", None, None)


def test_groups_hold_every_query_once_and_never_part_equal_values():
    draw = np.random.default_rng(1)
    rows = [row(int(w), float(d)) for w, d in zip(draw.integers(1, 9, 200), draw.normal(size=200), strict=True)]
    groups = error_data.by_length(error_data.Outcomes("m", "r", "c", "ndcg@10", tuple(rows), {}))
    assert sum(group.queries for group in groups) == 200 and 2 <= len(groups) <= 5
    spans = [[int(end) for end in group.label.split("–")] for group in groups]
    assert all(left[-1] < right[0] for left, right in itertools.pairwise(spans))
    for group, span in zip(groups, spans, strict=True):
        own = [r.difference for r in rows if span[0] <= r.words <= span[-1]]
        assert group.queries == len(own) and group.difference == pytest.approx(np.mean(own))
        assert group.interval is not None and group.interval[0] < group.difference < group.interval[1]


def test_few_or_equal_queries():
    few = error_data.Outcomes("m", "r", "c", "ndcg@10", tuple(row(3, d) for d in (0.1, 0.2)), {})
    (group,) = error_data.by_length(few)
    assert (group.label, group.queries, group.interval) == ("3", 2, None)
    assert [g.label for g in error_data.by_overlap(few)] == ["50%"]
    none = error_data.Outcomes("m", "r", "c", "ndcg@10", (), {})
    assert error_data.by_length(none) == [] and error_figures.query_by_query(none) is None and error_figures.by_kind_of_query(none) is None


def test_pictures_count_every_query(judged):
    found = error_data.outcomes(judged, "second", "bm25", "docs")
    figure = error_figures.query_by_query(found)
    assert sum(len(points.get_offsets()) for points in figure.axes[0].collections) == 4
    assert svg(figure) == svg(error_figures.query_by_query(found))
    assert svg(error_figures.by_kind_of_query(found)).startswith("<?xml")
