"""Exact removal of evaluation texts."""

from __future__ import annotations

from lightning_e5.curation.decontaminate import decontaminate
from lightning_e5.types import TextPair


def test_drops_by_either_text_on_either_side() -> None:
    pairs = [
        TextPair("What is  a Graph?", "p1", "a"),
        TextPair("q2", "A graph is a set.", "a"),
        TextPair("q3", "what is a graph?", "b"),
        TextPair("what is a graph", "p4", "b"),
    ]
    result = decontaminate(pairs, ["what is a graph?", "A GRAPH\nis a set."])
    assert result.kept == [pairs[3]]
    assert (result.dropped_by_query, result.dropped_by_passage) == (1, 2)


def test_without_evaluation_texts_all_are_kept_in_order() -> None:
    pairs = [TextPair(f"q{i}", f"p{i}", "a") for i in range(5)]
    result = decontaminate(iter(pairs), iter([]))
    assert result.kept == pairs and result.dropped_by_query == result.dropped_by_passage == 0
