"""Intervals of a mean over groups of queries, such as the forums of one set or the sets of one average.

Each group's queries are resampled among themselves: which sets there are is given, which of their queries were asked is
chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_e5.errors import UserError
from lightning_e5.evaluation.statistics.significance import (
    NO_DIFFERENCE,
    Difference,
    bootstrap_interval,
    paired_difference,
    sign_flip_p_value,
)

#: Resampled values at a time: 2^20 x 8 bytes.
_DRAWS = 1 << 20


def group_interval(
    groups: Sequence[ArrayLike], weights: Sequence[float] | None = None, *, samples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap interval of the weighted mean of the groups' means.

    Args:
        groups: per group ``[Q]`` one value per query.
        weights: of the groups, adding up to 1; equal ones by default.
        samples: bootstrap samples.
        confidence: such as 0.95.
        seed: the interval is a function of the values and the seed; one group gives `bootstrap_interval`'s.

    Raises:
        UserError: as `bootstrap_interval`, of any group.
    """
    if len(groups) == 1:
        return bootstrap_interval(groups[0], samples, confidence, seed)
    shares = _shares(groups, weights)
    rng = np.random.default_rng(seed)
    means = np.zeros(samples)
    for values, share in zip((np.asarray(g, dtype=np.float64) for g in groups), shares, strict=True):
        bootstrap_interval(values, 1, confidence)  # refuses what is no list of values
        step = max(1, _DRAWS // len(values))
        for start in range(0, samples, step):
            count = min(step, samples - start)
            drawn = rng.integers(len(values), size=(count, len(values)))
            means[start : start + count] += share * values[drawn].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def group_mean(groups: Sequence[ArrayLike], weights: Sequence[float] | None = None) -> float:
    """The weighted mean of the groups' means."""
    shares = _shares(groups, weights)
    return math.fsum(share * float(np.mean(np.asarray(g))) for g, share in zip(groups, shares, strict=True))


def group_difference(a: Sequence[ArrayLike], b: Sequence[ArrayLike], *, seed: int = 0) -> Difference:
    """Compare two runs over the same groups of the same queries, as `paired_difference` does over one group.

    Args:
        a: per group ``[Q]`` the values of one run.
        b: those of the other, the same queries in the same order.
        seed: of the draws.
    """
    if len(a) == 1:
        return paired_difference(a[0], b[0], seed=seed)
    differences = [_difference(x, y) for x, y in zip(a, b, strict=True)]
    low, high = group_interval(differences, seed=seed)
    # Scaled so that the plain sum over all queries is the sum of the groups' means.
    p_value = sign_flip_p_value(np.concatenate([d / len(d) for d in differences]), seed=seed)
    mean = group_mean(differences)
    shown = not low <= 0 <= high and p_value <= 0.05
    verdict = ("a is higher" if mean > 0 else "b is higher") if shown else NO_DIFFERENCE
    return Difference(mean, low, high, p_value, verdict)


def _difference(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.shape != right.shape:
        raise UserError(f"a paired test needs the same queries: {list(left.shape)} and {list(right.shape)} values")
    return left - right


def _shares(groups: Sequence[ArrayLike], weights: Sequence[float] | None) -> list[float]:
    shares = [1 / len(groups)] * len(groups) if weights is None else list(weights)
    if len(shares) != len(groups) or not groups:
        raise UserError(f"a mean of groups needs a weight per group: {len(groups)} groups, {len(shares)} weights")
    return shares
