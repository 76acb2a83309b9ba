"""Tables of two models query by query: wins and losses per collection, and examples of both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from lightning_e5.evaluation.statistics.paired_test import paired_test
from lightning_e5.report.tables.table import Column, Table, number, text
from lightning_e5.results.outcomes import Outcomes, QueryOutcome


def outcome_table(found: Iterable[Outcomes]) -> Table:
    """One row per collection, with means, the paired difference, and how many queries were won and lost."""

    def mean(side: str) -> Callable[[Outcomes], float]:
        return lambda outcomes: float(np.mean([getattr(row, side) for row in outcomes.rows]))

    def difference(outcomes: Outcomes) -> str:
        tested = paired_test([row.ours for row in outcomes.rows], [row.theirs for row in outcomes.rows])
        return f"{tested.mean:+.3f} [{tested.low:+.3f}, {tested.high:+.3f}]"

    return Table.of(found, [
        Column("collection", lambda o: o.collection), Column("model", lambda o: o.model), Column("compared with", lambda o: o.reference),
        Column("metric", lambda o: o.metric), number("mean", mean("ours"), ".3f"), number("mean of the other", mean("theirs"), ".3f"),
        number("difference", difference), number("queries won", lambda o: o.won, ","), number("lost", lambda o: o.lost, ","),
        number("equal", lambda o: len(o.rows) - o.won - o.lost, ","),
    ])  # fmt: skip


def example_table(found: Outcomes, chosen: Sequence[QueryOutcome]) -> Table:
    """Of each query four rows: the query, its relevant passage and what each model ranked first."""
    rows: list[list[object]] = []
    for row in chosen:
        rows.append(["query", f"{row.difference:+.3f}", row.query])
        rows.append(["relevant passage", f"{row.overlap:.0%} of its words", found.passages.get(row.relevant)])
        for model, value, first in ((found.model, row.ours, row.our_first), (found.reference, row.theirs, row.their_first)):
            shown = "nothing found" if first is None else "the relevant passage" if first == row.relevant else found.passages.get(first)
            rows.append([f"first of {model}", value, shown])
    return Table([Column("what"), number("value", format=".3f"), text("text")], rows)
