"""Two models' answers to the same items compared, whatever the measure: a mean over items, over probes and items, or one of all items together.

A mean over queries is `paired_test`'s. A few-shot probe is trained on several draws of its samples, which vary as the test texts do
(`crossed_test`). A rank correlation or an average precision is of all items together (`ranking_test`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_e5.errors import UserError
from lightning_e5.evaluation.statistics.paired_test import Difference
from lightning_e5.evaluation.statistics.seed_significance import SeedTable

Float64 = NDArray[np.float64]
#: Of scores ``[B, N]`` and the numbers of their items ``[B, N]`` (or ``[1, N]``) the measure of each row, ``[B]``; of the scores' order alone.
Measure = Callable[[Float64, NDArray[np.int64]], Float64]
_DRAWS = 1 << 20  # resampled values at a time
_SAMPLES, _EXCHANGES = 2000, 10_000


class PairedTest(Protocol):
    """A test of two models' values."""

    def __call__(self, a: ArrayLike, b: ArrayLike, *, seed: int) -> Difference:
        """The difference ``a - b``."""
        ...


@dataclass(frozen=True)
class Answers:
    """What a model answered to the items of a set, and the test by which it is compared with another one's answers to them.

    ``values``: per query or item ``[N]``, or per probe and item ``[R, N]``.
    """

    values: NDArray[np.generic]
    test: PairedTest

    def minus(self, other: Answers, *, seed: int) -> Difference:
        """The paired difference to another model; UserError where that answered other items."""
        return self.test(self.values, other.values, seed=seed)


def crossed_test(a: ArrayLike, b: ArrayLike, *, seed: int = 0) -> Difference:
    """Compare two models whose probes were trained on the same draws of samples and asked the same items.

    Args:
        a: ``[R, N]`` values per probe and item.
        b: ``[R, N]`` of the other model, the same probes and items in the same order.
        seed: of nothing, since nothing is drawn; every paired test has one.

    Returns:
        The mean difference, with an interval and a p-value that hold the variance of the probes and that of the items (see
        `SeedTable`, whose seeds are the probes here).

    Raises:
        UserError: the shapes differ, or a value is not finite.
    """
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    _check_shapes(left, right)
    found = SeedTable({"difference": left - right}).mean("difference")
    low, high = (found.mean if end is None else end for end in (found.low, found.high))
    return Difference(found.mean, low, high, 1.0 if found.p_value is None else found.p_value)


def ranking_test(
    a: ArrayLike, b: ArrayLike, *, measure: Measure, samples: int = _SAMPLES, exchanges: int = _EXCHANGES, seed: int = 0
) -> Difference:
    """Compare two models by a measure of the order that their scores give to all items.

    Args:
        a: ``[N]`` one model's scores of the items.
        b: ``[N]`` the other's, of the same items in the same order.
        measure: see `Measure`; NaN where it is not defined.
        samples: of the paired bootstrap over items that the 95% interval is from.
        exchanges: of the randomisation test that the p-value is from. As one model's scores are on another scale than the other's,
            it is their ranks that the models exchange, for a random half of the items.
        seed: the result is a function of the scores and the seed.

    Raises:
        UserError: the shapes differ, or a score is not finite.

    Source: Deutsch, Dror and Roth, TACL 2021 (paired bootstrap and permutation of standardised scores for correlations).
    """
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    _check_shapes(left, right)
    size = len(left)
    in_order = np.arange(size)[None]

    def difference(a_BN: Float64, b_BN: Float64, items_BN: NDArray[np.int64]) -> Float64:
        return measure(a_BN, items_BN) - measure(b_BN, items_BN)

    observed = float(difference(left[None], right[None], in_order)[0])
    rng, resampled = np.random.default_rng(seed), []
    for count in _batches(samples, size):
        drawn_BN = rng.integers(size, size=(count, size))
        resampled.append(difference(left[drawn_BN], right[drawn_BN], drawn_BN))
    low, high = np.nanquantile(np.concatenate(resampled), [0.025, 0.975])
    ranks_a, ranks_b = _mean_ranks(left), _mean_ranks(right)
    rng, extreme = np.random.default_rng(seed), 0
    for count in _batches(exchanges, size):
        swapped_BN = rng.integers(2, size=(count, size)).astype(bool)
        exchanged = difference(np.where(swapped_BN, ranks_b, ranks_a), np.where(swapped_BN, ranks_a, ranks_b), in_order)
        extreme += int((np.abs(exchanged) >= abs(observed) - 1e-12).sum())  # sums of the same values in another order must count as equal
    return Difference(observed, float(low), float(high), (extreme + 1) / (exchanges + 1))


def spearman_of(truth: ArrayLike) -> Measure:
    """`Measure`: Spearman's correlation with ``truth`` ``[N]``, with mean ranks for ties; 0 where one side has a single value."""
    truth_N = np.asarray(truth, dtype=np.float64)

    def measure(scores_BN: Float64, items_BN: NDArray[np.int64]) -> Float64:
        ours_BN, theirs_BN = _standardised(scores_BN), _standardised(truth_N[items_BN])
        return np.asarray((ours_BN * theirs_BN).mean(axis=1))

    return measure


def average_precision_of(labels: ArrayLike) -> Measure:
    """`Measure`: average precision of the items with the label 1, equal scores taken together; NaN where no item has it."""
    labels_N = np.asarray(labels, dtype=np.float64)

    def measure(scores_BN: Float64, items_BN: NDArray[np.int64]) -> Float64:
        order_BN = np.argsort(-scores_BN, axis=1, kind="stable")
        sorted_BN = np.take_along_axis(scores_BN, order_BN, axis=1)
        right_BN = np.take_along_axis(np.broadcast_to(labels_N[items_BN], scores_BN.shape), order_BN, axis=1)
        size = scores_BN.shape[1]
        # Equal scores are one threshold: each has the precision at the last of them.
        last_BN = np.where(np.diff(sorted_BN, axis=1, append=-np.inf) != 0, np.arange(size), size)
        last_BN = np.minimum.accumulate(last_BN[:, ::-1], axis=1)[:, ::-1]
        precision_BN = np.take_along_axis(right_BN.cumsum(axis=1) / np.arange(1, size + 1), last_BN, axis=1)
        with np.errstate(invalid="ignore"):
            return np.asarray((precision_BN * right_BN).sum(axis=1) / right_BN.sum(axis=1))

    return measure


def _standardised(values_BN: Float64) -> Float64:
    """Mean ranks of each row with mean 0 and variance 1; 0 in a row of equal values."""
    ranks_BN = _mean_ranks(values_BN)
    centred_BN = ranks_BN - ranks_BN.mean(axis=1, keepdims=True)
    deviation_B1 = np.sqrt((centred_BN**2).mean(axis=1, keepdims=True))
    return np.asarray(np.divide(centred_BN, deviation_B1, out=np.zeros_like(centred_BN), where=deviation_B1 > 0))


def _mean_ranks(values: Float64) -> Float64:
    """From 1, along the last axis; equal values have the mean of their ranks."""
    from scipy.stats import rankdata  # a second to import

    return np.asarray(rankdata(values, axis=-1))


def _batches(count: int, size: int) -> list[int]:
    """``count`` in numbers of draws that fit the memory."""
    step = max(1, _DRAWS // size)
    return [min(step, count - start) for start in range(0, count, step)]


def _check_shapes(a: Float64, b: Float64) -> None:
    if a.shape != b.shape or not a.size:
        raise UserError(f"a paired test needs the same items: {list(a.shape)} and {list(b.shape)} values")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise UserError("a paired test needs finite values")
