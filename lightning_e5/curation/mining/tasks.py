"""What mining has computed part by part: searches of embeddings, and a cross-encoder's scores of what they found; functions of `run_parts`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_e5.curation.engines.inference import ScoreBy, ScoreGroups
from lightning_e5.curation.engines.run_parts import Progress
from lightning_e5.retrieval.exact import ExactIndex, exact_scores


@dataclass(frozen=True)
class SearchEmbeddings:
    """(rows of queries, corpus row of each one's positive) -> ``rows`` and ``scores`` of the passages found, ``positive`` score.

    Args:
        queries, passages: files of embeddings (``.npz``), in order.
        size: rows of each file but the last.
        depth: passages of each query.
    """

    queries: Sequence[Path]
    passages: Sequence[Path]
    size: int
    depth: int

    @cached_property
    def vectors(self) -> list[NDArray[np.float32]]:
        """The passages', file by file."""
        return [_embeddings(path) for path in self.passages]

    @cached_property
    def index(self) -> ExactIndex:
        """Of the passages."""
        index = ExactIndex()
        for part in self.vectors:
            index.add(part)
        return index

    def __call__(self, work: tuple[slice, NDArray[np.int64]], progress: Progress) -> dict[str, NDArray[Any]]:
        rows, positives = work
        queries_QD = self._queries(rows)
        scores, found = self.index.search(queries_QD, self.depth)
        own = np.stack([self.vectors[row // self.size][row % self.size] for row in positives])
        each = np.arange(len(own))
        return {"rows": found, "scores": scores, "positive": exact_scores(queries_QD, own, each, each)}

    def _queries(self, rows: slice) -> NDArray[np.float32]:
        first, last = rows.start // self.size, (rows.stop - 1) // self.size
        read = np.concatenate([_embeddings(path) for path in self.queries[first : last + 1]])
        return read[rows.start - first * self.size : rows.stop - first * self.size]


def _embeddings(path: Path) -> NDArray[np.float32]:
    with np.load(path, allow_pickle=False) as stored:
        return np.asarray(stored["embeddings"])


class Asked(NamedTuple):
    """What a cross-encoder is asked of some queries: the texts of each one's positive, and of candidates at ``places`` ``[N, 2]``
    (query, candidate) of a table of ``columns`` candidates."""

    queries: Sequence[str]
    positives: Sequence[str]
    places: NDArray[np.int64]
    passages: Sequence[str]
    columns: int


@dataclass(frozen=True)
class ScoreCandidates:
    """`Asked` -> ``positive`` float32 ``[Q]`` and ``scores`` float32 ``[Q, K]``, -inf where nothing was asked."""

    scorer: ScoreGroups | ScoreBy

    def __call__(self, work: Asked, progress: Progress) -> dict[str, NDArray[Any]]:
        asked = [work.queries[query] for query, _ in work.places]
        logits = self.scorer.model.score([*work.queries, *asked], [*work.positives, *work.passages]).numpy()
        scores = np.full((len(work.queries), work.columns), -np.inf, dtype=np.float32)
        scores[tuple(work.places.T)] = logits[len(work.queries) :]
        return {"positive": logits[: len(work.queries)], "scores": scores}
