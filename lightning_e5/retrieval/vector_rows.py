"""Rows of vectors in blocks, in memory or mapped from files, as faiss is given them."""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_e5.files.scratch import blocks, release
from lightning_e5.retrieval.top_k import Float32, Int64

#: Rows that are given to faiss together; the graph of ``hnsw`` depends on how they are cut.
_ROWS_AT_ONCE, _GRAPH_ROWS_AT_ONCE = 1 << 16, 1 << 20


class VectorRows:
    """Rows of vectors in blocks, that may be mapped from files, without a copy of them all."""

    def __init__(self, blocks: list[Any]) -> None:
        self.blocks, self.width = blocks, blocks[0].shape[1]
        self._firsts = np.cumsum([0, *map(len, blocks)])

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def __getitem__(self, rows: Int64) -> Float32:
        if len(self.blocks) == 1:
            return as_float32(self.blocks[0][rows])
        found = np.empty((len(rows), self.width), dtype=np.float32)
        numbers = np.searchsorted(self._firsts, rows, "right") - 1
        for number in np.unique(numbers).tolist():
            places = np.flatnonzero(numbers == number)
            found[places] = self.blocks[number][rows[places] - self._firsts[number]]
        return found

    def add_to(self, index: Any, sample: Float32 | None, *, whole: bool = False) -> Any:
        """Train the index on a sample, if it is given, and add all rows to it; ``whole``: a block is never cut."""
        if sample is not None:
            index.train(sample)
        rows_at_once = _GRAPH_ROWS_AT_ONCE if whole else _ROWS_AT_ONCE
        held: list[Float32] = []

        def give() -> None:
            if held:
                index.add(np.concatenate(held) if len(held) > 1 else held[0])
                held.clear()

        for block in self.blocks:
            for part in [slice(0, len(block))] if whole else blocks(len(block), rows_at_once):
                held.append(as_float32(block[part]))
                if sum(map(len, held)) >= rows_at_once:
                    give()
            release(block)
        give()
        return index


def as_float32(block: Any) -> Float32:
    """Rows as faiss takes them: themselves, where they are float32 in one aligned piece."""
    return np.require(block, np.float32, ["C", "A"])
