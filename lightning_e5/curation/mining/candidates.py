"""The passages that a retriever ranks high for each query, and what a cross-encoder thinks of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_e5.curation.engines.blocks import KeptBlocks
from lightning_e5.curation.mining.collections import MiningData
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.progress import progress
from lightning_e5.retrieval.bm25 import BM25
from lightning_e5.retrieval.exact import ExactIndex, exact_scores
from lightning_e5.types import Kind, PairScorer, compares_by_cosine

#: Texts of a block of embeddings, queries of a block of searches, queries of a block of cross-encoder scores.
TEXTS, _SEARCHES, _JUDGED = 32768, 4096, 512


class Candidates(NamedTuple):
    """rows_QK: int64 corpus rows, best first, -1 where fewer were found; scores_QK: float32; positive_scores_Q: float32."""

    rows_QK: NDArray[np.int64]
    scores_QK: NDArray[np.float32]
    positive_scores_Q: NDArray[np.float32]


def dense_candidates(data: MiningData, model: TextEncoder, depth: int, blocks: KeptBlocks, *, passage_kind: Kind = "passage") -> Candidates:
    """By an encoder's cosine (or dot product, where that is its similarity), over all passages, exactly; embeddings and searches are kept block by block."""
    index = ExactIndex()
    with progress(len(data.queries) + len(data.corpus), "embed", "text") as bar:

        def embedded(name: str, texts: list[str], kind: Kind) -> list[NDArray[np.float32]]:
            def compute(part: slice) -> dict[str, NDArray[np.float32]]:
                return {"embeddings": model.embed(texts[part], kind, normalize=compares_by_cosine(model), progress=bar).numpy()}

            return [block["embeddings"] for block in blocks.run(name, len(texts), TEXTS, compute, bar)]

        queries_QD = np.concatenate(embedded("queries", list(data.queries), "query"))
        passages = embedded("passages", list(data.corpus), passage_kind)
    for part in passages:
        index.add(part)

    def search(part: slice) -> dict[str, NDArray[np.float32]]:
        scores, rows = index.search(queries_QD[part], depth)
        own = data.positives[part]
        vectors = np.stack([passages[row // TEXTS][row % TEXTS] for row in own])
        each = np.arange(len(own))
        return {"rows": rows, "scores": scores, "positive": exact_scores(queries_QD[part], vectors, each, each)}  # type: ignore[dict-item]

    return _searched(len(data.queries), search, blocks)


def lexical_candidates(data: MiningData, bm25: BM25, depth: int, blocks: KeptBlocks) -> Candidates:
    """By BM25; a query gets only passages that share a word with it. Searches are kept block by block."""
    index = None

    def search(part: slice) -> dict[str, NDArray[np.float32]]:
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
        return {"rows": rows, "scores": scores, "positive": positive}  # type: ignore[dict-item]

    return _searched(len(data.queries), search, blocks)


def _searched(queries: int, search: Callable[[slice], dict[str, NDArray[np.float32]]], blocks: KeptBlocks) -> Candidates:
    parts = []
    with progress(queries, "search", "query") as bar:
        for block in blocks.run("found", queries, _SEARCHES, search):
            parts.append(block)
            bar(len(block["rows"]))
    rows, scores, positive = (np.concatenate([p[key] for p in parts]) for key in ("rows", "scores", "positive"))
    return Candidates(rows, scores, positive)


def answers_of_the_teacher(
    data: MiningData, candidates: Candidates, window: slice, teacher: PairScorer, blocks: KeptBlocks, *,
    margin: float, max_score: float | None,
) -> NDArray[np.bool_]:  # fmt: skip
    """Which candidates a cross-encoder takes for answers: bool ``[Q, K]``, False outside the window of ranks.

    A candidate is one where it scores at least ``positive - margin`` (a tie with the positive is an answer, too: a collapsed
    cross-encoder vetoes everything instead of nothing) or above ``max_score``. It reads every candidate in the
    window that is no known positive, so a narrow window saves time.

    Source: the de-noising of RocketQA (Qu et al., 2021); E5 takes SimLM's negatives, whose teacher does the same by its scores.
    """
    allowed_QK = np.zeros(candidates.rows_QK.shape, dtype=bool)
    for row, found in enumerate(candidates.rows_QK[:, window]):
        texts = data.corpus_text_P[found]
        allowed_QK[row, window] = (found >= 0) & ~np.isin(texts, list(data.known[row]))
    veto_QK = np.zeros_like(allowed_QK)
    with progress(int(allowed_QK.sum()) + len(data.queries), "de-noise", "pair") as bar:

        def judge(part: slice) -> dict[str, NDArray[np.float32]]:
            places = np.argwhere(allowed_QK[part])
            queries = [data.queries[part.start + q] for q, _ in places]
            passages = [data.corpus[candidates.rows_QK[part.start + q, k]] for q, k in places]
            own = list(data.positive_texts[part])
            logits = teacher.score([*data.queries[part], *queries], [*own, *passages]).numpy()
            scores = np.full(allowed_QK[part].shape, -np.inf, dtype=np.float32)
            scores[tuple(places.T)] = logits[len(own) :]
            bar(len(logits))
            return {"positive": logits[: len(own)], "scores": scores}

        first = 0
        for block in blocks.run("judged", len(data.queries), _JUDGED, judge):
            part = slice(first, first + len(block["positive"]))
            veto = block["scores"] >= (block["positive"] - margin)[:, None]
            veto_QK[part] = veto if max_score is None else veto | (block["scores"] > max_score)
            first = part.stop
    return veto_QK & allowed_QK
