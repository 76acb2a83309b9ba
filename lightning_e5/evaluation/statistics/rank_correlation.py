"""The paired difference of two models' rank correlations with the same scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from lightning_e5.errors import UserError
from lightning_e5.evaluation.statistics.paired_test import Difference


def paired_spearman(a: ArrayLike, b: ArrayLike, scores: ArrayLike, *, samples: int = 1000, seed: int = 0) -> Difference:
    """Spearman's correlation of ``a`` with ``scores`` less that of ``b``, with a bootstrap over the rows.

    Args:
        a, b: ``[N]`` the two models' values of the same rows.
        scores: ``[N]`` what both are correlated with.
        samples: bootstrap samples.
        seed: the result is a function of the values and the seed.

    Returns:
        The difference, its 95% percentile interval, and the p-value by the share of samples beyond 0, twice the smaller side.

    Raises:
        UserError: the lengths differ, or there are fewer than 3 rows.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, sections 13.3 and 15.4.
    """
    ours, theirs, judged = (np.asarray(values, dtype=np.float64) for values in (a, b, scores))
    if not len(ours) == len(theirs) == len(judged) or len(judged) < 3:
        raise UserError(f"paired correlations need at least 3 rows of one length, not {len(ours)}, {len(theirs)} and {len(judged)}")
    rows_SN = np.random.default_rng(seed).integers(len(judged), size=(samples, len(judged)))
    drawn = np.array([_spearman(ours[rows], judged[rows]) - _spearman(theirs[rows], judged[rows]) for rows in rows_SN])
    low, high = np.quantile(drawn, [0.025, 0.975])
    beyond = min((drawn <= 0).sum(), (drawn >= 0).sum())
    p_value = min(1.0, 2 * float(beyond + 1) / (samples + 1))
    return Difference(_spearman(ours, judged) - _spearman(theirs, judged), float(low), float(high), p_value)


def _spearman(values: np.ndarray, scores: np.ndarray) -> float:
    """With mean ranks for ties; 0 where one side has a single value."""
    if not np.ptp(values) or not np.ptp(scores):
        return 0.0
    return float(np.corrcoef(stats.rankdata(values), stats.rankdata(scores))[0, 1])
