"""Two models' answers compared: the measures are scipy's and scikit-learn's, the tests those of loops, and equal models differ in nothing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr
from sklearn.metrics import average_precision_score

from lightning_e5.errors import UserError
from lightning_e5.evaluation.statistics.answers import average_precision_of, crossed_test, ranking_test, spearman_of


def test_measures_of_resampled_items_with_ties() -> None:
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 9, 40) / 9, rng.integers(0, 6, 40).astype(float)
    labels = rng.integers(0, 2, 40)
    items = rng.integers(40, size=(25, 40))
    found = spearman_of(truth)(scores[items], items)
    assert found == pytest.approx([spearmanr(scores[row], truth[row]).statistic for row in items], abs=1e-12)
    precision = average_precision_of(labels)(scores[items], items)
    assert precision == pytest.approx([average_precision_score(labels[row], scores[row]) for row in items], abs=1e-12)
    assert spearman_of(truth)(np.ones((1, 40)), items[:1]) == [0.0]
    assert np.isnan(average_precision_of(np.zeros(3))(np.arange(3.0)[None], np.arange(3)[None]))


@pytest.mark.parametrize("measured", ["spearman", "average precision"])
def test_the_test_is_that_of_loops(measured: str) -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, 30).astype(float) if measured == "average precision" else rng.normal(size=30)
    good, bad = truth + 0.6 * rng.normal(size=30), 40 * (truth + 2 * rng.normal(size=30))  # on another scale

    def one(scores: np.ndarray, rows: np.ndarray) -> float:
        return float(spearmanr(scores, truth[rows]).statistic if measured == "spearman" else average_precision_score(truth[rows], scores))

    measure = spearman_of(truth) if measured == "spearman" else average_precision_of(truth)
    found = ranking_test(good, bad, measure=measure, samples=60, exchanges=80, seed=4)
    every = np.arange(30)
    assert found.mean == pytest.approx(one(good, every) - one(bad, every), abs=1e-12)
    draws = np.random.default_rng(4).integers(30, size=(60, 30))
    resampled = [one(good[rows], rows) - one(bad[rows], rows) for rows in draws]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(resampled, [0.025, 0.975])), abs=1e-12)
    ranks, others, extreme = rankdata(good), rankdata(bad), 0
    for swap in np.random.default_rng(4).integers(2, size=(80, 30)).astype(bool):
        a, b = (np.array([y if s else x for x, y, s in zip(one_side, other, swap, strict=True)]) for one_side, other in ((ranks, others), (others, ranks)))
        extreme += abs(one(a, every) - one(b, every)) >= abs(found.mean) - 1e-12
    assert found.p_value == (extreme + 1) / 81


def test_a_difference_is_found_and_equal_models_show_none() -> None:
    rng = np.random.default_rng(2)
    truth = rng.normal(size=300)
    better, worse, equal = (truth + noise * rng.normal(size=300) for noise in (0.5, 2.0, 2.0))
    measure = spearman_of(truth)
    assert ranking_test(better, worse, measure=measure, samples=300, exchanges=300).decision == "higher"
    assert ranking_test(worse, better, measure=measure, samples=300, exchanges=300).decision == "lower"
    assert ranking_test(equal, worse, measure=measure, samples=300, exchanges=300).decision == "no difference shown"
    same = ranking_test(worse, 3 * worse + 1, measure=measure, samples=50, exchanges=50)  # the same order
    assert (same.mean, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_few_exchanges_of_equal_models_are_rarely_significant() -> None:
    """Of two models that are equally good, at most about one in twenty tests says otherwise."""
    rng = np.random.default_rng(3)
    claims = 0
    for _ in range(60):
        truth = rng.normal(size=40)
        a, b = (truth + rng.normal(size=40) for _ in range(2))
        claims += ranking_test(a, b, measure=spearman_of(truth), samples=200, exchanges=200).decision != "no difference shown"
    assert claims <= 7  # of 60: P(more than 7 | 5%) = 1.6%


def test_probes_and_items_are_in_the_interval() -> None:
    rng = np.random.default_rng(5)
    probe, item = rng.normal(0, 0.2, (10, 1)), rng.normal(0, 0.3, (1, 200))
    a = 0.3 + probe + item + rng.normal(0, 0.1, (10, 200))
    found = crossed_test(a, np.zeros((10, 200)))
    assert found.mean == pytest.approx(a.mean())
    # Seeds + items - their interaction: here the probes' share is by far the largest, 0.2 / sqrt(10).
    error = np.sqrt(a.mean(1).var(ddof=1) / 10 + a.mean(0).var(ddof=1) / 200)
    assert (found.high - found.low) / 2 == pytest.approx(2.2 * error, rel=0.12)  # t with some ten degrees of freedom
    narrow = crossed_test(a - probe, np.zeros((10, 200)))
    assert narrow.high - narrow.low < (found.high - found.low) / 2
    equal = crossed_test(a, a)
    assert (equal.mean, equal.low, equal.high, equal.p_value) == (0, 0, 0, 1)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [([1.0, 2.0], [1.0], r"the same items: \[(1, )?2\] and"), ([], [], "the same items"), ([1.0, float("nan")], [1.0, 2.0], "finite")],
)
def test_other_items_are_refused(a: list[float], b: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ranking_test(a, b, measure=spearman_of([0.0, 1.0]))
    with pytest.raises(UserError, match=message):
        crossed_test([a], [b])
