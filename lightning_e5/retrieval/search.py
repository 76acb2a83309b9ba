"""Retrieval with an embedder: queries and documents in, a run out."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lightning_e5.errors import UserError
from lightning_e5.files.scratch import blocks
from lightning_e5.files.stored_corpus import StoredCorpus, by_falling_id
from lightning_e5.retrieval.exact import ExactIndex, VectorIndex, checked_vectors
from lightning_e5.retrieval.mapped_vectors import MappedVectors
from lightning_e5.retrieval.stored_embeddings import kept_embeddings
from lightning_e5.types import Embedder, Kind, Run, compares_by_cosine

#: Texts that are embedded together, and whose embeddings are a file.
_ROWS = 65_536


class RetrievalWithIndex(NamedTuple):
    """A run made with an index, and the index's recall against exact search (None for an index that is exact)."""

    run: Run
    recall: float | None


def retrieve(
    embedder: Embedder,
    queries: Mapping[str, str],
    corpus: Mapping[str, str],
    k: int = 100,
    *,
    index: VectorIndex | None = None,
    passage_kind: Kind = "passage",
    cache_dir: Path | str | None = None,
) -> Run:
    """Rank the documents for each query by the inner product of their unit embeddings, or for a model that is
    compared by dot product of its embeddings as they are.

    Equal scores rank by falling document id, as in trec_eval, in the run and at its end: documents are numbered by falling
    id, and every index puts the lower row first. So the order of either mapping changes nothing.

    Args:
        embedder: embeds queries with kind ``query`` and documents with kind ``passage``.
        queries: query id -> text.
        corpus: document id -> text.
        k: documents per query; fewer only where the corpus has fewer or an approximate index finds fewer.
        index: an empty index to search with; exact search by default.
        passage_kind: prefix of the documents.
        cache_dir: folder for the documents' embeddings, written in shards: a killed search goes on, a second search with
            the same model and corpus embeds nothing, and exact search then reads them from disk, so the corpus may be
            larger than memory. Left alone where the embedder has no fingerprint. A corpus that itself lies in files (`StoredCorpus`)
            and has no such folder gets one for the time of the search.

    Returns:
        query id -> document id -> score, best first, with ``queries``' order of queries.

    Raises:
        UserError: ``k`` is below 1 or the corpus is empty.
    """
    return _retrieve(embedder, queries, corpus, k, index=index, passage_kind=passage_kind, cache_dir=cache_dir).run


def retrieve_with_index(
    embedder: Embedder, queries: Mapping[str, str], corpus: Mapping[str, str], k: int, index: VectorIndex, **options: Any
) -> RetrievalWithIndex:
    """As `retrieve`, and where the index is approximate (has ``recall_against``) its recall is measured, at ``recall_at``
    of the options or else at ``k``."""
    return _retrieve(embedder, queries, corpus, k, index=index, **{"recall_at": k, **options})


def _retrieve(
    embedder: Embedder,
    queries: Mapping[str, str],
    corpus: Mapping[str, str],
    k: int,
    *,
    index: VectorIndex | None,
    recall_at: int | None = None,
    passage_kind: Kind = "passage",
    cache_dir: Path | str | None = None,
) -> RetrievalWithIndex:
    check_search(corpus, k)
    if not queries:
        return RetrievalWithIndex({}, None)
    query_ids = sorted(queries)
    document_ids, texts = by_falling_id(corpus)
    with _folder_for(corpus, cache_dir) as folder:
        stored: MappedVectors | None
        if folder is None:
            stored = None if cache_dir is None else kept_embeddings(cache_dir, embedder, texts, passage_kind)
        else:
            stored = _embedded(folder, embedder, texts, passage_kind)
        recall_against = None if recall_at is None else getattr(index, "recall_against", None)
        exact: Any = ExactIndex() if stored is None else stored
        if stored is None:
            in_memory = embedder.embed(texts, passage_kind, normalize=compares_by_cosine(embedder))
            if index is None or recall_against is not None:
                exact.add(in_memory)
            if index is not None:
                index.add(in_memory)
        elif index is not None:
            stored.add_to(index)
        vectors = embedder.embed([queries[i] for i in query_ids], "query", normalize=compares_by_cosine(embedder))
        recall = None if recall_against is None else recall_against(exact, vectors, recall_at)
        scores, rows = (exact if index is None else index).search(vectors, k)
    ranked = {}
    for query, query_rows, query_scores in zip(query_ids, rows.tolist(), scores.tolist(), strict=True):
        ranked[query] = {document_ids[row]: score for row, score in zip(query_rows, query_scores, strict=True) if row >= 0}
    return RetrievalWithIndex({query: ranked[query] for query in queries}, recall)


def _embedded(folder: Path, embedder: Embedder, texts: Sequence[str], kind: Kind) -> MappedVectors:
    """The embeddings of texts, part by part in files that no other search uses."""
    files: list[Path] = []
    for part in blocks(len(texts), _ROWS):
        vectors = checked_vectors(embedder.embed(list(texts[part]), kind, normalize=compares_by_cosine(embedder)), "embeddings", None)
        files.append(folder / f"{len(files):05d}.npy")
        np.save(files[-1], vectors, allow_pickle=False)
    return MappedVectors.of(files)


@contextmanager
def _folder_for(corpus: Mapping[str, str], cache_dir: Path | str | None) -> Iterator[Path | None]:
    """A temporary folder for the embeddings of a corpus that is not held in memory, where they are not kept; else None."""
    if cache_dir is not None or not isinstance(corpus, StoredCorpus):
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="lightning_e5-embeddings-") as folder:
        yield Path(folder)


def check_search(corpus: Mapping[str, str], k: int) -> None:
    """UserError for what no search path accepts: ``k`` below 1 or a corpus without documents."""
    if k < 1:
        raise UserError(f"k must be at least 1, not {k}")
    if not corpus:
        raise UserError("the corpus has no documents")


def ranked_ids(corpus: Mapping[str, str]) -> list[str]:
    """The documents' ids in the order in which equal scores rank: falling, as in trec_eval."""
    return sorted(corpus, reverse=True)
