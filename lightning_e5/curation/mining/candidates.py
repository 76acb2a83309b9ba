"""The passages that a retriever ranks high for each query, and which of them a cross-encoder takes for false negatives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_e5.curation.engines.inference import ScoreBy, ScoreGroups
from lightning_e5.curation.engines.run_parts import (
    Function,
    MadeWhenUsed,
    Part,
    Progress,
    parts_of,
    read_arrays,
    run_parts,
)
from lightning_e5.curation.mining.collections import MiningData, sampled_rows
from lightning_e5.curation.mining.tasks import Asked, ScoreCandidates, SearchVectors
from lightning_e5.errors import UserError
from lightning_e5.retrieval.bm25 import BM25
from lightning_e5.retrieval.exact import VectorIndex, checked_vectors
from lightning_e5.retrieval.mapped_vectors import StoredType
from lightning_e5.types import Kind, PairScorer

#: Texts of a part of embeddings, queries of a part of searches, queries of a part of cross-encoder scores.
TEXTS, SEARCHES, RESCORED = 32768, 4096, 512  # a part of scores lies within one of searches


class Candidates(NamedTuple):
    """rows_QK: int64 corpus rows, best first, -1 where fewer were found; scores_QK: float32; positive_scores_Q: float32."""

    rows_QK: NDArray[np.int64]
    scores_QK: NDArray[np.float32]
    positive_scores_Q: NDArray[np.float32]

    def of(self, rows: slice) -> Candidates:
        """Those of some queries."""
        return Candidates(self.rows_QK[rows], self.scores_QK[rows], self.positive_scores_Q[rows])


class _File(NamedTuple):
    """What is known of some queries."""

    rows: slice
    path: Path


def _files(parts: Sequence[Part]) -> list[_File]:
    """The parts' files, each with its queries."""
    ends = np.cumsum([part.rows for part in parts]).tolist()
    return [_File(slice(end - part.rows, end), part.path) for end, part in zip(ends, parts, strict=True)]


class StoredCandidates:
    """Candidates in the files of the searches, of which one is in memory; `of` and `whole` give them.

    recall: of the index that found them against exact search, None for one that is exact.
    """

    def __init__(self, parts: Sequence[Part], recall: float | None = None) -> None:
        self._files, self.recall = _files(parts), recall
        self._read: tuple[int, Candidates] | None = None

    def __len__(self) -> int:
        return self._files[-1].rows.stop

    def parts(self) -> Iterator[slice]:
        """The queries of each file."""
        return (file.rows for file in self._files)

    def of(self, rows: slice) -> Candidates:
        """Those of some queries, all of one file."""
        number = rows.start // self._files[0].rows.stop
        if self._read is None or self._read[0] != number:
            found = read_arrays(self._files[number].path)
            self._read = number, Candidates(*(found[name] for name in ("rows", "scores", "positive")))
        first = self._files[number].rows.start
        return self._read[1].of(slice(rows.start - first, rows.stop - first))

    def whole(self) -> Candidates:
        """Those of all queries."""
        return Candidates(*(np.concatenate(columns) for columns in zip(*map(self.of, self.parts()), strict=True)))


@dataclass(frozen=True)
class _Stored:
    """(kind, texts) -> ``embeddings`` as they are written to the parts' files."""

    embedder: Function
    dtype: StoredType

    def __call__(self, work: tuple[Kind, Sequence[str]], progress: Progress) -> dict[str, NDArray[Any]]:
        kind, texts = work
        found = checked_vectors(self.embedder((kind, list(texts)), progress)["embeddings"], "embeddings", None)
        if self.dtype == "float16" and np.abs(found).max() > np.finfo(np.float16).max:
            raise UserError("negatives.vectors: the embeddings have values above 65,504, which float16 cannot hold; take float32")
        return {"embeddings": found.astype(self.dtype, copy=False)}


def dense_candidates(
    data: MiningData, embedder: Function, depth: int, folder: Path, *, passage_kind: Kind = "passage", vectors: StoredType = "float32",
    index: VectorIndex | None = None, recall_queries: int = 1000, seed: int = 0, **where: Any,
) -> StoredCandidates:  # fmt: skip
    """By an encoder's cosine (or dot product, where that is its similarity), over all passages, exactly if nothing else is said.

    The embeddings lie in files, from which they are mapped part by part.

    Args:
        embedder: (kind, texts) -> ``embeddings`` (`EmbedTexts`, `EmbedBy`).
        depth: candidates of each query.
        folder: of the parts: embeddings and searches.
        vectors: how embeddings are written.
        index: an empty index that finds the candidates instead, such as `FaissIndex`, with memory of its own.
        recall_queries, seed: how many queries, drawn by the seed, an approximate index's recall is measured on.
        where: `run_parts`' engine and GPUs, for the embeddings and for exact searches.
    """
    queries = parts_of(folder / "queries", len(data.queries), TEXTS, lambda rows: ("query", data.queries[rows]))
    corpus = parts_of(folder / "passages", len(data.corpus), TEXTS, lambda rows: (passage_kind, data.corpus[rows]))
    for _ in run_parts(_Stored(embedder, vectors), queries + corpus, title="embed", unit="text", **where):
        pass
    search = SearchVectors([part.path for part in queries], [part.path for part in corpus], depth, index)
    found = parts_of(folder / "found", len(data.queries), SEARCHES, lambda rows: (rows, np.asarray(data.positives[rows])))
    # An approximate index is built once, here; exact search reads the files anywhere.
    for _ in run_parts(search, found, title="search", unit="query", **(where if index is None else {})):
        pass
    if not hasattr(index, "recall_against"):
        return StoredCandidates(found)
    sample = search.asked.take(sampled_rows(len(search.asked), recall_queries, seed))
    return StoredCandidates(found, search.searched.recall_against(search.stored, sample, depth))


