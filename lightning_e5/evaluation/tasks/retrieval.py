"""Retrieval as one of the tasks: a test collection searched by a model, with an interval over its queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir.collection import Collection, grouped
from lightning_e5.evaluation.beir.cosine_sample import CosineSample, RememberingEncoder
from lightning_e5.evaluation.beir.data import RetrievalData
from lightning_e5.evaluation.beir.metrics import DEFAULT_METRICS
from lightning_e5.evaluation.beir.retrieval import RetrievalResult, Searcher
from lightning_e5.evaluation.statistics.answers import Answers
from lightning_e5.evaluation.statistics.paired_test import bootstrap_interval, paired_test, stacked
from lightning_e5.evaluation.tasks.task import TaskResult
from lightning_e5.files.parquet import write_parquet
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.progress import progress
from lightning_e5.result_row import MAIN_METRIC, RETRIEVAL
from lightning_e5.retrieval.exact import VectorIndex
from lightning_e5.text import check_texts
from lightning_e5.types import Embedder, Kind, Metrics, Qrels


@dataclass(frozen=True)
class CollectionResult(TaskResult):
    """What a model reached on a collection.

    ``found``: run and values per query; ``cosines``: of judged and of random pairs, None for what is no encoder; ``benchmark_set``:
    see `Collection`.
    """

    found: RetrievalResult | None = field(default=None, compare=False, repr=False)
    cosines: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)
    benchmark_set: str | None = None

    def by_item(self) -> dict[str, dict[str, float]]:
        """Metric -> query -> value."""
        assert self.found is not None
        return {metric: dict(values) for metric, values in self.found.per_query.items()}

    def save(self, folder: Path) -> None:
        """Write the run, the values per query and, where there are any, the cosines."""
        assert self.found is not None
        self.found.save(folder)
        if self.cosines is not None:
            write_parquet(folder / "cosines.parquet", self.cosines)


@dataclass(frozen=True)
class CollectionTask:
    """Retrieval on a test collection.

    Args:
        collection: queries, documents, judgements and the rules.
        k: documents retrieved per query.
        metrics: names such as ``recall@100``; ``ndcg@10`` is always one, and the main one.
        index: as `RetrievalTask`.
        cache_dir: as `RetrievalTask`.
        cosines: keep cosines of judged and of random pairs for the report.

    Source: paper section 4.2 and table 2 (BEIR, nDCG@10).
    """

    collection: Collection
    k: int = 100
    metrics: Sequence[str] = DEFAULT_METRICS
    index: VectorIndex | None = None
    cache_dir: Path | str | None = None
    cosines: bool = False

    @classmethod
    def from_texts(cls, queries: Mapping[str, str], corpus: Mapping[str, str], qrels: Qrels, *, name: str = "texts", **settings: Any) -> CollectionTask:
        """Retrieval on texts in memory.

        Args:
            queries: query id -> text; only those with a judgement are searched for.
            corpus: document id -> text.
            qrels: query id -> document id -> grade, above 0 for a relevant one.
            name: of the collection.
            **settings: see the class.

        Raises:
            UserError: something that is no text, no document, or no query with a text and a relevant document.
        """
        check_texts(list(queries.values()))
        check_texts(list(corpus.values()))
        if not corpus:
            raise UserError(f"{name}: the corpus has 0 documents")
        judged = {query: dict(grades) for query, grades in qrels.items() if queries.get(query)}
        if not any(grade > 0 for grades in judged.values() for grade in grades.values()):
            raise UserError(f"{name}: 0 queries with a text and a relevant judgement (a score above 0)")
        without = len(qrels) - len(judged)
        missing = sum(document not in corpus for grades in judged.values() for document in grades)
        data = RetrievalData(
            name, "test", dict(corpus), {query: queries[query] for query in judged}, judged, missing,
            left_out={"queries_without_text": without} if without else {},
        )  # fmt: skip
        return cls(Collection(data, {}, None), **settings)

    @property
    def name(self) -> str:
        """The collection's name."""
        return self.collection.data.name

    def texts(self) -> dict[Kind, Sequence[str]]:
        """Queries and documents by the prefix that they get."""
        return self.collection.texts()

    def items(self) -> list[tuple[str]]:
        """The judged queries, group after group."""
        return [(self.collection.data.queries[query],) for group in self.collection.query_groups() for query in group]

    def evaluate(self, embedder: Embedder | Searcher, *, seed: int = 0) -> CollectionResult:
        """Search all queries; the interval resamples the queries (of each forum among themselves)."""
        collection = self.collection
        encoder = embedder if isinstance(embedder, TextEncoder) else None
        sample = CosineSample(collection, seed) if self.cosines and encoder is not None else None
        metrics = [MAIN_METRIC, *(name for name in self.metrics if name != MAIN_METRIC)]
        remembers = encoder is not None and self.index is None and self.cache_dir is None
        count = len(collection.data.queries) + len(collection.data.corpus)
        with progress(count, self.name, "text") if remembers else nullcontext(lambda texts: None) as bar:
            searcher: Any = embedder
            if remembers:
                assert encoder is not None
                searcher = RememberingEncoder(encoder, sample.texts() if sample is not None else set(), progress=bar)
            found = collection.evaluate(searcher, k=self.k, metrics=metrics, index=self.index, cache_dir=self.cache_dir)
        groups = [np.array(values) for values in grouped(found.per_query[MAIN_METRIC], collection.query_groups())]
        per_query, of_query = stacked(groups)
        low, high = bootstrap_interval(per_query, seed=seed, groups=of_query)
        counts = {name: count for name, count in found.counts.items() if name != "queries"}
        facts = {"split": found.split, **counts, "tied": found.tied.get(10), **collection.facts()}
        tie_range = {m: [lowest, found.highest[m]] for m, lowest in found.lowest.items() if lowest != found.highest[m]}
        facts |= {"tie_range": tie_range} if tie_range else {}  # over all orders of equal scores
        return CollectionResult(
            RETRIEVAL, MAIN_METRIC, found.metrics[MAIN_METRIC], low, high, int(found.counts["queries"]),
            {name: value for name, value in found.metrics.items() if name != MAIN_METRIC}, facts,
            measure=_means_over(collection.query_groups(), found.per_query), groups=groups, found=found,
            answers=Answers(per_query, partial(paired_test, groups=of_query)),
            cosines=sample.cosines(searcher) if sample is not None else None,
            benchmark_set=collection.benchmark_set,
        )  # fmt: skip


def _means_over(groups: Sequence[Sequence[str]], per_query: Mapping[str, Mapping[str, float]]) -> Any:
    """A function from numbers of queries, counted group after group, to the metrics over those alone: means over the groups of
    the means over their queries, without groups of which no query is left."""

    def means(items: NDArray[np.int64]) -> Metrics:
        chosen, number, kept = set(items.tolist()), 0, []
        for group in groups:
            left = [query for place, query in enumerate(group, number) if place in chosen]
            number += len(group)
            kept += [left] if left else []
        return {m: float(np.mean([np.mean([values[q] for q in group]) for group in kept])) for m, values in per_query.items()} if kept else {}

    return means
