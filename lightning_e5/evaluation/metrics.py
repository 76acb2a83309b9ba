"""Ranking metrics, with pytrec_eval as the arbiter and the denominator and the ties made explicit.

Three rules that the usual evaluators leave open:

* The mean is over the *judged* queries: those with at least one judgement above 0. A judged query that the run lacks
  counts as 0 and is counted in ``missing``; a query of the run without such a judgement is left out.
* Equal scores rank by rising document id. trec_eval ranks them by falling id and reads scores as float32, so the run
  is handed to it re-scored by rank.
* A NaN or infinite score is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytrec_eval

from lightning_e5.errors import UserError
from lightning_e5.types import Metrics, Qrels, Run

#: BEIR's metric, and the usual companions.
DEFAULT_METRICS = ("ndcg@10", "recall@100", "map@100", "mrr@10", "precision@10")

_NAME = re.compile(r"(ndcg|recall|map|mrr|precision)@([1-9][0-9]*)")
# pytrec_eval's name of a measure; recip_rank knows no cut-off, so its run is cut instead
_TREC = {"ndcg": "ndcg_cut", "recall": "recall", "map": "map_cut", "precision": "P"}


@dataclass(frozen=True, slots=True)
class Scores:
    """Metrics of one run.

    ``mean``: metric -> mean over the judged queries; ``per_query``: metric -> judged query id -> value, in ``qrels``'
    order; ``missing``: judged queries that the run lacks or has no document for; ``tied``: cut-off -> share of the
    judged queries whose documents at ranks ``k`` and ``k + 1`` have one score, so that the id decides (the run must
    reach below the cut-off for that to show).
    """

    mean: Metrics
    per_query: dict[str, dict[str, float]]
    missing: int
    tied: dict[int, float]


def evaluate_run(run: Run, qrels: Qrels, metrics: Sequence[str] = DEFAULT_METRICS) -> Scores:
    """Judge a run.

    Args:
        run: query id -> document id -> score, higher is better.
        qrels: query id -> document id -> grade; a grade above 0 is relevant, nDCG's gain is the grade itself.
            Judged documents outside the corpus stay in the ideal ranking and in recall's denominator.
        metrics: names such as ``ndcg@10``: one of ndcg, recall, map, mrr, precision and a cut-off.

    Raises:
        UserError: an unknown metric, a NaN or infinite score, or no judged query.

    Source: paper section 4.2 (nDCG@10 on BEIR).
    """
    cutoffs = {name: parse_metric(name) for name in metrics}
    judged = judged_queries(qrels)
    if not judged:
        raise UserError("no query has a judgement above 0, so there is nothing to average over")
    rankings = {query: rank_documents(run[query], query) for query in judged if run.get(query)}
    relevant = {query: {d: g for d, g in qrels[query].items() if g > 0} for query in judged}
    per_query = {
        name: _measure(family, cutoff, rankings, relevant, judged) for name, (family, cutoff) in cutoffs.items()
    }
    mean = {name: math.fsum(values.values()) / len(judged) for name, values in per_query.items()}
    tied = {k: _tied_queries(run, rankings, k) / len(judged) for k in sorted({k for _, k in cutoffs.values()})}
    return Scores(mean, per_query, len(judged) - len(rankings), tied)


def judged_queries(qrels: Qrels) -> list[str]:
    """The queries that metrics average over: those with at least one judgement above 0."""
    return [query for query, grades in qrels.items() if any(grade > 0 for grade in grades.values())]


def rank_documents(scores: Mapping[str, float], query: str = "") -> list[str]:
    """Document ids by falling score, equal scores by rising id; UserError for a NaN or infinite score."""
    for document, score in scores.items():
        if not math.isfinite(score):
            raise UserError(f"the score of document {document!r} for query {query!r} is {score}, not a finite number")
    return sorted(scores, key=lambda document: (-scores[document], document))


def parse_metric(name: str) -> tuple[str, int]:
    """``"ndcg@10"`` to ``("ndcg", 10)``; UserError for a name that is not known."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(f"unknown metric {name!r}: it must be ndcg, recall, map, mrr or precision, '@', and a cut-off")
    return match[1], int(match[2])


def _measure(
    family: str, cutoff: int, rankings: dict[str, list[str]], relevant: Qrels, judged: Sequence[str]
) -> dict[str, float]:
    measure = "recip_rank" if family == "mrr" else f"{_TREC[family]}.{cutoff}"
    key = measure.replace(".", "_")
    # nothing below the cut-off can change a measure at the cut-off, so every run is cut there; scores are ranks from
    # the end: 1 for the last document, exact in trec_eval's float32 up to 16 million documents
    rescored = {
        query: {document: float(min(cutoff, len(ranking)) - rank) for rank, document in enumerate(ranking[:cutoff])}
        for query, ranking in rankings.items()
    }
    found = pytrec_eval.RelevanceEvaluator(relevant, {measure}).evaluate(rescored)
    return {query: float(found[query][key]) if query in found else 0.0 for query in judged}


def _tied_queries(run: Run, rankings: dict[str, list[str]], cutoff: int) -> int:
    return sum(
        run[query][ranking[cutoff - 1]] == run[query][ranking[cutoff]]
        for query, ranking in rankings.items()
        if len(ranking) > cutoff
    )
