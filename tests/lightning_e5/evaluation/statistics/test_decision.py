"""One rule of what a difference shows: Holm by its definition, and a table decided together."""

from __future__ import annotations

import pytest

from lightning_e5.errors import UserError
from lightning_e5.evaluation.statistics.decision import (
    NO_DIFFERENCE,
    NO_INTERVAL,
    decide,
    decide_together,
    holm,
    stored_decision,
)


def test_holm_equals_the_definition():
    p_values = [0.01, 0.04, 0.03, 0.005, 0.04]
    order = sorted(range(5), key=lambda i: p_values[i])
    expected, highest = [0.0] * 5, 0.0
    for step, i in enumerate(order):
        highest = max(highest, min(1.0, (5 - step) * p_values[i]))
        expected[i] = highest
    assert holm(p_values) == pytest.approx(expected)
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def row(p_value, low=0.01, high=0.05):
    return {"difference": (low + high) / 2, "difference_low": low, "difference_high": high, "p_value": p_value}


def test_decisions_of_a_table_hold_together():
    alone = [row(0.03)]
    decide_together(alone)
    assert (alone[0]["p_holm"], alone[0]["verdict"]) == (0.03, "a is higher")
    table = [{"model": "the reference"}, row(0.03), row(0.001), row(0.004, -0.05, -0.01), row(0.02), row(0.001, -0.01, 0.02)]
    decide_together(table)
    assert table[0] == {"model": "the reference"}
    assert [r["p_holm"] for r in table[1:]] == pytest.approx(holm([0.03, 0.001, 0.004, 0.02, 0.001]))
    assert [r["p_holm"] for r in table[1:]] == pytest.approx([0.04, 0.005, 0.012, 0.04, 0.005])
    assert [r["verdict"] for r in table[1:]] == ["a is higher", "a is higher", "b is higher", "a is higher", NO_DIFFERENCE]
    wider = [*table[1:], *(row(0.5) for _ in range(5))]
    decide_together(wider)
    assert [r["verdict"] for r in wider[:4]] == [NO_DIFFERENCE, "a is higher", "b is higher", NO_DIFFERENCE]
    decide_together([])


@pytest.mark.parametrize(
    ("difference", "interval", "p_value", "decision"),
    [
        (0.02, (0.01, 0.03), 0.05, "higher"),
        (-0.02, (-0.03, -0.01), 0.01, "lower"),
        (0.02, (0.01, 0.03), 0.051, NO_DIFFERENCE),
        (0.02, (-0.01, 0.03), 0.01, NO_DIFFERENCE),
        (0.02, (0.0, 0.03), 0.01, NO_DIFFERENCE),
        (0.02, (0.01, 0.03), None, NO_DIFFERENCE),
        (0.02, (None, None), None, NO_INTERVAL),
    ],
)
def test_a_difference_is_claimed_by_interval_and_p_value(difference, interval, p_value, decision):
    assert decide(difference, interval, p_value) == decision


def test_stored_decisions_are_read():
    rows = [row(0.001), row(0.001, -0.05, -0.01), row(0.5)]
    decide_together(rows)
    assert [stored_decision(r) for r in rows] == ["higher", "lower", NO_DIFFERENCE] and stored_decision({"model": "reference"}) is None


def test_unknown_p_values_are_no_tests():
    assert holm([None, 0.01, None, 0.04]) == [None, 0.02, None, 0.04]
    with pytest.raises(UserError, match="between 0 and 1"):
        holm([1.5])
