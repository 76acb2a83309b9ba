"""Exact quantiles of scores in a file, by two counts of their bits: memory does not grow with the scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_e5.files.scratch import blocks, release

_HALF = 1 << 16


def score_quantiles(scores_N: NDArray[np.float32], shares: Sequence[float]) -> list[float]:
    """As ``numpy.quantile`` of the scores in float64 (interpolated linearly); none of no score.

    Args:
        scores_N: float32, no NaN; mapped from a file.
        shares: 0 to 1.
    """
    if not len(scores_N):
        return []
    places = [(len(scores_N) - 1) * share for share in shares]
    wanted = sorted({edge for place in places for edge in (int(np.floor(place)), int(np.ceil(place)))})
    high = np.zeros(_HALF, dtype=np.int64)
    for part in blocks(len(scores_N)):
        high += np.bincount(_rising(scores_N[part]) >> 16, minlength=_HALF)
        release(scores_N)
    ends = np.cumsum(high)
    classes = np.searchsorted(ends, wanted, "right")
    low = {int(own): np.zeros(_HALF, dtype=np.int64) for own in classes}
    for part in blocks(len(scores_N)):
        bits = _rising(scores_N[part])
        for own, counts in low.items():
            counts += np.bincount(bits[bits >> 16 == own] & (_HALF - 1), minlength=_HALF)
        release(scores_N)
    value = {}
    for rank, own in zip(wanted, classes.tolist(), strict=True):
        before = int(ends[own] - high[own])
        value[rank] = _score(own << 16 | int(np.searchsorted(np.cumsum(low[own]), rank - before, "right")))
    return [_between(value[int(np.floor(place))], value[int(np.ceil(place))], place - np.floor(place)) for place in places]


def _rising(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """The scores' bits as integers that are in the order of the scores; 0.0 for -0.0."""
    bits = (np.array(scores) + np.float32(0)).view(np.uint32)
    return (bits ^ np.where(bits >> 31, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))).astype(np.int64)


def _score(rising: int) -> float:
    bits = rising ^ (0x80000000 if rising >> 31 else 0xFFFFFFFF)
    return float(np.array(bits, dtype=np.uint32).view(np.float32))


def _between(low: float, high: float, share: Any) -> float:
    """As numpy interpolates, from the nearer end."""
    return float(high - (high - low) * (1 - share) if share >= 0.5 else low + (high - low) * share)
