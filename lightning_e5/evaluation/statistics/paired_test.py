"""Is a difference between two runs more than the variance of the queries? Intervals and paired tests over queries.

The queries are the sample: what is resampled here is which queries were asked. The variance between training seeds is
another matter and needs several seeds (`lightning_e5.evaluation.statistics.seed_significance`). Where queries come in groups,
such as the forums of one set or the sets of one average, the bootstrap is stratified: each group's queries are resampled among
themselves, since which groups there are is given.

`scipy.stats.bootstrap` makes the same draws, but its quantiles differ in the last bit and it refuses a single query;
`scipy.stats.permutation_test` draws other signs. Stored tables hold the figures of the draws below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_e5.errors import UserError
from lightning_e5.evaluation.statistics.decision import Decision, decide

Float64 = NDArray[np.float64]
_DRAWS = 1 << 20  # resampled values at a time: 2^20 x 8 bytes = 8 MiB each for the indices and the values
_SAMPLES, _SIGN_FLIPS = 2000, 10_000


@dataclass(frozen=True, slots=True)
class Difference:
    """The paired difference ``a - b``: mean, 95% bootstrap interval and sign-flip p-value."""

    mean: float
    low: float
    high: float
    p_value: float

    @property
    def decision(self) -> Decision:
        """What the difference shows where it is the only one that is looked at."""
        return decide(self.mean, (self.low, self.high), self.p_value)


def paired_test(a: ArrayLike, b: ArrayLike, groups: ArrayLike | None = None, *, samples: int = _SAMPLES, seed: int = 0) -> Difference:
    """Compare two runs over the same queries.

    Args:
        a: ``[Q]`` values of one run.
        b: ``[Q]`` values of the other, the same queries in the same order.
        groups: ``[Q]`` the group of each query, whose means count the same; one group by default.
        samples: bootstrap samples.
        seed: the result is a function of the values and the seed.

    Raises:
        UserError: the lengths differ, or as in `bootstrap_interval`.
    """
    difference = _paired(a, b)
    parts = _parts(difference, groups)
    low, high = bootstrap_interval(difference, samples, seed=seed, groups=groups)
    # Scaled so that the plain sum over all queries is the sum of the groups' means.
    p_value = sign_flip_p_value(np.concatenate([part / len(part) for part in parts]), max(samples, _SIGN_FLIPS), seed)
    return Difference(mean_of_groups(parts), low, high, p_value)


def paired_tests(pairs: Sequence[tuple[ArrayLike, ArrayLike]], samples: int = _SAMPLES, seed: int = 0) -> list[Difference]:
    """`paired_test` of each ``(a, b)``: the draws, which cost most of its time, are made once for all pairs of a length.

    The figures are the same up to rounding: a resampled mean is here a product with the times that each query was drawn.

    Args:
        pairs: each ``[Q]`` and ``[Q]``, the same queries in the same order; Q may differ between pairs.
        samples, seed: as in `paired_test`.

    Raises:
        UserError: as `paired_test`.
    """
    differences = [_checked(_paired(a, b), samples) for a, b in pairs]
    found: dict[int, Difference] = {}
    for size in dict.fromkeys(len(d) for d in differences):
        rows = [r for r, d in enumerate(differences) if len(d) == size]
        columns_QR = np.stack([differences[r] for r in rows], axis=1)
        bounds = _quantiles(_resampled_means(columns_QR, samples, np.random.default_rng(seed)))
        p_values = _sign_flip_p_values(columns_QR, max(samples, _SIGN_FLIPS), seed)
        for row, (low, high), p_value in zip(rows, bounds.T, p_values, strict=True):
            found[row] = Difference(float(differences[row].mean()), float(low), float(high), float(p_value))
    return [found[row] for row in range(len(pairs))]


def bootstrap_interval(
    per_query: ArrayLike, samples: int = _SAMPLES, confidence: float = 0.95, seed: int = 0, *,
    groups: ArrayLike | None = None, weights: Sequence[float] | None = None,
) -> tuple[float, float]:  # fmt: skip
    """The percentile bootstrap interval of a mean over queries, or of the weighted mean of groups' means.

    Args:
        per_query: ``[Q]`` one value per query.
        samples: bootstrap samples.
        confidence: share of intervals that hold the true mean, such as 0.95.
        seed: the interval is a function of the values and the seed.
        groups: ``[Q]`` the group of each query; one by default.
        weights: of the groups in the order of their numbers, adding up to 1; equal ones by default.

    Returns:
        The ``(1 - confidence) / 2`` and ``(1 + confidence) / 2`` quantiles of the resampled means.

    Raises:
        UserError: no value, a value that is not finite, or a parameter outside its range.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, section 13.3.
    """
    parts = _parts(_checked(per_query, samples, confidence), groups)
    rng = np.random.default_rng(seed)
    means = np.zeros(samples)
    for part, share in zip(parts, _shares(parts, weights), strict=True):
        means += share * _resampled_means(part, samples, rng)
    low, high = _quantiles(means, confidence)
    return float(low), float(high)


def stacked(groups: Sequence[ArrayLike]) -> tuple[Float64, NDArray[np.int64]]:
    """The groups' values one after the other, ``[Q]``, and the number of each one's group, ``[Q]``."""
    values = [np.asarray(group, dtype=np.float64) for group in groups]
    return np.concatenate(values), np.repeat(np.arange(len(values)), [len(group) for group in values])


def mean_of_groups(groups: Sequence[ArrayLike], weights: Sequence[float] | None = None) -> float:
    """The weighted mean of the groups' means; every group ``[Q]`` the values of its queries."""
    shares = _shares(groups, weights)
    return math.fsum(share * float(np.mean(np.asarray(g))) for g, share in zip(groups, shares, strict=True))


