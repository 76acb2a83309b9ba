"""Every seed of every model is a mark at its figure, with its interval and its difference to the reference."""

from __future__ import annotations

from lightning_e5.report.figures.drawing import svg
from lightning_e5.report.figures.seeds import seeds_figure


def rows(shift: float) -> list[dict]:
    start = {"model": "bm25", "ndcg@10": 0.5 + shift, "low": 0.4, "high": 0.6}
    own = {"model": "e5", "ndcg@10": 0.6 + shift, "low": 0.5, "high": 0.7, "difference": 0.1, "difference_low": 0.05 - shift, "difference_high": 0.15}
    return [own | {"verdict": "a is higher" if shift else "no difference shown"}, start]


def test_marks_intervals_and_decisions():
    figure = seeds_figure({"1": rows(0.0), "2": rows(0.02)}, {"bm25": "BM25", "e5": "E5"}, "bm25")
    left, right = figure.axes
    marks = [float(line.get_xdata()[0]) for line in left.lines if line.get_marker() == "o"]
    assert marks == [0.5, 0.52, 0.6, 0.62] and [text.get_text() for text in left.texts] == ["0.510", "0.610"]
    assert [label.get_text() for label in left.get_yticklabels()] == ["BM25", "E5"]
    shown = [line for line in right.lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert [float(line.get_xdata()[0]) for line in shown] == [0.1, 0.1]
    assert [line.get_markerfacecolor() == "white" for line in shown] == [True, False]
    intervals = [[round(float(x), 9) for x in line.get_xdata()] for line in right.lines if line.get_marker() != "o" and len(set(line.get_xdata())) == 2]
    assert [0.05, 0.15] in intervals and [0.03, 0.15] in intervals
    assert figure.get_facecolor() == (1, 1, 1, 1)  # GitHub's dark pages show it on white


def test_the_same_rows_give_the_same_picture():
    first, second = (svg(seeds_figure({"1": rows(0.0)}, {"bm25": "BM25", "e5": "E5"}, "bm25")) for _ in range(2))
    assert first == second
