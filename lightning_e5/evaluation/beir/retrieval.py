"""The retrieval task: one data set, any embedder or any other searcher, metrics and a run on disk."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir.data import RetrievalData
from lightning_e5.evaluation.beir.metrics import (
    DEFAULT_METRICS,
    evaluate_run,
    judged_queries,
    parse_metric,
    rank_documents,
)
from lightning_e5.files.parquet import write_parquet
from lightning_e5.files.storage import write_text
from lightning_e5.retrieval.exact import VectorIndex
from lightning_e5.retrieval.search import retrieve, retrieve_with_index
from lightning_e5.text import normalise_text
from lightning_e5.types import Embedder, Kind, Metrics, Run

#: What a column of a run file cannot hold: white space, control characters, lone surrogates (and the sign that encodes).
_UNWRITABLE = re.compile(r"[\s%\x00-\x1f\x7f\ud800-\udfff]")


@configurable("baseline")
@runtime_checkable
class Searcher(Protocol):
    """Anything that ranks documents without embeddings, such as BM25."""

    def retrieve(self, corpus: Mapping[str, str], queries: Mapping[str, str], k: int) -> Run:
        """Return query id -> document id -> score, at most ``k`` documents per query."""
        ...


@dataclass(frozen=True)
class RetrievalResult:
    """What one searcher reached on one data set.

    ``metrics``: flat, ``ndcg@10`` and its like, means over the judged queries; ``per_query``: metric -> query id ->
    value; ``run``: as evaluated; ``counts``: queries judged, documents, judged queries without a result (``missing``),
    qrels of missing documents (``dangling``), queries whose own document was left out of their results
    (``self_excluded``) and those for which the document of their id stayed, being another text (``same_id_kept``), queries
    of which a value depends on the order of equal scores (``tie_queries``), and with an approximate index its recall
    against exact search at the run's depth (``ann_recall@100``); ``tied``: cut-off -> share of the queries where the id
    decides there; ``lowest`` and ``highest``: the metrics over all orders of equal scores (see `Scores`).
    """

    name: str
    split: str
    metrics: Metrics
    per_query: dict[str, dict[str, float]]
    run: Run
    counts: dict[str, int | float]
    tied: dict[int, float]
    lowest: Metrics = field(default_factory=dict)
    highest: Metrics = field(default_factory=dict)

    def save(self, out_dir: Path | str) -> None:
        """Write ``run.trec`` and ``per_query.parquet`` (columns ``query_id`` and one per metric) to ``out_dir``.

        The run has trec_eval's six columns; white space inside an id, which they cannot hold, is percent-encoded.
        """
        out_dir = Path(out_dir)
        lines = [
            f"{_column(query)} Q0 {_column(document)} {rank} {scores[document]!r} lightning_e5\n"
            for query, scores in self.run.items()
            for rank, document in enumerate(rank_documents(scores, query), 1)
        ]
        write_text(out_dir / "run.trec", "".join(lines))
        queries = list(next(iter(self.per_query.values()), {}))
        columns = {name: [values[query] for query in queries] for name, values in self.per_query.items()}
        write_parquet(out_dir / "per_query.parquet", {"query_id": queries, **columns})


@dataclass(frozen=True)
class RetrievalTask:
    """Retrieval on one data set, evaluated by `metrics`.

    Args:
        data: queries, documents and judgements.
        k: documents retrieved per query; at least the largest cut-off of ``metrics``.
        metrics: names such as ``ndcg@10``.
        index: an empty index that an embedder's vectors are searched with, such as `FaissIndex`; it is copied for each
            evaluation. Exact search by default.
        cache_dir: folder that documents' embeddings are kept in and searched from (see `retrieve`).
        passage_kind: prefix of the documents: ``query`` where queries and documents are texts of one kind (Quora).
        queries_are_documents: whether each query is the document of its id, which is then left out of its results (other
            queries can still find it). True: of every query that has one, as sets declare whose queries lie in their corpus
            (ArguAna, Quora); False: of none; None, where nothing is declared: where query and document have one text
            (titles left aside) and the document is not judged relevant. Equal ids alone say nothing: many sets number queries and documents from 1.
    """

    data: RetrievalData
    k: int = 100
    metrics: Sequence[str] = DEFAULT_METRICS
    index: VectorIndex | None = None
    cache_dir: Path | str | None = None
    passage_kind: Kind = "passage"
    queries_are_documents: bool | None = None

    def __post_init__(self) -> None:
        deepest = max((parse_metric(name)[1] for name in self.metrics), default=1)
        if self.k < deepest:
            raise UserError(f"k={self.k} documents per query cannot be evaluated at cut-off {deepest}")

    @property
    def name(self) -> str:
        """The data set's name."""
        return self.data.name

    def evaluate(self, searcher: Embedder | Searcher) -> RetrievalResult:
        """Search with an embedder (exactly or with ``index``) or with the searcher's own ``retrieve``, and evaluate it.

        Source: paper section 4.2 and table 2 (BEIR, nDCG@10).
        """
        data, own = self.data, self.own_documents()
        recall = None
        # one more shows whether equal scores go on past the run's end; one more makes up for the document that is left out
        depth = self.k + 1 + bool(own)
        if isinstance(searcher, Searcher):
            run = searcher.retrieve(data.corpus, data.queries, depth)
        elif hasattr(searcher, "embed"):
            options: dict[str, Any] = {"passage_kind": self.passage_kind, "cache_dir": self.cache_dir}
            if self.index is None:
                run = retrieve(searcher, data.queries, data.corpus, depth, **options)
            else:
                index = copy.deepcopy(self.index)  # empty for every searcher
                run, recall = retrieve_with_index(searcher, data.queries, data.corpus, depth, index, recall_at=self.k, **options)
        else:
            raise UserError(f"{type(searcher).__name__} has neither 'embed' nor 'retrieve', so it cannot be evaluated")
        run = {query: {d: s for d, s in found.items() if not (d == query and query in own)} for query, found in run.items()}
        scores = evaluate_run(run, data.qrels, self.metrics, depth=self.k)
        run = {query: {d: found[d] for d in rank_documents(found, query)[: self.k]} for query, found in run.items()}
        counts: dict[str, int | float] = {
            "queries": len(judged_queries(data.qrels)), "documents": len(data.corpus), "missing": scores.missing, "dangling": data.missing_documents,
            "self_excluded": len(own), "same_id_kept": sum(query in data.corpus for query in data.queries) - len(own),
            "tie_queries": scores.tie_queries,
        }  # fmt: skip
        if recall is not None:
            counts[f"ann_recall@{self.k}"] = recall
        return RetrievalResult(
            data.name, data.split, scores.mean, scores.per_query, run, counts, scores.tied, scores.lowest, scores.highest
        )

    def own_documents(self) -> frozenset[str]:
        """The queries whose document of the same id is left out of their results; see ``queries_are_documents``."""
        data, declared = self.data, self.queries_are_documents
        if declared is not None:
            return frozenset(query for query in data.queries if declared and query in data.corpus)
        return frozenset(
            query for query, text in data.queries.items()
            if query in data.corpus and data.qrels.get(query, {}).get(query, 0) <= 0
            and (query in data.same_text or normalise_text(text) == normalise_text(data.corpus[query]))
        )  # fmt: skip


def _column(identifier: str) -> str:
    return _UNWRITABLE.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogatepass")), identifier)
