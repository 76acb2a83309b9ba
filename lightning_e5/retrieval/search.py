"""Retrieval with an embedder: queries and documents in, a run out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning_e5.errors import UserError
from lightning_e5.retrieval.exact import ExactIndex, VectorIndex
from lightning_e5.types import Embedder, Run


def retrieve(
    embedder: Embedder,
    queries: Mapping[str, str],
    corpus: Mapping[str, str],
    k: int = 100,
    *,
    index: VectorIndex | None = None,
    drop_identical_ids: bool = True,
) -> Run:
    """Rank the documents for each query by the inner product of their unit embeddings.

    Texts are embedded in the order of their ids and equal scores are ranked by rising document id, so the order of
    either mapping changes nothing.

    Args:
        embedder: embeds queries with kind ``query`` and documents with kind ``passage``.
        queries: query id -> text.
        corpus: document id -> text.
        k: documents per query; fewer only where the corpus has fewer.
        index: an empty index to search with; exact search by default.
        drop_identical_ids: leave out, for each query, the document of the same id (a query taken from the corpus
            would find itself first), as BEIR does. Other queries can still retrieve it.

    Returns:
        query id -> document id -> score, best first, with ``queries``' order of queries.

    Raises:
        UserError: ``k`` is below 1 or the corpus is empty.
    """
    check_search(corpus, k)
    if not queries:
        return {}
    document_ids, query_ids = sorted(corpus), sorted(queries)
    index = ExactIndex() if index is None else index
    index.add(embedder.embed([corpus[i] for i in document_ids], "passage", normalize=True))
    vectors = embedder.embed([queries[i] for i in query_ids], "query", normalize=True)
    scores, rows = index.search(vectors, k + drop_identical_ids)
    ranked = {
        query: top_documents(
            query, [document_ids[row] for row in query_rows], query_scores, k, drop_identical_ids=drop_identical_ids
        )
        for query, query_rows, query_scores in zip(query_ids, rows.tolist(), scores.tolist(), strict=True)
    }
    return {query: ranked[query] for query in queries}


def check_search(corpus: Mapping[str, str], k: int) -> None:
    """UserError for what no search path accepts: ``k`` below 1 or a corpus without documents."""
    if k < 1:
        raise UserError(f"k must be at least 1, not {k}")
    if not corpus:
        raise UserError("the corpus has no documents")


def top_documents(
    query: str, documents: Sequence[str], scores: Sequence[float], k: int, *, drop_identical_ids: bool
) -> dict[str, float]:
    """The first ``k`` of the ranked ``documents`` but the one with the id of the query (over-fetch by one)."""
    pairs = zip(documents, scores, strict=True)
    kept = [(d, s) for d, s in pairs if not (drop_identical_ids and d == query)]
    return dict(kept[:k])
