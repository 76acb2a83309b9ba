"""The retrieval task: one data set, any embedder or any other searcher, metrics and a run on disk."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir_data import RetrievalData
from lightning_e5.evaluation.metrics import DEFAULT_METRICS, evaluate_run, parse_metric, rank_documents
from lightning_e5.retrieval.exact import VectorIndex
from lightning_e5.retrieval.search import retrieve, retrieve_with_index
from lightning_e5.storage import write_parquet, write_text
from lightning_e5.types import Embedder, Kind, Metrics, Run

_SPACE = re.compile(r"[\s%]")


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
    value; ``run``: as judged; ``counts``: queries judged, documents, judged queries without a result (``missing``),
    judgements outside the corpus (``dangling``), and with an approximate index its recall against exact search at the
    run's depth (``ann_recall@100``); ``tied``: cut-off below ``k`` -> share of the queries where the id
    decides there.
    """

    name: str
    split: str
    metrics: Metrics
    per_query: dict[str, dict[str, float]]
    run: Run
    counts: dict[str, int | float]
    tied: dict[int, float]

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
    """Retrieval on one data set, judged by `metrics`.

    Args:
        data: queries, documents and judgements.
        k: documents retrieved per query; at least the largest cut-off of ``metrics``.
        metrics: names such as ``ndcg@10``.
        index: an empty index that an embedder's vectors are searched with, such as `FaissIndex`; it is copied for each
            evaluation. Exact search by default.
        cache_dir: folder that documents' embeddings are kept in and searched from (see `retrieve`).
        passage_kind: prefix of the documents: ``query`` where queries and documents are texts of one kind (Quora).
        drop_identical_ids: leave out the document with the id of the query.
    """

    data: RetrievalData
    k: int = 100
    metrics: Sequence[str] = DEFAULT_METRICS
    index: VectorIndex | None = None
    cache_dir: Path | str | None = None
    passage_kind: Kind = "passage"
    drop_identical_ids: bool = True

    def __post_init__(self) -> None:
        deepest = max((parse_metric(name)[1] for name in self.metrics), default=1)
        if self.k < deepest:
            raise UserError(f"k={self.k} documents per query cannot be judged at cut-off {deepest}")

    @property
    def name(self) -> str:
        """The data set's name."""
        return self.data.name

    def evaluate(self, searcher: Embedder | Searcher) -> RetrievalResult:
        """Search with an embedder (exactly or with ``index``) or with the searcher's own ``retrieve``, and judge it.

        Source: paper section 4.2 and table 2 (BEIR, nDCG@10).
        """
        data = self.data
        recall = None
        if isinstance(searcher, Searcher):
            run = searcher.retrieve(data.corpus, data.queries, self.k)
        elif hasattr(searcher, "embed"):
            options: dict[str, Any] = {
                "drop_identical_ids": self.drop_identical_ids, "passage_kind": self.passage_kind, "cache_dir": self.cache_dir
            }  # fmt: skip
            if self.index is None:
                run = retrieve(searcher, data.queries, data.corpus, self.k, **options)
            else:
                index = copy.deepcopy(self.index)  # empty for every searcher
                run, recall = retrieve_with_index(searcher, data.queries, data.corpus, self.k, index, **options)
        else:
            raise UserError(f"{type(searcher).__name__} has neither 'embed' nor 'retrieve', so it cannot be evaluated")
        scores = evaluate_run(run, data.qrels, self.metrics)
        judged = len(next(iter(scores.per_query.values()), {}))
        counts: dict[str, int | float] = {
            "queries": judged,
            "documents": len(data.corpus),
            "missing": scores.missing,
            "dangling": data.dangling,
        }
        if recall is not None:
            counts[f"ann_recall@{self.k}"] = recall
        tied = {cutoff: share for cutoff, share in scores.tied.items() if cutoff < self.k}  # the run ends at k
        return RetrievalResult(data.name, data.split, scores.mean, scores.per_query, run, counts, tied)


def _column(identifier: str) -> str:
    return _SPACE.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), identifier)
