"""Which rows make step ``s``: a pure function of (seed, s), with no table, for any number of rows.

So a resumed run needs no history, and any number of ranks and workers sees the same global batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lightning_e5.errors import UserError

Rows = NDArray[np.int64]
_ROUNDS = 6
#: Slots of the stream of sources that are shuffled among themselves.
_BLOCK = 1024
#: Shares of `_SourceStream` are multiples of 2^-31, so that its products stay below 2^63.
_BITS = 31
#: Up to so many rows a single draw shuffles a table of them; of more it asks a `Permutation`, which needs none.
SHUFFLED_ROWS = 2**20


def _key(*parts: int | str) -> int:
    return int.from_bytes(hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest(), "little")


class Permutation:
    """A pseudo-random permutation of ``0 .. size - 1``, computed for single indices (Feistel network, cycle walking).

    Args:
        size: number of elements, 1 to 2^62.
        key: chooses the permutation.
    """

    def __init__(self, size: int, key: int) -> None:
        if not 1 <= size <= 2**62:
            raise ValueError(f"size: {size} is not in 1 .. 2^62")
        self.size = size
        self._half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half)) - 1)
        self._keys = [np.uint64(_key(key, r)) for r in range(_ROUNDS)]

    def __call__(self, indices: Rows) -> Rows:
        """The images of ``indices`` (int64, each in ``0 .. size - 1``)."""
        values = self._feistel(np.asarray(indices, dtype=np.uint64))
        outside = values >= self.size
        while outside.any():  # walk the cycle back into the range: on average less than 3 more rounds
            values[outside] = self._feistel(values[outside])
            outside = values >= self.size
        return values.astype(np.int64)

    def _feistel(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values >> self._half, values & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right ^ key) & self._mask)
        return (left << self._half) | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A 64-bit finaliser: every input bit moves every output bit."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(31))) * np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(29))) * np.uint64(0xD6E8FEB86659FD93)
    return values ^ (values >> np.uint64(32))


class _SourceStream:
    """The source of each slot of an endless stream, and how many slots before it have the same source.

    A binary tree over the sources, each node with the left half's share ``a``: of the first ``t`` slots that reach it
    ``floor(t * a)`` go left. So a slot finds its source in ``log2(sources)`` steps, and after any number of slots each
    source has had its share to within that many slots, however small. Nothing grows with the slots or with 1 / share.

    Args:
        weights: float64, one per source, >= 0, not all 0.
        seed: of the order within blocks of slots.
    """

    def __init__(self, weights: NDArray[np.float64], seed: int) -> None:
        self._seed = seed
        masses = np.zeros(1 << max(0, len(weights) - 1).bit_length())
        masses[: len(weights)] = weights
        self._left: list[Rows] = []  # per level from the root, per node: its left half's share times 2^31
        while len(masses) > 1:
            left, both = masses[::2], masses[::2] + masses[1::2]
            share = np.rint(left / np.where(both > 0, both, 1.0) * 2**_BITS)
            inside = (left > 0) & (masses[1::2] > 0)
            self._left.insert(0, np.where(inside, share.clip(1, 2**_BITS - 1), share).astype(np.int64))
            masses = both

    def __call__(self, slots: Rows) -> tuple[Rows, Rows]:
        """(source, slots of that source before it) of each of ``slots``, int64."""
        sources, before = np.empty_like(slots), np.empty_like(slots)
        for block in np.unique(slots // _BLOCK).tolist():
            chosen = slots // _BLOCK == block
            plan, earlier = self._in_turn(block * _BLOCK + np.arange(_BLOCK))
            shuffled = plan[Permutation(_BLOCK, _key(self._seed, "cycle", block))(np.arange(_BLOCK))]
            counts = np.empty_like(earlier)
            # Both sorts are stable: each source's counts, in rising order, go to its slots from left to right.
            counts[np.argsort(shuffled, kind="stable")] = earlier[np.argsort(plan, kind="stable")]
            within = slots[chosen] % _BLOCK
            sources[chosen], before[chosen] = shuffled[within], counts[within]
        return sources, before

    def _in_turn(self, slots: Rows) -> tuple[Rows, Rows]:
        """The same, before the shuffle: sources take turns as evenly as their shares let them."""
        nodes, counts = np.zeros_like(slots), slots.copy()
        for shares in self._left:
            share = shares[nodes]
            left = _times(counts, share)
            goes_left = _times(counts + 1, share) > left
            counts = np.where(goes_left, left, counts - left)
            nodes = 2 * nodes + ~goes_left
        return nodes, counts


def _times(counts: Rows, share: Rows) -> Rows:
    """``floor(counts * share / 2^31)`` exactly, for counts below 2^62."""
    return (counts >> _BITS) * share + (((counts & (2**_BITS - 1)) * share) >> _BITS)


class BatchOrder:
    """Rows of every step, over one or several sources that lie one behind the other.

    Within a source, epoch after epoch is a fresh permutation; a batch may straddle two epochs.

    Args:
        sizes: rows of each source.
        batch_size: rows of a global batch.
        seed: of the order.
        weights: share of each source in the batches; default its size to the power of ``alpha``.
        alpha: 1 samples rows uniformly, 0 sources uniformly.
        one_source_per_batch: every batch comes from one source; else every batch is a mixture. With one source, or
            with ``alpha`` 1 and mixed batches, each epoch visits every row exactly once.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        batch_size: int,
        seed: int,
        *,
        weights: Sequence[float] | None = None,
        alpha: float = 1.0,
        one_source_per_batch: bool = False,
    ) -> None:
        if not sizes or min(sizes) < 1:
            raise UserError(f"sources: every source needs rows, there are {list(sizes)}")
        if weights is not None and (len(weights) != len(sizes) or min(weights) < 0 or not 0 < sum(weights) < np.inf):
            raise UserError(f"weights: {list(weights)} must be {len(sizes)} finite numbers >= 0, not all 0")
        self.batch_size, self.seed = batch_size, seed
        if weights is None and alpha == 1.0 and not one_source_per_batch:
            sizes = [sum(sizes)]  # uniform over rows: one source to the order
        smallest = min(sizes) if one_source_per_batch else sum(sizes)
        if not 1 <= batch_size <= smallest:
            raise UserError(f"batch_size: {batch_size} is not in 1 .. {smallest}, the rows it is drawn from")
        self.sizes = list(sizes)
        self._starts = np.cumsum([0, *self.sizes[:-1]])
        raw = np.asarray(weights if weights is not None else [s**alpha for s in self.sizes], dtype=np.float64)
        self._stream = _SourceStream(raw, seed)
        self._one_source = one_source_per_batch

    def rows(self, step: int) -> Rows:
        """The ``batch_size`` row numbers of a step, in order."""
        return self.draws(step)[0]

    def draws(self, step: int) -> tuple[Rows, Rows]:
        """The row numbers of a step, and of each in which epoch of its source (from 0) it is."""
        if len(self.sizes) == 1:
            return self._draw(0, step * self.batch_size + np.arange(self.batch_size))
        if self._one_source:
            source, before = self._stream(np.array([step]))
            return self._draw(int(source[0]), before[0] * self.batch_size + np.arange(self.batch_size))
        sources, before = self._stream(step * self.batch_size + np.arange(self.batch_size))
        rows, epochs = np.empty((2, self.batch_size), dtype=np.int64)
        for source in np.unique(sources):
            chosen = sources == source
            rows[chosen], epochs[chosen] = self._draw(int(source), before[chosen])
        return rows, epochs

    def _draw(self, source: int, positions: Rows) -> tuple[Rows, Rows]:
        size = self.sizes[source]
        rows, epochs = np.empty(len(positions), dtype=np.int64), positions // size
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            permutation = Permutation(size, _key(self.seed, "epoch", source, int(epoch)))
            rows[chosen] = permutation(positions[chosen] % size)
        return rows + self._starts[source], epochs
