"""The paired difference of rank correlations against scipy's, and against what is known of it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lightning_e5.errors import UserError
from lightning_e5.evaluation.statistics.rank_correlation import paired_spearman


def test_the_difference_is_that_of_scipys_correlations_with_ties() -> None:
    draw = np.random.default_rng(0)
    scores = draw.integers(0, 6, 200).astype(float)
    a, b = scores + draw.normal(0, 1, 200), np.round(scores + draw.normal(0, 3, 200))
    found = paired_spearman(a, b, scores)
    assert found.mean == pytest.approx(stats.spearmanr(a, scores).statistic - stats.spearmanr(b, scores).statistic)
    assert 0 < found.low < found.mean < found.high and found.p_value < 0.01
    back = paired_spearman(b, a, scores)
    assert back.mean == pytest.approx(-found.mean) and back.low == pytest.approx(-found.high)


def test_equal_models_show_no_difference() -> None:
    values = np.arange(30.0)
    found = paired_spearman(values, 2 * values + 1, values[::-1])
    assert (found.mean, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(("a", "b", "scores"), [([1, 2], [1, 2], [1, 2]), ([1, 2, 3], [1, 2, 3, 4], [1, 2, 3])])
def test_rows_that_are_too_few_or_differ(a: list[float], b: list[float], scores: list[float]) -> None:
    with pytest.raises(UserError, match="paired correlations need at least 3 rows"):
        paired_spearman(a, b, scores)
