"""What a difference shows: one rule and one set of words for every table, and Holm's correction over a table.

Two things must hold before a difference is claimed: its 95% interval leaves out 0, and its p-value, after Holm's
correction where the table has several, is at most 0.05. With few queries the percentile interval alone is too narrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from lightning_e5.errors import UserError

#: The error rate of a table: of equal models it claims a difference with at most this probability.
LEVEL = 0.05
#: ``no interval``: nothing is known of the difference's variance, so nothing was tested.
Decision = Literal["higher", "lower", "no difference shown", "no interval"]
NO_DIFFERENCE: Decision = "no difference shown"
NO_INTERVAL: Decision = "no interval"
#: What ``table.json`` says, under the key ``verdict``, of a row (a) and the model that it is compared with (b).
_IN_TABLE: dict[str, str] = {"higher": "a is higher", "lower": "b is higher"}


def decide(difference: float, interval: tuple[float | None, float | None], p_value: float | None) -> Decision:
    """What a difference shows.

    Args:
        difference: its mean.
        interval: its 95% interval; Nones where there is none.
        p_value: of no difference, adjusted by `holm` where a table has several; None where it was not tested.
    """
    low, high = interval
    if low is None or high is None:
        return NO_INTERVAL
    if p_value is None or p_value > LEVEL or low <= 0 <= high:
        return NO_DIFFERENCE
    return "higher" if difference > 0 else "lower"


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p-values of a family of tests, in the order given: the table's error rate is that of one test.

    None stays None and is not counted as a test.

    Source: Holm, Scandinavian Journal of Statistics 6, 1979.
    """
    p = np.array([value for value in p_values if value is not None], dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise UserError(f"p-values must lie between 0 and 1: {list(p_values)}")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(stepped, 1.0)
    known = iter(adjusted)
    return [None if value is None else float(next(known)) for value in p_values]


def decide_together(rows: Sequence[dict[str, Any]]) -> None:
    """Decide the differences of a whole ``table.json``: what a row shows holds where all of the table's are looked at.

    Args:
        rows: those that have ``difference``, ``difference_low``, ``difference_high`` and ``p_value`` get ``p_holm`` and
            ``verdict``, as `decide` has it.

    Source: Holm 1979; the recommendation of Smucker et al. for the test itself.
    """
    compared = [row for row in rows if "p_value" in row]
    for row, adjusted in zip(compared, holm([row["p_value"] for row in compared]), strict=True):
        decision = decide(row["difference"], (row["difference_low"], row["difference_high"]), adjusted)
        row |= {"p_holm": adjusted, "verdict": _IN_TABLE.get(decision, decision)}


def stored_decision(row: Mapping[str, Any]) -> Decision | None:
    """The decision in a row of ``table.json``; None of a row that is compared with nothing."""
    words = {_IN_TABLE.get(decision, decision): decision for decision in get_args(Decision)}
    return words.get(str(row.get("verdict")))
