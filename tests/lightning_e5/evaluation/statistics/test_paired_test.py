"""Intervals and p-values: by loops, by simulation, and the A/A test."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lightning_e5.errors import UserError
from lightning_e5.evaluation.statistics import paired_test as module
from lightning_e5.evaluation.statistics.decision import NO_DIFFERENCE
from lightning_e5.evaluation.statistics.paired_test import (
    bootstrap_interval,
    paired_test,
    paired_tests,
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
    monkeypatch.setattr(module, "_DRAWS", 40)  # 2 samples at a time
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
        claimed += paired_test(a, b, samples=300, seed=trial).decision != NO_DIFFERENCE
    assert claimed / 150 <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 150)


def test_a_planted_difference_is_found():
    rng = np.random.default_rng(5)
    b = rng.random(500)
    a = b + 0.02 + rng.normal(0, 0.1, 500)
    found = paired_test(a, b)
    assert found.decision == "higher"
    assert found.low < found.mean < found.high
    assert found.low > 0
    assert found.p_value < 0.05
    mirrored = paired_test(b, a)
    assert mirrored.decision == "lower"
    assert mirrored.mean == -found.mean
    assert paired_test(a, b) == found


def test_equal_values_show_no_difference():
    difference = paired_test(np.ones(30), np.ones(30))
    assert (difference.low, difference.high, difference.p_value) == (0.0, 0.0, 1.0)
    assert difference.decision == NO_DIFFERENCE
    assert paired_test([1.0], [0.0]).decision == NO_DIFFERENCE  # one query shows nothing


def test_many_at_once_equal_one_by_one(monkeypatch):
    draw = np.random.default_rng(0)
    pairs = [(draw.random(size) + lift, draw.random(size)) for size in (9, 40, 40, 300, 9) for lift in (0.0, 0.05, 0.4)]
    pairs.append((pairs[0][0], pairs[0][0]))
    alone = [paired_test(a, b) for a, b in pairs]
    assert len({d.decision for d in alone}) > 1
    for draws in (1 << 20, 1000):
        monkeypatch.setattr(module, "_DRAWS", draws)
        for together, one in zip(paired_tests(pairs), alone, strict=True):
            assert (together.mean, together.p_value, together.decision) == (one.mean, one.p_value, one.decision)
            assert (together.low, together.high) == pytest.approx((one.low, one.high), abs=1e-12)
    assert paired_tests([]) == []


def test_errors():
    with pytest.raises(UserError, match="at least one value"):
        bootstrap_interval([])
    with pytest.raises(UserError, match="value 1 is not"):
        bootstrap_interval([1.0, float("nan")])
    with pytest.raises(UserError, match="confidence"):
        bootstrap_interval([1.0], confidence=1.0)
    with pytest.raises(UserError, match="same queries"):
        paired_test([1.0, 2.0], [1.0])
    with pytest.raises(UserError, match="same queries"):
        paired_tests([([1.0, 2.0], [1.0])])
    with pytest.raises(UserError, match="at least one value"):
        paired_tests([([], [])])
    with pytest.raises(UserError, match="finite"):
        paired_tests([([float("inf")], [1.0])])
