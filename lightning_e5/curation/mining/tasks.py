"""What mining has computed part by part: searches of embeddings, and a cross-encoder's scores of what they found; functions of `run_parts`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_e5.curation.engines.inference import ScoreBy, ScoreGroups
from lightning_e5.curation.engines.run_parts import Progress
from lightning_e5.retrieval.exact import VectorIndex, exact_scores
from lightning_e5.retrieval.mapped_vectors import MappedVectors


@dataclass(frozen=True)
class SearchVectors:
    """(rows of queries, corpus row of each one's positive) -> ``rows`` and ``scores`` of the passages found, ``positive`` score.

    Args:
        queries, passages: files of embeddings, in order (see `MappedVectors`).
        depth: passages of each query.
        index: an empty index that finds them; None for exact search in the files.
    """

    queries: Sequence[Path]
    passages: Sequence[Path]
    depth: int
    index: VectorIndex | None = None

    @cached_property
    def asked(self) -> MappedVectors:
        """The queries' embeddings."""
        return MappedVectors.of(self.queries)

    @cached_property
    def stored(self) -> MappedVectors:
        """The passages' embeddings."""
        return MappedVectors.of(self.passages)

    @cached_property
    def searched(self) -> Any:
        """What is searched: the index with the passages' embeddings in it, or these themselves."""
        if self.index is None:
            return self.stored
        index = copy.deepcopy(self.index)  # empty for every mining
        self.stored.add_to(index)
        return index

    def __call__(self, work: tuple[slice, NDArray[np.int64]], progress: Progress) -> dict[str, NDArray[Any]]:
        rows, positives = work
        queries_QD = self.asked.take(np.arange(rows.start, rows.stop))
        scores, found = self.searched.search(queries_QD, self.depth)
        own = self.stored.take(positives)
        each = np.arange(len(own))
        return {"rows": found, "scores": scores, "positive": exact_scores(queries_QD, own, each, each)}


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
