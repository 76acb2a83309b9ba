"""Exact inner-product search: the brute-force reference of every other index.

A plain chunked search breaks ties in another way for another chunk size; `TopK` explains why this one does not.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from lightning_e5.configurable import configurable
from lightning_e5.distributed.devices import DeviceName, inference_device
from lightning_e5.errors import UserError
from lightning_e5.ranges import Count
from lightning_e5.retrieval.top_k import ON_CPU, ON_GPU, Float32, Int64, TopK, exact_scores, longest_norm

__all__ = ["ExactIndex", "VectorIndex", "checked_vectors", "exact_scores"]


@configurable("index")
class VectorIndex(Protocol):
    """Rows of vectors that can be searched by inner product."""

    def add(self, vectors: Any) -> None:
        """Append ``[N, D]`` float32 vectors; rows are numbered in the order in which they were added."""
        ...

    def search(self, queries: Any, k: int) -> tuple[Float32, Int64]:
        """Return scores ``[Q, k]`` and rows ``[Q, k]``, best first; row -1, score -inf where fewer were found."""
        ...


@configurable("index")
class ExactIndex:
    """Brute-force inner-product search in bounded memory, the same result for every chunk size and device.

    Of rows with equal scores the lower row comes first. The rows stay in the memory of the CPU.

    Args:
        corpus_chunk: rows per matmul; 4,096 by default, 32,768 on a GPU.
        query_chunk: queries per matmul, 512 by default, 4,096 on a GPU; memory is about ``query_chunk * corpus_chunk * 5`` bytes.
        device: where products are made; ``auto`` is the GPU where there is one.

    Example:
        >>> index = ExactIndex()
        >>> index.add(np.eye(3, dtype=np.float32))
        >>> scores, rows = index.search(np.array([[0.6, 0.8, 0.0]], dtype=np.float32), k=2)
        >>> rows.tolist()
        [[1, 0]]
    """

    def __init__(self, corpus_chunk: Count | None = None, query_chunk: Count | None = None, *, device: DeviceName = "auto") -> None:
        if any(chunk is not None and chunk < 1 for chunk in (corpus_chunk, query_chunk)):
            raise UserError(f"corpus_chunk and query_chunk must be at least 1, not {corpus_chunk} and {query_chunk}")
        self.corpus_chunk, self.query_chunk, self.device = corpus_chunk, query_chunk, device
        self._blocks: list[Float32] = []
        self._longest: list[float] = []

    def __len__(self) -> int:
        return sum(len(block) for block in self._blocks)

    def add(self, vectors: Any) -> None:
        """Append rows.

        Args:
            vectors: ``[N, D]`` float32, an array or a CPU tensor. Kept without a copy where it is contiguous.

        Raises:
            UserError: not two-dimensional, another width than the rows before, NaN or infinite.
        """
        block = checked_vectors(vectors, "vectors", self._blocks[0].shape[1] if self._blocks else None)
        self._blocks.append(block)
        self._longest.append(longest_norm(block))

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
        check_searchable(len(self), k)
        array = checked_vectors(queries, "queries", self._blocks[0].shape[1])
        device = inference_device(self.device)
        rows, at_once = ON_CPU if device.type == "cpu" else ON_GPU
        best = TopK(
            array, min(k, len(self)), corpus_chunk=min(self.corpus_chunk or rows, len(self)),
            query_chunk=max(1, min(self.query_chunk or at_once, len(array))), device=None if device.type == "cpu" else str(device),
        )  # fmt: skip
        first = 0
        for block, longest in zip(self._blocks, self._longest, strict=True):
            best.show(block, first, longest)
            first += len(block)
        return best.scores, best.rows


def check_searchable(rows: int, k: int) -> None:
    """UserError for a search of an empty index, or for fewer than one result."""
    if not rows:
        raise UserError("the index is empty: add vectors before a search")
    if k < 1:
        raise UserError(f"k must be at least 1, not {k}")


def checked_vectors(vectors: Any, name: str, width: int | None) -> Float32:
    """``vectors`` as a contiguous array; UserError where it is not finite float32 ``[N, D]`` (of this ``width``)."""
    array = np.asarray(vectors)
    if array.dtype != np.float32:
        raise UserError(f"{name} must be float32, not {array.dtype}")
    if array.ndim != 2 or array.shape[1] == 0:
        raise UserError(f"{name} must have the shape [N, D], not {list(array.shape)}")
    if width is not None and array.shape[1] != width:
        raise UserError(f"{name} have width {array.shape[1]}, the index has width {width}")
    for start in range(0, len(array), 65536):  # in slices: the mask of a large corpus is large itself
        finite = np.isfinite(array[start : start + 65536]).all(axis=1)
        if not finite.all():
            raise UserError(f"{name} hold NaN or infinity, first in row {start + int(np.argmin(finite))}")
    return np.ascontiguousarray(array)
