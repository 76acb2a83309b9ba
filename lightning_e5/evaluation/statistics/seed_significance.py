"""Is a difference between two ways of training more than chance? Seed variance and query variance in one interval.

A variant's mean varies because other seeds would have trained other weights and because other queries could have been
asked. Both are taken as random and crossed (every seed's model answers every query), and their variances add up:

- Seeds: the variance between a variant's seeds. Two or three seeds say little of it (a bootstrap over 3 underestimates it, a
  t-interval with 2 degrees of freedom finds nothing), so it is pooled over the table's variants, as in an analysis of
  variance; a pair of variants that is clearly less steady than the others is tested with its own variance.
- Queries: the variance of the seed-averaged differences between queries, without what the seeds already explain.

The degrees of freedom are Satterthwaite's. ``tests/lightning_e5/evaluation/statistics/test_seed_significance.py`` simulates tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import fdtrc, stdtr, stdtrit

from lightning_e5.errors import UserError

Float64 = NDArray[np.float64]
#: A pair's own seed variance replaces the pooled one where so large a ratio of the two has at most this probability.
UNSTEADY = 0.1


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, or a difference of two, over seeds and queries.

    ``low``, ``high``, ``p_value`` (of 0) and ``degrees`` (of freedom) are None where nothing is known of the variance: one
    seed without values per query, or values that no seed changes. ``seed_noise`` and ``query_noise``: what the interval
    holds.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    degrees: float | None = None
    seed_noise: bool = False
    query_noise: bool = False


@dataclass(frozen=True, slots=True)
class _Pool:
    """Seed variance: of one seed's mean; that part of it that is the interaction of seeds and queries; the degrees of freedom of both."""

    variance: float
    interaction: float
    freedom: int
    interaction_freedom: int


class SeedTable:
    """One metric of several variants, each trained with one or more seeds and evaluated on the same queries.

    Args:
        values: variant -> ``[S, Q]`` values per seed and query, or ``[S]`` where the metric has none per query; S may
            differ between variants, Q and the queries' order may not.
        confidence: share of intervals that hold the true mean.

    Raises:
        UserError: no value, one that is not finite, or variants of different queries.

    Source: Satterthwaite, Biometrics Bulletin 2, 1946; Clark, Journal of Verbal Learning and Verbal Behavior 12, 1973 (seeds
    and queries both random: the quasi F ratio).
    """

    def __init__(self, values: Mapping[str, ArrayLike], confidence: float = 0.95) -> None:
        if not 0 < confidence < 1:
            raise UserError(f"confidence must lie between 0 and 1, not {confidence}")
        self.confidence = confidence
        self.values = {name: _checked(name, v) for name, v in values.items()}
        if len({v.shape[1] for v in self.values.values()}) > 1:
            raise UserError("variants that were evaluated on different queries cannot be compared")
        self.pool = _pooled(list(self.values.values()))

    def mean(self, variant: str) -> Estimate:
        """A variant's mean over seeds and queries."""
        return self._estimate([variant], _averaged(self.values[variant]))

    def difference(self, variant: str, baseline: str) -> Estimate:
        """The variant's mean minus the baseline's, paired by query."""
        return self._estimate([variant, baseline], _averaged(self.values[variant]) - _averaged(self.values[baseline]))

    def _estimate(self, names: Sequence[str], per_query: Float64) -> Estimate:
        arrays = [self.values[name] for name in names]
        mean, queries = float(per_query.mean()), len(per_query)
        pool = self._seeds(arrays)
        if pool is None and queries == 1:
            return Estimate(mean)
        seed_variance = interaction = denominator = 0.0
        if pool is not None:
            share = sum(1 / len(a) for a in arrays)
            seed_variance, interaction = pool.variance * share, pool.interaction * share
            denominator += seed_variance**2 / pool.freedom
            denominator += interaction**2 / pool.interaction_freedom if pool.interaction_freedom else 0.0
        query_variance = float(per_query.var(ddof=1)) / queries if queries > 1 else 0.0
        if queries > 1:
            denominator += query_variance**2 / (queries - 1)
        # Seeds + queries - seeds x queries, which both of the others hold; the quasi F ratio's denominator.
        variance = max(seed_variance + max(0.0, query_variance - interaction), query_variance)
        degrees = max(1.0, variance**2 / denominator) if denominator > 0 else float(max(1, queries - 1))
        error = math.sqrt(variance)
        width = float(stdtrit(degrees, (1 + self.confidence) / 2)) * error
        p_value = float(2 * stdtr(degrees, -abs(mean) / error)) if error > 0 else float(mean == 0)
        return Estimate(mean, mean - width, mean + width, p_value, degrees, pool is not None, queries > 1)

    def _seeds(self, arrays: Sequence[Float64]) -> _Pool | None:
        """The seed variance of these variants; None where nothing shows one."""
        if self.pool is None or not any(_varies(a) or len(a) == 1 for a in arrays):
            return None
        own = _pooled(arrays)
        if own is not None and own.freedom < self.pool.freedom and self.pool.variance > 0:
            others = self.pool.freedom - own.freedom
            elsewhere = (self.pool.variance * self.pool.freedom - own.variance * own.freedom) / others
            if elsewhere <= 0 or fdtrc(own.freedom, others, own.variance / elsewhere) < UNSTEADY:
                return own
        return self.pool


def _pooled(arrays: Sequence[Float64]) -> _Pool | None:
    """Pooled over the variants with several seeds that differ: one whose seeds share a result says nothing of seeds."""
    telling = [a for a in arrays if _varies(a)]
    if not telling:
        return None
    queries = telling[0].shape[1]
    freedom = sum(len(a) - 1 for a in telling)
    between = sum(float(((a.mean(1) - a.mean()) ** 2).sum()) for a in telling)
    residuals = [a - a.mean(1, keepdims=True) - a.mean(0, keepdims=True) + a.mean() for a in telling]
    interaction_freedom = freedom * (queries - 1)
    squares = sum(float((x**2).sum()) for x in residuals)
    interaction = squares / interaction_freedom / queries if interaction_freedom else 0.0
    return _Pool(between / freedom, interaction, freedom, interaction_freedom)


def _varies(values: Float64) -> bool:
    return len(values) > 1 and bool((values != values[:1]).any())


def _averaged(values: Float64) -> Float64:
    """Over seeds; equal seeds give their very values, not a sum's rounding."""
    return values.mean(0) if _varies(values) else values[0]


def _checked(name: str, values: ArrayLike) -> Float64:
    array = np.asarray(values, dtype=np.float64)
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or array.size == 0 or not np.isfinite(array).all():
        raise UserError(f"{name}: needs finite values [seeds, queries], not the shape {list(array.shape)}")
    return array
