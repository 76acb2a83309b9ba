"""Intervals and p-values: by loops, by simulation, and the A/A test."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lightning_e5.errors import UserError
from lightning_e5.evaluation.statistics import significance
from lightning_e5.evaluation.statistics.significance import (
    NO_DIFFERENCE,
    bootstrap_interval,
    correct_verdicts,
    holm,
    paired_difference,
    sign_flip_p_value,
)


def test_interval_equals_the_loop(monkeypatch):
    values = np.random.default_rng(0).random(17)
    expected = bootstrap_interval(values, samples=300, confidence=0.9, seed=5)
    rng = np.random.default_rng(5)
    means = []
    for _ in range(300):
        drawn = rng.integers(17, size=17)
        means.append(sum(values[i] for i in drawn) / 17)
    assert expected == pytest.approx((np.quantile(means, 0.05), np.quantile(means, 0.95)), abs=1e-12)
    monkeypatch.setattr(significance, "_DRAWS", 40)  # 2 samples at a time
    assert bootstrap_interval(values, samples=300, confidence=0.9, seed=5) == pytest.approx(expected, abs=1e-12)


def test_p_value_equals_all_sign_patterns():
    values = np.random.default_rng(1).normal(0.3, 1.0, 9)
    observed = abs(sum(values))
    extreme = sum(
        abs(sum(s * v for s, v in zip(signs, values, strict=True))) >= observed - 1e-12
        for signs in itertools.product([-1, 1], repeat=9)
    )
    assert sign_flip_p_value(values) == extreme / 2**9


def test_random_signs_come_near_the_exact_p_value():
    values = np.random.default_rng(2).normal(0.4, 1.0, 14)
    exact = sign_flip_p_value(values, samples=2**14)
    drawn = sign_flip_p_value(values, samples=2**14 - 1)
    assert drawn == pytest.approx(exact, abs=4 * np.sqrt(exact / 2**14))
    assert sign_flip_p_value(np.ones(100), samples=500) == 1 / 501  # never 0


def test_interval_covers_the_true_mean():
    rng = np.random.default_rng(3)
    hits = 0
    for trial in range(200):
        low, high = bootstrap_interval(rng.beta(0.5, 0.7, 100), samples=300, seed=trial)
        hits += low <= 0.5 / 1.2 <= high
    assert 0.90 <= hits / 200 <= 0.99


@pytest.mark.parametrize("queries", [12, 120])
def test_equal_systems_are_called_different_in_five_percent_at_most(queries):
    rng = np.random.default_rng(4)
    claimed = 0
    for trial in range(150):
        difficulty = rng.random(queries)
        a, b = (np.clip(difficulty + rng.normal(0, 0.2, queries), 0, 1) for _ in range(2))
        claimed += paired_difference(a, b, samples=300, seed=trial).verdict != NO_DIFFERENCE
    assert claimed / 150 <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 150)


def test_a_planted_difference_is_found():
    rng = np.random.default_rng(5)
    b = rng.random(500)
    a = b + 0.02 + rng.normal(0, 0.1, 500)
    found = paired_difference(a, b)
    assert found.verdict == "a is higher"
    assert found.low < found.mean < found.high
    assert found.low > 0
    assert found.p_value < 0.05
    mirrored = paired_difference(b, a)
    assert mirrored.verdict == "b is higher"
    assert mirrored.mean == -found.mean
    assert paired_difference(a, b) == found


def test_equal_values_show_no_difference():
    difference = paired_difference(np.ones(30), np.ones(30))
    assert (difference.low, difference.high, difference.p_value) == (0.0, 0.0, 1.0)
    assert difference.verdict == NO_DIFFERENCE
    assert paired_difference([1.0], [0.0]).verdict == NO_DIFFERENCE  # one query shows nothing


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


def test_verdicts_of_a_table_hold_together():
    alone = [row(0.03)]
    correct_verdicts(alone)
    assert (alone[0]["p_holm"], alone[0]["verdict"]) == (0.03, "a is higher")
    table = [{"model": "the reference"}, row(0.03), row(0.001), row(0.004, -0.05, -0.01), row(0.02), row(0.001, -0.01, 0.02)]
    correct_verdicts(table)
    assert table[0] == {"model": "the reference"}
    assert [r["p_holm"] for r in table[1:]] == pytest.approx(holm([0.03, 0.001, 0.004, 0.02, 0.001]))
    assert [r["p_holm"] for r in table[1:]] == pytest.approx([0.04, 0.005, 0.012, 0.04, 0.005])
    assert [r["verdict"] for r in table[1:]] == ["a is higher", "a is higher", "b is higher", "a is higher", NO_DIFFERENCE]
    wider = [*table[1:], *(row(0.5) for _ in range(5))]
    correct_verdicts(wider)
    assert [r["verdict"] for r in wider[:4]] == [NO_DIFFERENCE, "a is higher", "b is higher", NO_DIFFERENCE]
    correct_verdicts([])


def test_errors():
    with pytest.raises(UserError, match="at least one value"):
        bootstrap_interval([])
    with pytest.raises(UserError, match="value 1 is not"):
        bootstrap_interval([1.0, float("nan")])
    with pytest.raises(UserError, match="confidence"):
        bootstrap_interval([1.0], confidence=1.0)
    with pytest.raises(UserError, match="same queries"):
        paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(UserError, match="between 0 and 1"):
        holm([1.5])
