"""Ranking metrics with trec_eval's values, the denominator and the ties made explicit; pytrec_eval is the tests' arbiter.

Three rules:

* The mean is over the *judged* queries: those with at least one judgement above 0. A judged query that the run lacks
  counts as 0 and is counted in ``missing``; a query of the run without such a judgement is left out.
* Scores are compared as float32, and equal ones rank by falling document id, as in trec_eval and hence in all published
  figures of BEIR and MTEB. That order is as arbitrary as any other, so where it decides a value, the lowest and the
  highest value over all orders of equal scores are given beside it.
* A score that is not finite in float32 is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_e5.errors import UserError
from lightning_e5.types import Metrics, Qrels, Run

#: BEIR's metric, and the usual companions.
DEFAULT_METRICS = ("ndcg@10", "recall@100", "map@100", "mrr@10", "precision@10")

_NAME = re.compile(r"(ndcg|recall|map|mrr|precision)@([1-9][0-9]*)")
_HIGHEST_GRADE = 2**31 - 1  # trec_eval's

#: (rank from 1, grade) of the relevant documents of one query that a run holds, by rising rank.
Hits = list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Scores:
    """Metrics of one run.

    ``mean``: metric -> mean over the judged queries; ``per_query``: metric -> judged query id -> value, in ``qrels``'
    order; ``missing``: judged queries that the run lacks or has no document for; ``tied``: cut-off -> share of the
    judged queries whose documents at ranks ``k`` and ``k + 1`` have one score, so that the id decides (the run must
    reach below the cut-off for that to show); ``tie_queries``: judged queries of which any value depends on the order of
    equal scores; ``lowest`` and ``highest``: metric -> mean over the judged queries if that order were the worst or the
    best one everywhere.
    """

    mean: Metrics
    per_query: dict[str, dict[str, float]]
    missing: int
    tied: dict[int, float]
    tie_queries: int
    lowest: Metrics
    highest: Metrics


def evaluate_run(run: Run, qrels: Qrels, metrics: Sequence[str] = DEFAULT_METRICS, *, depth: int | None = None) -> Scores:
    """Judge a run.

    Args:
        run: query id -> document id -> score, higher is better.
        qrels: query id -> document id -> grade; a grade above 0 is relevant, nDCG's gain is the grade itself.
            Judged documents outside the corpus stay in the ideal ranking and in recall's denominator.
        metrics: names such as ``ndcg@10``: one of ndcg, recall, map, mrr, precision and a cut-off.
        depth: documents of a query that count. A run that is deeper by one shows whether equal scores go on past its end;
            where they do, ``lowest`` takes all relevant ones of these for lost and ``highest`` takes every relevant document
            that the run lacks for one of them, so that the two are bounds. By default the run is judged as it is.

    Raises:
        UserError: an unknown metric, a score or a grade that is no finite number, or no judged query.

    Example:
        >>> run, qrels = {"q": {"a": 0.9, "b": 0.5}}, {"q": {"b": 1}}  # the relevant document at rank 2
        >>> evaluate_run(run, qrels, ["ndcg@10", "mrr@10"]).mean
        {'ndcg@10': 0.6309297535714575, 'mrr@10': 0.5}

    Source: paper section 4.2 (nDCG@10 on BEIR); trec_eval's measures ndcg_cut, recall, map_cut, recip_rank and P.
    """
    cutoffs = {name: parse_metric(name) for name in metrics}
    judged = judged_queries(qrels)
    if not judged:
        raise UserError("no query has a judgement above 0, so there is nothing to average over")
    per_query: dict[str, dict[str, float]] = {name: {} for name in cutoffs}
    lowest, highest = {name: list[float]() for name in cutoffs}, {name: list[float]() for name in cutoffs}
    tied = dict.fromkeys(sorted({k for _, k in cutoffs.values()}), 0)
    missing = tie_queries = 0
    for query in judged:
        relevant = {document: grade for document, grade in qrels[query].items() if grade > 0}
        ideal = sorted(relevant.values(), reverse=True)
        found = run.get(query) or {}
        missing += not found
        ranking = _ranked(found, query)
        for k in tied:
            tied[k] += len(ranking.scores) > k and bool(ranking.scores[k - 1] == ranking.scores[k])
        ranks = {document: rank for rank, document in enumerate(ranking.documents[:depth], 1)}
        hits = sorted((ranks[document], grade) for document, grade in relevant.items() if document in ranks)
        worst, best = _extreme_hits(ranking, relevant, depth)
        differs = False
        for name, (family, k) in cutoffs.items():
            value = per_query[name][query] = _value(family, k, hits, ideal)
            low, high = (value, value) if worst == best else (_value(family, k, worst, ideal), _value(family, k, best, ideal))
            lowest[name].append(low)
            highest[name].append(high)
            differs |= low != high
        tie_queries += differs
    count = len(judged)
    return Scores(
        {name: math.fsum(values.values()) / count for name, values in per_query.items()}, per_query, missing,
        {k: number / count for k, number in tied.items()}, tie_queries,
        {name: math.fsum(values) / count for name, values in lowest.items()},
        {name: math.fsum(values) / count for name, values in highest.items()},
    )  # fmt: skip


def judged_queries(qrels: Qrels) -> list[str]:
    """The queries that metrics average over: those with at least one judgement above 0; UserError for a grade that is none."""
    for query, grades in qrels.items():
        for document, grade in grades.items():
            if not isinstance(grade, int | np.integer) or abs(int(grade)) > _HIGHEST_GRADE:
                raise UserError(f"the judgement of document {document!r} for query {query!r} is {str(grade)[:40]}, no integer up to {_HIGHEST_GRADE}")
    return [query for query, grades in qrels.items() if any(grade > 0 for grade in grades.values())]


def rank_documents(scores: Mapping[str, float], query: str = "") -> list[str]:
    """Document ids by falling score (compared as float32), equal scores by falling id; UserError for one that is not finite."""
    return _ranked(scores, query).documents


def parse_metric(name: str) -> tuple[str, int]:
    """``"ndcg@10"`` to ``("ndcg", 10)``; UserError for a name that is not known."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(f"unknown metric {name!r}: it must be ndcg, recall, map, mrr or precision, '@', and a cut-off")
    return match[1], int(match[2])


