"""The passages that a retriever ranks high for each query, and which of them a cross-encoder takes for false negatives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_e5.curation.engines.inference import ScoreBy, ScoreGroups
from lightning_e5.curation.engines.run_parts import Function, MadeWhenUsed, Progress, parts_of, run_parts
from lightning_e5.curation.mining.collections import MiningData
from lightning_e5.curation.mining.tasks import Asked, ScoreCandidates, SearchEmbeddings
from lightning_e5.retrieval.bm25 import BM25
from lightning_e5.types import Kind, PairScorer

#: Texts of a part of embeddings, queries of a part of searches, queries of a part of cross-encoder scores.
TEXTS, SEARCHES, RESCORED = 32768, 4096, 512


class Candidates(NamedTuple):
    """rows_QK: int64 corpus rows, best first, -1 where fewer were found; scores_QK: float32; positive_scores_Q: float32."""

    rows_QK: NDArray[np.int64]
    scores_QK: NDArray[np.float32]
    positive_scores_Q: NDArray[np.float32]


def dense_candidates(
    data: MiningData, embedder: Function, depth: int, folder: Path, *, passage_kind: Kind = "passage", **where: Any
) -> Candidates:
    """By an encoder's cosine (or dot product, where that is its similarity), over all passages, exactly.

    Args:
        embedder: (kind, texts) -> ``embeddings`` (`EmbedTexts`, `EmbedBy`).
        depth: candidates of each query.
        folder: of the parts: embeddings and searches.
        where: `run_parts`' engine and GPUs.
    """
    queries = parts_of(folder / "queries", len(data.queries), TEXTS, lambda rows: ("query", data.queries[rows]))
    corpus = parts_of(folder / "passages", len(data.corpus), TEXTS, lambda rows: (passage_kind, data.corpus[rows]))
    for _ in run_parts(embedder, queries + corpus, title="embed", unit="text", **where):
        pass
    search = SearchEmbeddings([part.path for part in queries], [part.path for part in corpus], TEXTS, depth)
    parts = parts_of(folder / "found", len(data.queries), SEARCHES, lambda rows: (rows, np.asarray(data.positives[rows])))
    return _joined(run_parts(search, parts, title="search", unit="query", **where))


def lexical_candidates(data: MiningData, bm25: BM25, depth: int, folder: Path) -> Candidates:
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

    return _joined(run_parts(search, parts_of(folder / "found", len(data.queries), SEARCHES), title="search", unit="query"))


def _joined(found: Iterable[Mapping[str, Any]]) -> Candidates:
    blocks = list(found)
    return Candidates(*(np.concatenate([block[name] for block in blocks]) for name in ("rows", "scores", "positive")))


def false_negatives(
    data: MiningData, candidates: Candidates, window: slice, teacher: PairScorer | ScoreGroups, folder: Path, *, margin: float, max_score: float | None, **where: Any
) -> NDArray[np.bool_]:
    """Which candidates a cross-encoder takes for answers (false negatives): bool ``[Q, K]``, False outside the window of ranks.

    A candidate is one where it scores at least ``positive - margin`` (a tie with the positive is an answer, too: a collapsed
    cross-encoder vetoes everything instead of nothing) or above ``max_score``. It reads every candidate in the
    window that is no known positive, so a narrow window saves time.

    Source: the de-noising of RocketQA (Qu et al., 2021); E5 takes SimLM's negatives, whose teacher does the same by its scores.
    """
    allowed_QK = np.zeros(candidates.rows_QK.shape, dtype=bool)
    for row, found in enumerate(candidates.rows_QK[:, window]):
        texts = data.corpus_text_P[found]
        allowed_QK[row, window] = (found >= 0) & ~np.isin(texts, list(data.known[row]))

    def asked(rows: slice) -> Asked:
        places = np.argwhere(allowed_QK[rows])
        passages = [data.corpus[candidates.rows_QK[rows.start + q, k]] for q, k in places]
        return Asked(list(data.queries[rows]), list(data.positive_texts[rows]), places, passages, np.size(allowed_QK, 1))

    def pairs(rows: slice) -> int:
        return int(allowed_QK[rows].sum()) + rows.stop - rows.start

    parts = parts_of(folder / "rescored", len(data.queries), RESCORED, lambda rows: MadeWhenUsed(partial(asked, rows)), steps=pairs)
    score = ScoreCandidates(teacher if isinstance(teacher, ScoreGroups) else ScoreBy(teacher))
    vetoes = []
    for block in run_parts(score, parts, title="de-noise", unit="pair", **where):
        veto = block["scores"] >= (block["positive"] - margin)[:, None]
        vetoes.append(veto if max_score is None else veto | (block["scores"] > max_score))
    return np.concatenate(vetoes) & allowed_QK
