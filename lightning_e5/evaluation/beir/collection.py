"""A retrieval collection as it is evaluated: by the rules of the BEIR set it is, where it is one, its forums one by one."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning_e5.errors import UserError, suggestion
from lightning_e5.evaluation.beir.data import RetrievalData, load_beir
from lightning_e5.evaluation.beir.metrics import DEFAULT_METRICS, judged_queries
from lightning_e5.evaluation.beir.retrieval import RetrievalResult, RetrievalTask, Searcher
from lightning_e5.evaluation.beir.sets import BEIR_SETS, BeirSet, beir_set, mean_of_forums
from lightning_e5.files.stored_corpus import texts_of
from lightning_e5.retrieval.exact import VectorIndex
from lightning_e5.types import Embedder, Kind

#: What an override says for a collection that no set's rules apply to.
NO_RULES: Literal["none"] = "none"
#: Whose rules a collection is evaluated by; None where nothing says so, which leaves some things to its texts.
Rules = BeirSet | Literal["none"] | None


@dataclass(frozen=True)
class Collection:
    """One collection.

    ``data``: all of it (with forums, ids are ``<forum>/<id>``); ``forums``: name -> data, searched one by one; empty for
    a collection that is searched as a whole; ``rules``: of the BEIR set that it is evaluated as, None for another one;
    ``queries_are_documents``: see `RetrievalTask`; ``benchmark_set``: the public set of BEIR or NanoBEIR that it counts as in an
    average, by that set's rules and on the split that the benchmark scores, None for any other collection; ``sha256``: of the
    files' contents, None where it is not computed.
    """

    data: RetrievalData
    forums: Mapping[str, RetrievalData]
    rules: BeirSet | None
    queries_are_documents: bool | None = None
    benchmark_set: str | None = None
    sha256: str | None = None

    @property
    def passage_kind(self) -> Kind:
        """The prefix of the documents."""
        return "passage" if self.rules is None else self.rules.passage_kind

    def texts(self) -> dict[Kind, Sequence[str]]:
        """The texts by the prefix that they get."""
        queries, passages = list(self.data.queries.values()), texts_of(self.data.corpus)
        return {"query": queries, "passage": passages} if self.passage_kind == "passage" else {"query": [*queries, *passages]}

    def facts(self) -> dict[str, Any]:
        """What a row says of the rules, ``rules`` with the set's name and what differs from any other collection, of what was
        not used, ``left_out`` (see `RetrievalData`), and of the files, ``sha256``, where it is known."""
        left_out: dict[str, Any] = {"left_out": dict(self.data.left_out)} if self.data.left_out else {}
        left_out |= {"sha256": self.sha256} if self.sha256 is not None else {}
        if self.rules is None:
            return left_out
        rules: dict[str, Any] = {"beir": self.rules.name, "split": self.data.split}
        rules |= {"queries_are_documents": True} if self.rules.queries_are_documents else {}
        rules |= {"passage_kind": self.rules.passage_kind} if self.rules.passage_kind != "passage" else {}
        rules |= {"text_only": True} if self.rules.text_only else {}
        return left_out | {"rules": rules | ({"mean_of": list(self.forums)} if self.forums else {})}

    def evaluate(
        self, searcher: Embedder | Searcher, *, k: int = 100, metrics: Sequence[str] = DEFAULT_METRICS,
        index: VectorIndex | None = None, cache_dir: Path | str | None = None,
    ) -> RetrievalResult:  # fmt: skip
        """Search and evaluate; of forums the metrics are the means over them (see `mean_of_forums`).

        Args:
            searcher: as `RetrievalTask.evaluate`.
            k, metrics, index, cache_dir: as `RetrievalTask`.
        """

        def found(data: RetrievalData) -> RetrievalResult:
            return RetrievalTask(data, k, metrics, index, cache_dir, self.passage_kind, self.queries_are_documents).evaluate(searcher)

        return _merged(self.data, {forum: found(data) for forum, data in self.forums.items()}) if self.forums else found(self.data)

    def query_groups(self) -> list[list[str]]:
        """The judged queries, sorted, in groups whose means count the same: one group, or one per forum."""
        if not self.forums:
            return [sorted(judged_queries(self.data.qrels))]
        return [sorted(_joined(forum, query) for query in judged_queries(data.qrels)) for forum, data in self.forums.items()]


def rules_of(name: str, given: Mapping[str, str] | None = None) -> Rules:
    """The rules of a collection: those given for it, else those of the BEIR set of its name, else None.

    Args:
        name: of the collection.
        given: collection -> a BEIR set's name, or ``none``.

    Raises:
        UserError: a set that is not one of BEIR's public ones.
    """
    chosen = (given or {}).get(name)
    if chosen is None:
        return BEIR_SETS.get(name)
    return NO_RULES if chosen == NO_RULES else beir_set(chosen)


def load_collection(folder: Path | str, name: str, *, split: str = "test", rules: Rules = None) -> Collection:
    """Read a collection by its rules.

    Args:
        folder: in BEIR's layout; for a set with forums it holds one such folder per forum.
        name: of the collection.
        split: of the judgements. ``test`` means the split that the set is scored on, ``dev`` for MS MARCO.
        rules: see `rules_of`.

    Raises:
        UserError: a forum is missing, or as `load_beir`.

    Source: BEIR (Thakur et al., 2021); E5 paper section 4.2.
    """
    folder = Path(folder)
    if rules is None or isinstance(rules, str):
        return Collection(load_beir(folder, split, name), {}, None, None if rules is None else False)
    split = rules.split if split == "test" else split
    own, counts_as = rules.queries_are_documents or None, rules.name if split == rules.split else None
    if not rules.forums:
        return Collection(load_beir(folder, split, name, with_title=not rules.text_only), {}, rules, own, counts_as)
    absent = [forum for forum in rules.forums if not (folder / forum).is_dir()]
    if absent:
        raise UserError(
            f"{folder}: {rules.name} is the mean of {len(rules.forums)} forums, and the folder {absent[0]!r} is not there "
            f"(rules: {{{name}: {NO_RULES}}} takes the folder as one collection)"
        )
    forums = {forum: load_beir(folder / forum, split, f"{name}/{forum}") for forum in rules.forums}
    return Collection(_together(name, split, forums), forums, rules, own, counts_as)


def check_rules(given: Mapping[str, str] | None, collections: Mapping[str, Any] | None) -> None:
    """UserError for rules of a collection that is not there, or of a set that BEIR has not."""
    for name in given or {}:
        if name not in (collections or {}):
            raise UserError(f"evaluate.rules: {name!r} is not one of the collections{suggestion(name, collections or {})}")
        rules_of(name, given)


def _together(name: str, split: str, forums: Mapping[str, RetrievalData]) -> RetrievalData:
    """All forums as one data set with ids that tell them apart."""
    corpus = {_joined(f, key): text for f, data in forums.items() for key, text in data.corpus.items()}
    queries = {_joined(f, key): text for f, data in forums.items() for key, text in data.queries.items()}
    qrels = {
        _joined(f, query): {_joined(f, document): grade for document, grade in grades.items()}
        for f, data in forums.items()
        for query, grades in data.qrels.items()
    }
    same = frozenset(_joined(f, query) for f, data in forums.items() for query in data.same_text)
    left_out = sum((Counter(data.left_out) for data in forums.values()), Counter[str]())
    return RetrievalData(name, split, corpus, queries, qrels, sum(data.missing_documents for data in forums.values()), same, dict(left_out))


def _merged(data: RetrievalData, results: Mapping[str, RetrievalResult]) -> RetrievalResult:
    """The forums' results as one: metrics are means over forums, counts are sums, shares are weighted by queries."""
    first = next(iter(results.values()))
    queries = sum(r.counts["queries"] for r in results.values())
    counts = {key: sum(r.counts[key] for r in results.values()) for key in first.counts if not key.startswith("ann_recall")}
    shares = {key: _weighted(results, lambda r, key=key: r.counts[key], queries) for key in first.counts if key not in counts}
    tied = {cutoff: _weighted(results, lambda r, cutoff=cutoff: r.tied[cutoff], queries) for cutoff in first.tied}
    per_query = {
        metric: {_joined(f, query): value for f, r in results.items() for query, value in r.per_query[metric].items()}
        for metric in first.per_query
    }
    run = {_joined(f, q): {_joined(f, d): s for d, s in scores.items()} for f, r in results.items() for q, scores in r.run.items()}
    metrics, lowest, highest = ([getattr(r, part) for r in results.values()] for part in ("metrics", "lowest", "highest"))
    return dataclasses.replace(
        first, name=data.name, metrics=mean_of_forums(metrics), per_query=per_query, run=run, counts={**counts, **shares}, tied=tied,
        lowest=mean_of_forums(lowest), highest=mean_of_forums(highest),
    )  # fmt: skip


def _weighted(results: Mapping[str, RetrievalResult], of: Any, queries: float) -> float:
    return math.fsum(of(r) * r.counts["queries"] for r in results.values()) / queries


def _joined(forum: str, identifier: str) -> str:
    return f"{forum}/{identifier}"


def grouped(values: Mapping[str, float], groups: Sequence[Sequence[str]]) -> Iterator[list[float]]:
    """The values of the queries, group by group."""
    return ([values[query] for query in group] for group in groups)
