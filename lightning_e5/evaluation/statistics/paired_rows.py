"""`paired_difference` of many pairs of runs at once: the draws, which cost most of its time, are made once for all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_e5.errors import UserError
from lightning_e5.evaluation.statistics.significance import NO_DIFFERENCE, Difference, sign_flip_p_values

Float64 = NDArray[np.float64]
_DRAWS = 1 << 20  # drawn numbers at a time: 8 MiB


def paired_differences(
    pairs: Sequence[tuple[ArrayLike, ArrayLike]], samples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> list[Difference]:
    """`significance.paired_difference` of each ``(a, b)``: the same draws, so the same figures up to rounding.

    Args:
        pairs: each ``[Q]`` and ``[Q]``, the same queries in the same order; Q may differ between pairs.

    Raises:
        UserError: lengths that differ within a pair, no value, or one that is not finite.
    """
    differences = [np.asarray(a, dtype=np.float64) - _same_length(a, b) for a, b in pairs]
    found: dict[int, Difference] = {}
    for size in dict.fromkeys(len(d) for d in differences):
        rows = [r for r, d in enumerate(differences) if len(d) == size]
        columns_QR = np.stack([differences[r] for r in rows], axis=1)
        if size == 0 or not np.isfinite(columns_QR).all():
            raise UserError("a paired test needs at least one value, and finite ones only")
        bounds = np.quantile(_resampled_means(columns_QR, samples, seed), [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
        p_values = sign_flip_p_values(columns_QR, max(samples, 10_000), seed)
        for place, row in enumerate(rows):
            mean, low, high, p_value = float(differences[row].mean()), *map(float, bounds[:, place]), float(p_values[place])
            shown = not low <= 0 <= high and p_value <= 1 - confidence
            verdict = ("a is higher" if mean > 0 else "b is higher") if shown else NO_DIFFERENCE
            found[row] = Difference(mean, low, high, p_value, verdict)
    return [found[row] for row in range(len(pairs))]


def _same_length(a: ArrayLike, b: ArrayLike) -> Float64:
    right = np.asarray(b, dtype=np.float64)
    if np.asarray(a).shape != right.shape or right.ndim != 1:
        raise UserError(f"a paired test needs the same queries: {list(np.asarray(a).shape)} and {list(right.shape)} values")
    return right


def _resampled_means(columns_QR: Float64, samples: int, seed: int) -> Float64:
    """``[samples, R]`` means of resampled queries."""
    size = len(columns_QR)
    rng = np.random.default_rng(seed)
    means = np.empty((samples, columns_QR.shape[1]))
    step = max(1, _DRAWS // size)
    for start in range(0, samples, step):
        count = min(step, samples - start)
        drawn = rng.integers(size, size=(count, size)) + size * np.arange(count)[:, None]
        times_NQ = np.bincount(drawn.ravel(), minlength=count * size).reshape(count, size)
        means[start : start + count] = times_NQ @ columns_QR / size
    return means
