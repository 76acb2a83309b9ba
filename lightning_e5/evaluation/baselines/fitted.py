"""Retrieval with vectors that are made for one corpus, where a text may have none."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_e5.retrieval.search import check_search, retrieve
from lightning_e5.types import Embedder, Run


def retrieve_known(embedder: Embedder, corpus: Mapping[str, str], queries: Mapping[str, str], k: int) -> Run:
    """`retrieval.search.retrieve`, but nothing for a query whose vector is zero: it would rank the documents by id."""
    check_search(corpus, k)
    if not queries:
        return {}
    names = list(queries)
    vectors_QD = embedder.embed([queries[name] for name in names], "query")
    known = {name: queries[name] for name, vector_D in zip(names, vectors_QD, strict=True) if bool(vector_D.any())}
    run = retrieve(embedder, known, corpus, k)
    return {name: run.get(name, {}) for name in names}
