"""Is a difference between two runs more than the luck of the queries? Paired tests over queries.

The queries are the sample: what is resampled here is which queries were asked. The spread between training seeds is
another matter and needs several seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_e5.errors import UserError

Float64 = NDArray[np.float64]

NO_DIFFERENCE = "no difference shown"
_DRAWS = 1 << 20  # resampled values at a time: 2^20 x 8 bytes = 8 MiB each for the indices and the values


@dataclass(frozen=True, slots=True)
class Difference:
    """The paired difference ``a - b``: mean, bootstrap interval, sign-flip p-value and what may be said of it.

    ``verdict`` is ``"a is higher"``, ``"b is higher"``, or ``"no difference shown"``.
    """

    mean: float
    low: float
    high: float
    p_value: float
    verdict: str


def bootstrap_interval(
    per_query: ArrayLike, samples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap interval of a mean over queries.

    Args:
        per_query: ``[Q]`` one value per query.
        samples: bootstrap samples.
        confidence: share of intervals that hold the true mean, such as 0.95.
        seed: the interval is a function of the values and the seed.

    Returns:
        The ``(1 - confidence) / 2`` and ``(1 + confidence) / 2`` quantiles of the resampled means.

    Raises:
        UserError: no value, a value that is not finite, or a parameter outside its range.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, section 13.3.
    """
    values = _checked(per_query, samples, confidence)
    rng = np.random.default_rng(seed)
    means = np.empty(samples)
    step = max(1, _DRAWS // len(values))
    for start in range(0, samples, step):
        count = min(step, samples - start)
        means[start : start + count] = values[rng.integers(len(values), size=(count, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def sign_flip_p_value(differences: ArrayLike, samples: int = 10_000, seed: int = 0) -> float:
    """The two-sided p-value of the paired randomisation test: how often random signs give so large a mean.

    All ``2^Q`` sign patterns are tried where they are no more than ``samples``; otherwise ``samples`` random ones, with
    the observed one counted among them, so that p is never 0.

    Example:
        >>> sign_flip_p_value([0.1, 0.2, 0.3])  # 2 of the 8 patterns give so large a mean
        0.25

    Source: Smucker, Allan and Carterette, CIKM 2007 (Fisher's randomisation test for retrieval).
    """
    return float(sign_flip_p_values(_checked(differences, samples, 0.95)[:, None], samples, seed)[0])


def sign_flip_p_values(columns_QR: NDArray[np.float64], samples: int, seed: int) -> NDArray[np.float64]:
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


def paired_difference(
    a: ArrayLike, b: ArrayLike, samples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Difference:
    """Compare two runs over the same queries.

    A difference is claimed only where the bootstrap interval leaves out 0 *and* the sign-flip p-value is at most
    ``1 - confidence``: with few queries the percentile interval alone is too narrow.

    Args:
        a: ``[Q]`` values of one run.
        b: ``[Q]`` values of the other, the same queries in the same order.

    Raises:
        UserError: the lengths differ, or as in `bootstrap_interval`.
    """
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.shape != right.shape:
        raise UserError(f"a paired test needs the same queries: {list(left.shape)} and {list(right.shape)} values")
    difference = left - right
    low, high = bootstrap_interval(difference, samples, confidence, seed)
    p_value = sign_flip_p_value(difference, max(samples, 10_000), seed)
    mean = float(difference.mean())
    shown = not low <= 0 <= high and p_value <= 1 - confidence
    verdict = ("a is higher" if mean > 0 else "b is higher") if shown else NO_DIFFERENCE
    return Difference(mean, low, high, p_value, verdict)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values of a family of tests, in the order given: the table's error rate is that of one test.

    Example:
        >>> holm([0.01, 0.04])
        [0.02, 0.04]

    Source: Holm, Scandinavian Journal of Statistics 6, 1979.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise UserError(f"p-values must lie between 0 and 1: {list(p_values)}")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in adjusted]


def correct_verdicts(rows: Sequence[dict[str, Any]], confidence: float = 0.95) -> None:
    """Decide the differences of a whole table together: a row's verdict holds where all of the table's are looked at.

    Args:
        rows: those that have ``difference``, ``difference_low``, ``difference_high`` and ``p_value`` get ``p_holm`` and
            ``verdict``: a difference is claimed only where the interval leaves out 0 and ``p_holm`` is at most ``1 -
            confidence``. Of equal models a table claims one with a chance of at most ``1 - confidence``.
        confidence: such as 0.95.

    Source: Holm 1979; the recommendation of Smucker et al. for the test itself.
    """
    compared = [row for row in rows if "p_value" in row]
    for row, adjusted in zip(compared, holm([row["p_value"] for row in compared]), strict=True):
        shown = not row["difference_low"] <= 0 <= row["difference_high"] and adjusted <= 1 - confidence
        higher = "a is higher" if row["difference"] > 0 else "b is higher"
        row |= {"p_holm": adjusted, "verdict": higher if shown else NO_DIFFERENCE}


def _checked(per_query: ArrayLike, samples: int, confidence: float) -> Float64:
    values = np.asarray(per_query, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise UserError(f"a test over queries needs a list of at least one value, not the shape {list(values.shape)}")
    if not np.isfinite(values).all():
        raise UserError(f"value {int(np.argmin(np.isfinite(values)))} is not a finite number")
    if samples < 1 or not 0 < confidence < 1:
        raise UserError(f"samples must be at least 1 and confidence between 0 and 1, not {samples} and {confidence}")
    return values
