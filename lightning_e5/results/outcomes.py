"""Which queries one model answers better than another: outcomes per query, and their means by kinds of queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

import numpy as np

from lightning_e5.errors import UserError
from lightning_e5.evaluation.statistics.paired_test import bootstrap_interval
from lightning_e5.files.beir_layout import either, read_judgements
from lightning_e5.results.run import MAIN_METRIC, RunData
from lightning_e5.text import words
from lightning_e5.types import Qrels

#: The baseline that an encoder is compared with where the run evaluated it.
WORDS_BASELINE = "bm25"
#: Groups of queries in a figure, and queries that a group needs for an interval.
GROUPS, LEAST = 5, 5


@dataclass(frozen=True, slots=True)
class QueryOutcome:
    """One query with two models' values.

    ``words``: of the query; ``overlap``: the share of its different words that its relevant passage has (of several, the
    one with most); ``relevant``: that passage's id; ``our_first``, ``their_first``: ids of what each model ranked first,
    None where it found nothing.
    """

    query_id: str
    query: str
    ours: float
    theirs: float
    words: int
    overlap: float
    relevant: str
    our_first: str | None
    their_first: str | None

    @property
    def difference(self) -> float:
        """Ours less theirs."""
        return self.ours - self.theirs


@dataclass(frozen=True)
class Outcomes:
    """Two models on one collection, query by query; ``passages``: id -> text of all that the outcomes name."""

    model: str
    reference: str
    collection: str
    metric: str
    rows: tuple[QueryOutcome, ...]
    passages: dict[str, str]

    @property
    def won(self) -> int:
        """Queries with a higher value than the reference's."""
        return sum(row.difference > 0 for row in self.rows)

    @property
    def lost(self) -> int:
        """Queries with a lower value than the reference's."""
        return sum(row.difference < 0 for row in self.rows)

    def largest(self, count: int, *, won: bool) -> list[QueryOutcome]:
        """The ``count`` largest wins or losses, the largest first."""
        sign = -1 if won else 1
        rows = [row for row in self.rows if sign * row.difference < 0]
        return sorted(rows, key=lambda row: (sign * row.difference, row.query_id))[:count]


@dataclass(frozen=True, slots=True)
class Group:
    """Queries of one kind: how many, both models' means, and the mean difference with its 95% interval (None: too few)."""

    label: str
    queries: int
    ours: float
    theirs: float
    difference: float
    interval: tuple[float, float] | None


def two_models(run: RunData, collection: str, model: str | None = None, reference: str | None = None) -> tuple[str, str] | None:
    """The models to compare on a collection: the last encoder, and BM25 or what the run compared with.

    Args:
        model: another one than the last encoder.
        reference: another one than BM25.

    Returns:
        None where the run evaluated fewer than two models there.
    """
    results = [r for r in run.results() if r.collection == collection]
    encoders = [r.model for r in results if r.is_encoder]
    ours = model or (encoders[-1] if encoders else next((r.model for r in reversed(results)), None))
    known = [WORDS_BASELINE, run.reference(collection), *(r.model for r in results)]
    theirs = reference or next((m for m in known if m != ours and m in {r.model for r in results}), None)
    return None if ours is None or theirs is None else (ours, theirs)


def outcomes(run: RunData, model: str, reference: str, collection: str, metric: str = MAIN_METRIC) -> Outcomes:
    """Every query of a collection that both models were evaluated on.

    Args:
        metric: one that the evaluation kept per query, such as ``ndcg@10`` or ``recall@100``.

    Raises:
        UserError: the run did not evaluate that, or its test collection is not there any more.
    """
    ours, theirs = (run.per_query(m, collection, metric) for m in (model, reference))
    firsts = [_first_ranked(run, m, collection) for m in (model, reference)]
    corpus, queries, qrels = run.passages(collection), run.queries(collection), judgements(run, collection)
    passage_words: dict[str, set[str]] = {}

    def words_of(passage: str) -> set[str]:
        if passage not in passage_words:
            passage_words[passage] = set(words(corpus[passage]))
        return passage_words[passage]

    rows = []
    for query in [q for q in ours if q in theirs]:
        text, own = queries[query], words(queries[query])
        relevant = [d for d, grade in qrels[query].items() if grade > 0 and d in corpus]
        if not relevant:
            continue
        distinct = set(own)
        shares = [len(distinct & words_of(d)) / max(1, len(distinct)) for d in relevant]
        best = int(np.argmax(shares))
        first, second = (found.get(query) for found in firsts)
        rows.append(QueryOutcome(query, text, ours[query], theirs[query], len(own), shares[best], relevant[best], first, second))
    named = {d for row in rows for d in (row.relevant, row.our_first, row.their_first) if d is not None}
    return Outcomes(model, reference, collection, metric, tuple(rows), {d: corpus[d] for d in named if d in corpus})


def by_length(found: Outcomes) -> list[Group]:
    """The outcomes by the number of the query's words, in up to five groups of about equal size."""
    return _groups(found.rows, lambda row: float(row.words), lambda low, high: f"{low:.0f}" if low == high else f"{low:.0f}–{high:.0f}")


def by_overlap(found: Outcomes) -> list[Group]:
    """The outcomes by the share of the query's words in its relevant passage, in up to five groups of about equal size."""
    return _groups(
        found.rows, lambda row: row.overlap, lambda low, high: f"{low:.0%}" if round(low, 2) == round(high, 2) else f"{low:.0%}–{high:.0%}"
    )


def judgements(run: RunData, collection: str) -> Qrels:
    """A collection's judgements, of the split that was evaluated."""
    return read_judgements(either(run.collection_folder(collection), f"qrels/{evaluated_split(run, collection)}.tsv"))[0]


def evaluated_split(run: RunData, collection: str) -> str:
    """The split of a collection that was evaluated."""
    splits = [result.row.get("split") for result in run.results() if result.collection == collection]
    return next((split for split in splits if split), "test")


def _first_ranked(run: RunData, model: str, collection: str) -> dict[str, str]:
    """Query id -> the id of the passage that the model ranked first."""
    path = run.result_file(model, collection, "run.trec")
    if not path.is_file():
        raise UserError(f"{path}: no such file, so what {model} ranked first is not known")
    found = {}
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            query, _, passage, rank, *_ = line.split()
            if rank == "1":  # white space inside an id is percent-encoded in the file
                found[unquote(query)] = unquote(passage)
    return found


def _groups(rows: Sequence[QueryOutcome], value: Callable[[QueryOutcome], float], label: Callable[[float, float], str]) -> list[Group]:
    """Groups between quantiles; equal values never part, so there may be fewer than five, of unequal size."""
    if not rows:
        return []
    values = np.array([value(row) for row in rows])
    inner = np.unique(np.quantile(values, np.arange(1, GROUPS) / GROUPS, method="lower"))
    number = np.searchsorted(inner, values, side="left")  # up to and with an inner edge
    groups = []
    for chosen in [number == n for n in range(len(inner) + 1)]:
        if not chosen.any():
            continue
        own = [row for row, is_in in zip(rows, chosen, strict=True) if is_in]
        differences = [row.difference for row in own]
        interval = bootstrap_interval(differences) if len(own) >= LEAST else None
        ours, theirs = (float(np.mean([getattr(row, side) for row in own])) for side in ("ours", "theirs"))
        shown = label(float(values[chosen].min()), float(values[chosen].max()))
        groups.append(Group(shown, len(own), ours, theirs, float(np.mean(differences)), interval))
    return groups