def lexical_candidates(data: MiningData, bm25: BM25, depth: int, folder: Path) -> StoredCandidates:
    """By BM25; a query gets only passages that share a word with it."""
    index = None

    def search(part: slice, progress: Progress) -> dict[str, NDArray[Any]]:
        nonlocal index
        index = index or bm25.index(data.corpus)
        count = part.stop - part.start
        rows = np.full((count, depth), -1, dtype=np.int64)
        scores = np.zeros((count, depth), dtype=np.float32)
        positive = np.zeros(count, dtype=np.float32)
        for i, (query, own) in enumerate(zip(data.queries[part], data.positives[part], strict=True)):
            all_scores = index.scores(query)
            found = index.best_rows(all_scores, depth)
            rows[i, : len(found)], scores[i, : len(found)], positive[i] = found, all_scores[found], all_scores[own]
        return {"rows": rows, "scores": scores, "positive": positive}

    return StoredCandidates(_searched(search, len(data.queries), folder))


def _searched(search: Callable[[slice, Progress], dict[str, NDArray[Any]]], queries: int, folder: Path) -> list[Part]:
    parts = parts_of(folder / "found", queries, SEARCHES)
    for _ in run_parts(search, parts, title="search", unit="query"):
        pass
    return parts


class StoredVetoes:
    """Which candidates a cross-encoder takes for answers, from the files of its scores; see `false_negatives`."""

    def __init__(self, parts: Sequence[Part], margin: float, max_score: float | None) -> None:
        self._files, self._margin, self._max_score = _files(parts), margin, max_score

    def of(self, rows: slice) -> NDArray[np.bool_]:
        """Those of some queries, bool ``[len(rows), K]``."""
        found = []
        for own, path in self._files:
            if own.start < rows.stop and own.stop > rows.start:
                inside = slice(max(rows.start, own.start) - own.start, min(rows.stop, own.stop) - own.start)
                found.append(self._of_part(path)[inside])
        return np.concatenate(found)

    def whole(self) -> NDArray[np.bool_]:
        """Those of all queries."""
        return np.concatenate([self._of_part(path) for _, path in self._files])

    def _of_part(self, path: Path) -> NDArray[np.bool_]:
        block = read_arrays(path)
        scored = ~np.isneginf(block["scores"])
        veto = block["scores"] >= (block["positive"] - self._margin)[:, None]
        return (veto if self._max_score is None else veto | (block["scores"] > self._max_score)) & scored


def score_candidates(
    data: MiningData, candidates: Candidates | StoredCandidates, window: slice, teacher: PairScorer | ScoreGroups, folder: Path, *,
    margin: float, max_score: float | None, **where: Any,
) -> StoredVetoes:  # fmt: skip
    """As `false_negatives`, kept in files."""

    def asked(rows: slice) -> Asked:
        rows_QK = candidates.of(rows).rows_QK
        allowed_QK = np.zeros(rows_QK.shape, dtype=bool)
        for row, found in enumerate(rows_QK[:, window]):
            texts = data.corpus_text_P[found]
            allowed_QK[row, window] = (found >= 0) & ~np.isin(texts, list(data.known[rows.start + row]))
        places = np.argwhere(allowed_QK)
        passages = [data.corpus[rows_QK[q, k]] for q, k in places.tolist()]
        return Asked(list(data.queries[rows]), list(data.positive_texts[rows]), places, passages, rows_QK.shape[1])

    most = 1 + (window.stop - window.start)
    parts = parts_of(
        folder / "rescored", len(data.queries), RESCORED, lambda rows: MadeWhenUsed(partial(asked, rows)), steps=lambda rows: most * (rows.stop - rows.start)
    )
    score = ScoreCandidates(teacher if isinstance(teacher, ScoreGroups) else ScoreBy(teacher))
    for _ in run_parts(score, parts, title="de-noise", unit="pair", **where):
        pass
    return StoredVetoes(parts, margin, max_score)


def false_negatives(
    data: MiningData, candidates: Candidates | StoredCandidates, window: slice, teacher: PairScorer | ScoreGroups, folder: Path, *,
    margin: float, max_score: float | None, **where: Any,
) -> NDArray[np.bool_]:
    """Which candidates a cross-encoder takes for answers (false negatives): bool ``[Q, K]``, False outside the window of ranks.

    A candidate is one where it scores at least ``positive - margin`` (a tie with the positive is an answer, too: a collapsed
    cross-encoder vetoes everything instead of nothing) or above ``max_score``. It reads every candidate in the
    window that is no known positive, so a narrow window saves time.

    Source: the de-noising of RocketQA (Qu et al., 2021); E5 takes SimLM's negatives, whose teacher does the same by its scores.
    """
    return score_candidates(data, candidates, window, teacher, folder, margin=margin, max_score=max_score, **where).whole()
