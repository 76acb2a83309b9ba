"""What an adaptation's end says, for every outcome of its comparisons."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_e5.evaluation.statistics.paired_test import Difference
from lightning_e5.report.tables.adaptation import adaptation_table, changed_lines, changed_records, decision_lines
from lightning_e5.result_row import Comparison, ResultRow
from lightning_e5.results.adaptation import Adaptation, General
from lightning_e5.results.outcomes import Outcomes, QueryOutcome

SHOWN = {"+": "a is higher", "-": "b is higher", "0": "no difference shown"}


def compared(sign: str, model: str) -> Comparison:
    mean = {"+": 0.1, "-": -0.1, "0": 0.01}[sign]
    return Comparison(mean, mean - 0.05, mean + 0.05, 0.01, 0.02, SHOWN[sign], model)


def found(adapted_start: str, adapted_bm25: str, both_adapted: str, both_start: str = "+", start_bm25: str = "0", **changes: Any) -> Adaptation:
    """An adaptation whose comparisons show what the signs say."""

    def row(model: str, value: float, bm25: str | None, *previous: Comparison) -> ResultRow:
        difference = None if bm25 is None else compared(bm25, "")
        return ResultRow(model, "own-texts", "retrieval", "ndcg@10", value, value - 0.1, value + 0.1, 50, difference=difference, previous=previous)

    rows = [
        row("bm25", 0.5, None), row("start", 0.6, start_bm25), row("adapted", 0.7, adapted_bm25, compared(adapted_start, "start")),
        row("bm25+adapted", 0.8, "+", compared(both_adapted, "adapted"), compared(both_start, "start")),
    ]  # fmt: skip
    given = {"best_step": 20, "general": None, **changes}
    return Adaptation(SimpleNamespace(path=Path("runs/x")), {row.model: row for row in rows}, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "first", "second"),
    [
        (found("+", "+", "+"), "use runs/x/encoder: it is better than the start on your test (+0.100 nDCG@10 [+0.050, +0.150])", "with BM25 beside it is better still: rank by both (bm25+adapted, reciprocal rank fusion): +0.100 to the adapted encoder"),
        (found("+", "+", "0"), "use runs/x/encoder", "the adapted encoder is better than BM25 on your test; ranking by both is not shown to be better"),
        (found("+", "+", "-"), "use runs/x/encoder", "the adapted encoder is better than BM25 on your test; ranking by both is worse"),
        (found("+", "-", "0"), "use runs/x/encoder", "BM25 alone is better than the adapted encoder: +0.100 [+0.050, +0.150]; search your texts with it"),
        (found("0", "0", "0"), "keep the start: the adapted encoder is not shown to be better on your test (+0.010 nDCG@10 [-0.040, +0.060])", "with BM25 beside it is better still: rank by both (bm25+adapted, reciprocal rank fusion): +0.100 to the start"),
        (found("0", "0", "0", "0"), "keep the start", "the start is not shown to differ from BM25 on your test"),
        (found("0", "0", "0", "0", "-"), "keep the start", "BM25 alone is better than the start"),
        (found("-", "0", "0", "0"), "keep the start: the adapted encoder is worse on your test", "the start"),
        (found("+", "+", "+", best_step=0), "keep the start: no step of the training was better on the validation", "with BM25"),
        (found("+", "+", "0", best_step=None), "use runs/x/encoder", "the adapted encoder is better"),
    ],
)  # fmt: skip
def test_the_line_that_decides_and_what_bm25_says(given: Adaptation, first: str, second: str) -> None:
    lines = decision_lines(given)
    assert len(lines) == 2 and lines[0].startswith(first) and lines[1].startswith(second)


def test_what_was_forgotten() -> None:
    for decision, said in (("lower", "some of it was forgotten (keep_general: 0.5 mixes the weights)"), ("no difference shown", "no difference shown")):
        general = General("spearman", 40, 0.8, 0.7, Difference(-0.1, -0.15, -0.05, 0.01), decision)  # type: ignore[arg-type]
        line = decision_lines(found("+", "+", "0", general=general))[-1]
        assert line == f"general: spearman 0.800 before, 0.700 after over 40 items, -0.100 [-0.150, -0.050]: {said}"


def test_the_table_has_the_start_first_and_every_difference_where_it_belongs() -> None:
    table = adaptation_table(found("+", "0", "-"))
    assert [row[0] for row in table.cells] == ["start", "bm25", "adapted", "bm25+adapted"]
    assert table.header[-3:] == ["to start", "to bm25", "to adapted"]
    assert table.cells[2][-3:] == ["+0.100 [+0.050, +0.150] better", "+0.010 [-0.040, +0.060] no difference", ""]
    assert table.cells[3][-1].endswith("worse") and table.cells[1][-3:] == ["", "", ""]


def test_the_changed_queries_shortened_and_in_full() -> None:
    passages = {"d1": "word " * 60, "d2": "another"}
    rows = (
        QueryOutcome("q1", "asked", 1.0, 0.5, 1, 0.0, "d1", "d1", "d2"), QueryOutcome("q2", "lost", 0.0, 1.0, 1, 0.0, "d1", None, "d1"),
        QueryOutcome("q3", "equal", 0.5, 0.5, 1, 0.0, "d1", "d1", "d1"),
    )  # fmt: skip
    changed = Outcomes("adapted", "start", "own-texts", "ndcg@10", rows, passages)
    lines = changed_lines(changed)
    assert lines[0] == "1 queries got better, the 1 that changed most:" and "  +0.50  asked" in lines and "  -1.00  lost" in lines
    assert any(line.endswith("first of adapted: nothing found") for line in lines) and max(map(len, lines)) < 150
    better, worse = changed_records(changed)
    assert better["relevant"] == passages["d1"] and better["first"] == {"adapted": passages["d1"], "start": "another"}
    assert (better["better"], worse["better"], worse["ndcg@10"]) == (True, False, {"adapted": 0.0, "start": 1.0})