class _Ranking(NamedTuple):
    """A query's documents in order, and their scores (falling)."""

    documents: list[str]
    scores: NDArray[np.float32]


def _ranked(scores: Mapping[str, float], query: str) -> _Ranking:
    documents = sorted(scores, reverse=True)  # of strings by code point, which is the order of their UTF-8 bytes
    values = np.array([_float(scores[document]) for document in documents], dtype=np.float64)
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float32)
    finite = np.isfinite(rounded)
    if not finite.all():
        document = documents[int(np.argmin(finite))]
        raise UserError(f"the score of document {document!r} for query {query!r} is {str(scores[document])[:40]}, not a finite float32 number")
    order = np.argsort(-rounded, kind="stable")
    return _Ranking([documents[place] for place in order], rounded[order])


def _float(score: Any) -> float:
    try:
        return float(score)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _extreme_hits(ranking: _Ranking, relevant: Mapping[str, int], depth: int | None) -> tuple[Hits, Hits]:
    """The hits if, among equal scores, the relevant documents came last (the lowest grade first) or first (the highest first).

    Every measure is the smaller the later a relevant document comes and the smaller the grades that come early, so these
    are the extremes of all of them.
    """
    count = len(ranking.documents)
    depth = count if depth is None else depth
    open_score = ranking.scores[-1] if 0 < depth < count and ranking.scores[depth - 1] == ranking.scores[-1] else None
    place = {document: number for number, document in enumerate(ranking.documents) if document in relevant}
    groups: dict[float, list[int]] = {}
    for document, number in place.items():
        groups.setdefault(float(ranking.scores[number]), []).append(relevant[document])
    if open_score is not None:
        absent = [grade for document, grade in relevant.items() if document not in place]
        groups.setdefault(float(open_score), []).extend(absent)
    worst: Hits = []
    best: Hits = []
    falling = -ranking.scores
    for score, grades in groups.items():
        start, stop = np.searchsorted(falling, -np.float32(score)), np.searchsorted(falling, -np.float32(score), "right")
        best += [(int(start) + number, grade) for number, grade in enumerate(sorted(grades, reverse=True), 1)]
        if open_score is None or score != open_score:
            worst += [(int(stop) - number, grade) for number, grade in enumerate(sorted(grades, reverse=True))]
    return sorted(hit for hit in worst if hit[0] <= depth), sorted(hit for hit in best if hit[0] <= depth)


def _value(family: str, k: int, hits: Hits, ideal: Sequence[int]) -> float:
    """One measure of one query at cut-off ``k``; ``ideal``: the grades of all its relevant documents, falling."""
    if family == "ndcg":
        return _gain(hits, k) / _gain(list(enumerate(ideal, 1)), k)
    within = [rank for rank, _ in hits if rank <= k]
    if family == "recall":
        return len(within) / len(ideal)
    if family == "precision":
        return len(within) / k
    if family == "map":
        return sum(number / rank for number, rank in enumerate(within, 1)) / len(ideal)
    return 1 / within[0] if within else 0.0


def _gain(hits: Hits, k: int) -> float:
    return sum(grade / math.log2(rank + 1) for rank, grade in hits if rank <= k)
