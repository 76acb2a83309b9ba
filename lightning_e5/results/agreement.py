"""An ablation's differences beside the paper's: does ours have the paper's direction, the other one, or can it not be told?

Sizes are not compared: other data, other encoders and other trainings stand behind them. The paper gives no intervals, so
the direction of its figures is taken as it stands; of ours only a difference that is shown has one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from lightning_e5.evaluation.statistics.decision import Decision
from lightning_e5.results.comparison import AblationComparison, FurtherDifference, Row

Agreement = Literal["agrees", "disagrees", "cannot be told"]
CANNOT_BE_TOLD: Agreement = "cannot be told"


def direction(ours: Decision | Literal[""], paper: float, paper_baseline: float) -> Agreement:
    """Whether our difference to the baseline has the direction of the paper's.

    Args:
        ours: what our difference shows, over the whole table.
        paper: the paper's figure of the variant; higher is better, as of all its figures and of all metrics that are reported.
        paper_baseline: the paper's figure of the baseline.

    Returns:
        ``cannot be told`` where ours is not shown or the paper's two figures are equal.
    """
    if ours not in ("higher", "lower") or paper == paper_baseline:
        return CANNOT_BE_TOLD
    return "agrees" if (ours == "higher") == (paper > paper_baseline) else "disagrees"


def column_beside(comparison: AblationComparison, metric: str) -> str | None:
    """The column of the paper's figures that a metric stands beside; None where it stands beside none.

    It is the one that ``paper.beside`` of the ablation's file names; without ``beside`` the first metric has the first column.
    """
    paper = comparison.data.paper or {}
    figures = paper.get("figures") or {}
    beside = paper.get("beside")
    if beside is None:
        beside = {comparison.metrics[0]: next(iter(figures), None)}
    column = beside.get(metric)
    return column if column in figures else None


def agreement(comparison: AblationComparison, row: Row | FurtherDifference, metric: str) -> Agreement | None:
    """Whether a variant's difference in a metric, to the baseline or to another variant, agrees with the paper's.

    Returns:
        None of the baseline, of a variant that was not measured, and where the paper has no figure of one of the two.
    """
    names = (row.variant, row.reference) if isinstance(row, FurtherDifference) else (row.name, comparison.data.baseline)
    cell, column = row.cells.get(metric), column_beside(comparison, metric)
    papers = {other.name: other.paper for other in comparison.rows}
    if cell is None or cell.difference is None or column is None or any(column not in papers[name] for name in names):
        return None
    return direction(cell.decision, papers[names[0]][column], papers[names[1]][column])


def agreements(comparison: AblationComparison) -> Iterator[tuple[str, str, Agreement]]:
    """``(variant, metric, agreement)`` of all differences that stand beside one of the paper's, metric by metric.

    A difference to another variant than the baseline is named ``variant to other``.
    """
    named: list[tuple[str, Row | FurtherDifference]] = [(row.name, row) for row in comparison.rows]
    named += [(f"{row.variant} to {row.reference}", row) for row in comparison.further]
    for metric in comparison.metrics:
        for name, row in named:
            found = agreement(comparison, row, metric)
            if found is not None:
                yield name, metric, found