def sign_flip_p_value(differences: ArrayLike, samples: int = _SIGN_FLIPS, seed: int = 0) -> float:
    """The two-sided p-value of the paired randomisation test: how often random signs give so large a mean.

    All ``2^Q`` sign patterns are tried where they are no more than ``samples``; otherwise ``samples`` random ones, with
    the observed one counted among them, so that p is never 0.

    Source: Smucker, Allan and Carterette, CIKM 2007 (Fisher's randomisation test for retrieval).
    """
    return float(_sign_flip_p_values(_checked(differences, samples)[:, None], samples, seed)[0])


def _sign_flip_p_values(columns_QR: Float64, samples: int, seed: int) -> Float64:
    """`sign_flip_p_value` of every column of finite ``[Q, R]``, from the same signs: ``[R]``."""
    size = len(columns_QR)
    observed = np.abs(columns_QR.sum(0))
    slack = 1e-12 * np.abs(columns_QR).sum(0)  # sums of the same values in another order must count as equal
    exact = size < 63 and 2**size <= samples
    total = 2**size if exact else samples
    rng = np.random.default_rng(seed)
    step = max(1, _DRAWS // size)
    extreme = np.zeros(columns_QR.shape[1], dtype=np.int64)
    for start in range(0, total, step):
        count = min(step, total - start)
        if exact:
            flips = (np.arange(start, start + count)[:, None] >> np.arange(size)) & 1
        else:
            flips = rng.integers(2, size=(count, size))
        extreme += (np.abs((1.0 - 2.0 * flips) @ columns_QR) >= observed - slack).sum(0)
    return np.asarray(extreme / total if exact else (extreme + 1) / (total + 1))


def _resampled_means(values: Float64, samples: int, rng: np.random.Generator) -> Float64:
    """Means of resampled queries: ``[samples]`` of ``[Q]``, or ``[samples, R]`` of ``[Q, R]``, from the same draws."""
    size = len(values)
    means = np.empty((samples, *values.shape[1:]))
    step = max(1, _DRAWS // size)
    for start in range(0, samples, step):
        count = min(step, samples - start)
        drawn_NQ = rng.integers(size, size=(count, size))
        if values.ndim == 1:
            means[start : start + count] = values[drawn_NQ].mean(axis=1)
        else:  # many columns: to count how often each query was drawn is cheaper than to gather every column's values
            rows_NQ = drawn_NQ + size * np.arange(count)[:, None]
            times_NQ = np.bincount(rows_NQ.ravel(), minlength=count * size).reshape(count, size)
            means[start : start + count] = times_NQ @ values / size
    return means


def _quantiles(means: Float64, confidence: float = 0.95) -> Float64:
    return np.asarray(np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0))


def _paired(a: ArrayLike, b: ArrayLike) -> Float64:
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.shape != right.shape:
        raise UserError(f"a paired test needs the same queries: {list(left.shape)} and {list(right.shape)} values")
    return left - right


def _parts(values: Float64, groups: ArrayLike | None) -> list[Float64]:
    """The values group by group, in the order of the groups' numbers."""
    if groups is None:
        return [values]
    labels = np.asarray(groups)
    return [values[labels == label] for label in np.unique(labels)]


def _shares(groups: Sequence[ArrayLike], weights: Sequence[float] | None) -> list[float]:
    shares = [1 / len(groups)] * len(groups) if weights is None else list(weights)
    if len(shares) != len(groups) or not groups:
        raise UserError(f"a mean of groups needs a weight per group: {len(groups)} groups, {len(shares)} weights")
    return shares


def _checked(per_query: ArrayLike, samples: int, confidence: float = 0.95) -> Float64:
    values = np.asarray(per_query, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise UserError(f"a test over queries needs a list of at least one value, not the shape {list(values.shape)}")
    if not np.isfinite(values).all():
        raise UserError(f"value {int(np.argmin(np.isfinite(values)))} is not a finite number")
    if samples < 1 or not 0 < confidence < 1:
        raise UserError(f"samples must be at least 1 and confidence between 0 and 1, not {samples} and {confidence}")
    return values
