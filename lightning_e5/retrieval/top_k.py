"""The exact best rows of each query, kept while blocks of vectors pass by, nearly at the speed of the matrix product.

A float32 product of two matrices may differ in its last bit with their shape, so its scores are low-precision scores with an error bound: a row whose
score lies, even with twice the largest possible rounding error, below the k-th best so far is dropped at once by one
comparison. The few that are left of a block are scored again, in float64, always in the same order of summation, and
rounded to float32. The outcome depends on the vectors alone: not on chunks, blocks, their order, threads or the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_e5.distributed.devices import whole_float32
from lightning_e5.errors import UserError

#: Rows and queries of a matrix product: on a CPU what fits its caches, on a GPU what keeps it busy.
ON_CPU, ON_GPU = (4096, 512), (32768, 4096)

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

_UNIT_ROUNDOFF = 2.0**-24  # of float32
_SMALLEST_NORMAL = 2.0**-126  # what one flushed product can lose
_RESCORED_VALUES = 1 << 16  # values per slice of the float64 pass: 512 KiB per operand stay in the cache
_NO_ROW = np.iinfo(np.int64).max


class _Pairs(NamedTuple):
    """(query of the chunk, row of the block, score) of candidates; the score is exact or within the slack of it."""

    owner: Int64
    row: Int64
    score: Float32

    def at(self, chosen: NDArray[Any]) -> _Pairs:
        return _Pairs(self.owner[chosen], self.row[chosen], self.score[chosen])


def _joined(parts: Sequence[_Pairs]) -> _Pairs:
    owners, rows, scores = zip(*parts, strict=True)
    return _Pairs(np.concatenate(owners), np.concatenate(rows), np.concatenate(scores))


class TopK:
    """The best ``k`` rows of each query among all rows that were shown; of equal scores the lower row is the better.

    Args:
        queries: ``[Q, D]`` float32, finite.
        k: at most the number of rows that will be shown in all.
        corpus_chunk: rows per matrix product.
        query_chunk: queries per matrix product; memory is about ``query_chunk * corpus_chunk * 5`` bytes.
        device: where products are made, such as ``cuda:1``; None for numpy on the CPU.
    """

    #: The queries that `_candidates` is at work on, on the device.
    _moved: Any = None

    def __init__(
        self, queries: Float32, k: int, *, corpus_chunk: int = 4096, query_chunk: int = 512, device: str | None = None
    ) -> None:
        self.queries = queries
        self.k = k
        self.corpus_chunk, self.query_chunk, self.device = corpus_chunk, query_chunk, device
        self.scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        self.rows = np.full((len(queries), k), _NO_ROW, dtype=np.int64)
        self._norms = _norms(queries)
        values = query_chunk * corpus_chunk if device is None else 0
        self._product = np.empty(values, dtype=np.float32)  # used again and again: new pages are slow
        self._above = np.empty(values, dtype=bool)

    def show(self, block: Float32, first: int, longest: float | None = None) -> None:
        """Take the rows of a block into account.

        Args:
            block: ``[N, D]`` float32, finite.
            first: the number of the block's first row.
            longest: at least the largest norm of a row, where it is known.
        """
        if not len(block):
            return
        longest = longest_norm(block) if longest is None else longest
        for start in range(0, len(self.queries), self.query_chunk):
            part = slice(start, start + self.query_chunk)
            slack = score_error_bound(self._norms[part], longest, self.queries.shape[1])
            self._moved = None if self.device is None else _on_device(self.queries[part], self.device)
            found = self._candidates(self.queries[part], block, self.scores[part, -1].astype(np.float64), slack)
            exact = exact_scores(self.queries[part], block, found.owner, found.row)
            self._merge(part, found.owner, first + found.row, exact)

    def merge(self, other: TopK) -> None:
        """Take in what another one, of the same queries and ``k``, has seen."""
        owner = np.repeat(np.arange(len(self.queries)), self.k)
        self._merge(slice(0, len(self.queries)), owner, other.rows.ravel(), other.scores.ravel())

    def _merge(self, part: slice, owner: Int64, row: Int64, score: Float32) -> None:
        count = len(self.scores[part])
        if not len(owner):
            return
        owners = np.concatenate([np.repeat(np.arange(count), self.k), owner])
        rows = np.concatenate([self.rows[part].ravel(), row])
        scores = np.concatenate([self.scores[part].ravel(), score])
        order, rank = _ranked(owners, scores, rows)
        keep = order[rank < self.k]  # every query has at least its k old places
        self.scores[part] = scores[keep].reshape(count, self.k)
        self.rows[part] = rows[keep].reshape(count, self.k)

    def _candidates(self, queries: Float32, block: Float32, floor: NDArray[np.float64], slack: NDArray[np.float64]) -> _Pairs:
        """What of a block could be among the best ``k``, at most about ``2 k`` of it for each query."""
        kept = _Pairs(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))
        limit = len(queries) * self.k
        fresh: list[_Pairs] = []
        waiting = 0
        for start in range(0, len(block), self.corpus_chunk):
            chunk = block[start : start + self.corpus_chunk]
            owner, column, score = self._above_threshold(queries, chunk, floor, slack)
            fresh.append(_Pairs(owner, column + start, score))
            waiting += len(owner)
            if waiting > limit:
                kept, waiting = self._cut(queries, block, [kept, *fresh], floor, slack), 0
                fresh = []
        return self._cut(queries, block, [kept, *fresh], floor, slack)

    def _cut(
        self, queries: Float32, block: Float32, parts: list[_Pairs], floor: NDArray[np.float64], slack: NDArray[np.float64]
    ) -> _Pairs:
        """Raise ``floor`` to the k-th best score and drop what lies below it; many near ties are decided exactly."""
        pairs = _joined(parts)
        np.maximum(floor, _kth_best(pairs.owner, pairs.score, len(queries), self.k), out=floor)
        pairs = pairs.at(pairs.score >= (floor - 2 * slack)[pairs.owner])
        crowded = (np.bincount(pairs.owner, minlength=len(queries)) > 2 * self.k + 64)[pairs.owner]
        if not crowded.any():
            return pairs
        tied = pairs.at(crowded)
        exact = exact_scores(queries, block, tied.owner, tied.row)
        order, rank = _ranked(tied.owner, exact, tied.row)
        return _joined([pairs.at(~crowded), tied._replace(score=exact).at(order[rank < self.k])])

    def _above_threshold(
        self, queries: Float32, chunk: Float32, floor: NDArray[np.float64], slack: NDArray[np.float64]
    ) -> tuple[Int64, Int64, Float32]:
        if self.device is not None:
            return _above_on_device(self._moved, chunk, self.k, floor, slack)
        out = self._product[: len(queries) * len(chunk)].reshape(len(queries), len(chunk))
        approximate = approximate_scores(queries, chunk, out)
        if len(chunk) > self.k and np.isneginf(floor).any():  # no k-th score yet: the chunk's own
            np.maximum(floor, _kth_largest(approximate, self.k), out=floor)
        threshold = _threshold(floor, slack)
        above = self._above[: approximate.size].reshape(approximate.shape)
        np.greater_equal(approximate, threshold[:, None], out=above)
        flat = _places(above.ravel())
        owner, column = np.divmod(flat, len(chunk))
        return owner, column, approximate.ravel()[flat]


def longest_norm(block: Float32) -> float:
    """At least the largest norm of a row of ``[N, D]`` float32."""
    slices = (block[start : start + 16384] for start in range(0, len(block), 16384))
    return max((float(_norms(part).max()) for part in slices), default=0.0)


def _norms(vectors: Float32) -> NDArray[np.float64]:
    return np.asarray(np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)) * (1 + 1e-12))


def score_error_bound(query_norms: NDArray[np.float64], longest: float, width: int) -> NDArray[np.float64]:
    """How far a float32 dot product of each query with any row can be from the exact one, rounded to float32.

    Source: Higham, Accuracy and Stability of Numerical Algorithms, section 3.1: ``|error| <= n u / (1 - n u) |x||y|``
    in any order of summation.
    """
    terms = width + 2  # one more rounding to float32, one for the bound's own arithmetic
    norms = query_norms * longest
    if not norms.max(initial=0.0) < np.finfo(np.float32).max:
        raise UserError("the vectors are so long that their inner products overflow float32")
    return np.asarray(terms * _UNIT_ROUNDOFF / (1 - terms * _UNIT_ROUNDOFF) * norms + terms * _SMALLEST_NORMAL)


def exact_scores(queries: Float32, chunk: Float32, owner: Int64, column: Int64) -> Float32:
    """Inner products of the pairs (``owner[i]``, ``column[i]``), summed in float64 in a fixed order, as float32."""
    scores = np.empty(len(owner), dtype=np.float32)
    step = max(1, _RESCORED_VALUES // queries.shape[1])
    for start in range(0, len(owner), step):
        part = slice(start, start + step)
        products = queries[owner[part]].astype(np.float64) * chunk[column[part]]
        scores[part] = products.sum(axis=1)
    return scores


def approximate_scores(queries: Float32, chunk: Float32, out: Float32) -> Float32:
    """The float32 matrix product, written to ``out``."""
    # numpy's matmul, not torch's: torch may be told to use bfloat16 or TF32 inside float32 products
    return np.matmul(queries, chunk.T, out=out)


def _on_device(vectors: Float32, device: Any) -> Any:
    import torch

    return torch.tensor(vectors, device="cpu").to(device)  # a copy: an array that is mapped from a file cannot be written to


def _above_on_device(
    queries_QD: Any, chunk: Float32, k: int, floor: NDArray[np.float64], slack: NDArray[np.float64]
) -> tuple[Int64, Int64, Float32]:
    """The same on the device where the queries are; only the few pairs that are left come back."""
    device = queries_QD.device
    with whole_float32():  # TF32 errs far beyond the bound
        product = queries_QD @ _on_device(chunk, device).T
    if len(chunk) > k and np.isneginf(floor).any():
        np.maximum(floor, product.topk(k, dim=1).values[:, -1].cpu().numpy(), out=floor)
    place = (product >= _on_device(_threshold(floor, slack), device)[:, None]).flatten().nonzero().squeeze(1)
    owner, column = np.divmod(place.cpu().numpy(), len(chunk))
    return owner, column, product.flatten().index_select(0, place).cpu().numpy()


def _threshold(floor: NDArray[np.float64], slack: NDArray[np.float64]) -> Float32:
    return np.asarray(np.nextafter((floor - 2 * slack).astype(np.float32), np.float32(-np.inf)))


def _kth_largest(scores: Float32, k: int) -> Float32:
    return np.asarray(np.partition(scores, scores.shape[1] - k, axis=1)[:, scores.shape[1] - k])


def _places(mask: NDArray[np.bool_]) -> Int64:
    """`np.flatnonzero` of a mask with few places, eight at a time."""
    whole = len(mask) // 8 * 8
    words = np.flatnonzero(mask[:whole].view(np.uint64))
    word, byte = np.nonzero(mask[:whole].reshape(-1, 8)[words])
    return np.concatenate([words[word] * 8 + byte, whole + np.flatnonzero(mask[whole:])])


def _kth_best(owner: Int64, score: Float32, owners: int, k: int) -> Float32:
    """The k-th largest score of each owner, -inf where it has fewer: one sort of integers that order as the pairs do."""
    bits = (score + np.float32(0)).view(np.uint32)  # -0.0 becomes 0.0
    rising = bits ^ np.where(bits >> 31, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))
    keys = np.sort((owner.astype(np.uint64) << np.uint64(32)) | ~rising)
    starts = np.searchsorted(keys, np.arange(owners + 1, dtype=np.uint64) << np.uint64(32))
    has = np.flatnonzero(np.diff(starts) >= k)
    found = ~keys[starts[has] + k - 1].astype(np.uint32)
    kth = np.full(owners, -np.inf, dtype=np.float32)
    kth[has] = (found ^ np.where(found >> 31, np.uint32(0x80000000), np.uint32(0xFFFFFFFF))).view(np.float32)
    return kth


def _ranked(owner: Int64, score: Float32, row: Int64) -> tuple[Int64, Int64]:
    """The order by owner, falling score and rising row; and each place's rank within its owner, from 0."""
    order = np.lexsort((row, -score, owner))
    owners = owner[order]
    return order, np.arange(len(owners)) - np.searchsorted(owners, owners)
