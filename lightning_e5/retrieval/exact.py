"""Exact inner-product search: the referee of every other index.

A float32 matmul may differ in its last bit with the shape of its operands, so a plain chunked search breaks ties in
another way for another chunk size. Here the matmul only proposes candidates: every row whose score could, within the
rounding error of a float32 dot product, belong to the top k. The candidates are scored again in float64, always in the
same order of summation, and rounded to float32. The outcome depends on the vectors alone, not on chunks or threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lightning_e5.errors import UserError

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

_UNIT_ROUNDOFF = 2.0**-24  # of float32
_SMALLEST_NORMAL = 2.0**-126  # what one flushed product can lose
_RESCORED_VALUES = 1 << 21  # values per slice of the float64 pass: 2^21 x 8 bytes = 16 MiB per operand


class VectorIndex(Protocol):
    """Rows of vectors that can be searched by inner product."""

    def add(self, vectors: Any) -> None:
        """Append ``[N, D]`` float32 vectors; rows are numbered in the order in which they were added."""
        ...

    def search(self, queries: Any, k: int) -> tuple[Float32, Int64]:
        """Return scores ``[Q, k]`` and rows ``[Q, k]``, best first."""
        ...


class ExactIndex:
    """Brute-force inner-product search in bounded memory, the same result for every chunk size.

    Of rows with equal scores the lower row comes first.

    Args:
        corpus_chunk: rows per matmul.
        query_chunk: queries per matmul; memory is about ``query_chunk * corpus_chunk * 5`` bytes.
    """

    def __init__(self, corpus_chunk: int = 8192, query_chunk: int = 256) -> None:
        if corpus_chunk < 1 or query_chunk < 1:
            raise UserError(f"corpus_chunk and query_chunk must be at least 1, not {corpus_chunk} and {query_chunk}")
        self.corpus_chunk = corpus_chunk
        self.query_chunk = query_chunk
        self._blocks: list[Float32] = []

    def __len__(self) -> int:
        return sum(len(block) for block in self._blocks)

    def add(self, vectors: Any) -> None:
        """Append rows.

        Args:
            vectors: ``[N, D]`` float32, an array or a CPU tensor. Kept without a copy where it is contiguous.

        Raises:
            UserError: not two-dimensional, another width than the rows before, NaN or infinite.
        """
        block = _checked(vectors, "vectors", self._blocks[0].shape[1] if self._blocks else None)
        self._blocks.append(block)

    def search(self, queries: Any, k: int) -> tuple[Float32, Int64]:
        """The ``k`` rows of highest inner product for each query.

        Args:
            queries: ``[Q, D]`` float32.
            k: results per query; cut to the number of rows.

        Returns:
            Scores float32 ``[Q, k]``, falling, and rows int64 ``[Q, k]``; equal scores by rising row.

        Raises:
            UserError: the index is empty, ``k`` is below 1, or the queries do not fit the rows or are not finite.
        """
        if not len(self):
            raise UserError("the index is empty: add vectors before a search")
        if k < 1:
            raise UserError(f"k must be at least 1, not {k}")
        array = _checked(queries, "queries", self._blocks[0].shape[1])
        k = min(k, len(self))
        scores = np.empty((len(array), k), dtype=np.float32)
        rows = np.empty((len(array), k), dtype=np.int64)
        for start in range(0, len(array), self.query_chunk):
            part = slice(start, start + self.query_chunk)
            scores[part], rows[part] = self._search_chunk(array[part], k)
        return scores, rows

    def _chunks(self) -> Iterator[tuple[int, Float32]]:
        first = 0
        for block in self._blocks:
            for start in range(0, len(block), self.corpus_chunk):
                yield first + start, block[start : start + self.corpus_chunk]
            first += len(block)

    def _search_chunk(self, queries: Float32, k: int) -> tuple[Float32, Int64]:
        count = len(queries)
        best_owner, best_rows = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        best_scores = np.empty(0, dtype=np.float32)
        floor = np.full(count, -np.inf)  # the exact k-th score so far; a row below it cannot enter any more
        for first, chunk in self._chunks():
            owner, column = self._candidates(queries, chunk, k, floor)
            owners = np.concatenate([best_owner, owner])
            rows = np.concatenate([best_rows, first + column])
            scores = np.concatenate([best_scores, exact_scores(queries, chunk, owner, column)])
            order = np.lexsort((rows, -scores, owners))
            owners = owners[order]
            rank = np.arange(len(owners)) - np.searchsorted(owners, owners)  # within the query, from 0
            keep = order[rank < k]
            best_scores, best_rows = scores[keep], rows[keep]
            best_owner = owners[rank < k]
            last = rank == k - 1
            floor[owners[last]] = scores[order[last]]
        return best_scores.reshape(count, k), best_rows.reshape(count, k)

    def _candidates(self, queries: Float32, chunk: Float32, k: int, floor: NDArray[np.float64]) -> tuple[Int64, Int64]:
        """(query, row of the chunk) of every pair that could be in the top k, given matmul errors up to ``slack``."""
        slack = score_error_bound(queries, chunk)
        approximate = _approximate_scores(queries, chunk)
        threshold = floor - slack
        if len(chunk) > k and np.isneginf(floor).any():  # no k-th score yet: the chunk's own, both sides may be off
            kth = np.partition(approximate, len(chunk) - k, axis=1)[:, len(chunk) - k]
            threshold = np.maximum(threshold, kth - 2 * slack)
        owner, column = np.nonzero(approximate >= threshold[:, None])
        return owner, column


def score_error_bound(queries: Float32, chunk: Float32) -> NDArray[np.float64]:
    """How far a float32 dot product of each query with any row can be from the exact one, rounded to float32.

    Source: Higham, Accuracy and Stability of Numerical Algorithms, section 3.1: ``|error| <= n u / (1 - n u) |x||y|``
    in any order of summation.
    """
    terms = queries.shape[1] + 2  # one more rounding to float32, one for the bound's own arithmetic
    norms = np.linalg.norm(queries.astype(np.float64), axis=1) * np.sqrt(
        np.einsum("nd,nd->n", chunk, chunk, dtype=np.float64).max()
    )
    if norms.max(initial=0.0) >= np.finfo(np.float32).max:
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


def _approximate_scores(queries: Float32, chunk: Float32) -> Float32:
    # numpy's matmul, not torch's: torch may be told to use bfloat16 or TF32 inside float32 products
    return queries @ chunk.T


def _checked(vectors: Any, name: str, width: int | None) -> Float32:
    array = np.asarray(vectors)
    if array.dtype != np.float32:
        raise UserError(f"{name} must be float32, not {array.dtype}")
    if array.ndim != 2 or array.shape[1] == 0:
        raise UserError(f"{name} must have the shape [N, D], not {list(array.shape)}")
    if width is not None and array.shape[1] != width:
        raise UserError(f"{name} have width {array.shape[1]}, the index has width {width}")
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        raise UserError(f"{name} hold NaN or infinity, first in row {int(np.argmin(finite))}")
    return np.ascontiguousarray(array)
