"""Hard negatives: passages that a retriever ranks high for a query and that are not known to answer it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError
from lightning_e5.ranges import Count, Range
from lightning_e5.rng import generator

#: Shares of the chosen negatives' scores that a report gives quantiles at.
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(slots=True)
class MiningReport:
    """Counts of what mining did; candidates are (query, passage) pairs among the retrieved.

    tied_with_positive: candidates that score exactly as the positive; to the retriever they are the positive, so they are no
    negatives. filled_against_rules: of those filled at random, how many may break a margin (or tie), because the corpus is too
    small or the retrieved end above the margin. known_negatives: chosen because they were known before.
    """

    queries: int = 0
    candidates: int = 0
    known_positives: int = 0
    tied_with_positive: int = 0
    known_negatives: int = 0
    over_absolute_margin: int = 0
    over_relative_margin: int = 0
    answers_by_teacher: int = 0
    filled_at_random: int = 0
    filled_against_rules: int = 0
    score_quantiles: list[float] = field(default_factory=list)


@configurable("settings", constructs=True)
@dataclass(frozen=True, slots=True)
class NegativeRules:
    """Which of the retrieved passages may be a negative.

    Args:
        count: negatives per query (E5: 7).
        first_rank, last_rank: the range of ranks (from 1) that negatives are drawn from.
        absolute_margin: a negative scores at least this much below the positive; None for no such rule.
        relative_margin: a negative scores at most ``positive - relative_margin * |positive|`` (right for negative
            scores too); None for no such rule.
    """

    count: Count = 7
    first_rank: Count = 1
    last_rank: Count = 200
    absolute_margin: Annotated[float, Range(-1e6, 1e6)] | None = None
    relative_margin: Annotated[float, Range(-1e6, 1e6)] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.first_rank <= self.last_rank or self.count < 1:
            raise UserError(
                f"negatives: count {self.count} must be >= 1 and ranks {self.first_rank} .. {self.last_rank} rising from 1"
            )


def mine(
    candidates_QK: NDArray[np.int64],
    scores_QK: NDArray[np.float32],
    positive_scores_Q: NDArray[np.float32],
    known_positives: Sequence[set[int]],
    passage_text_P: NDArray[np.int64],
    rules: NegativeRules,
    *,
    seed: int,
    false_negatives_QK: NDArray[np.bool_] | None = None,
    known_negatives: Sequence[Sequence[int]] = (),
) -> tuple[NDArray[np.int64], NDArray[np.float32], MiningReport]:
    """Choose each query's negatives.

    Args:
        candidates_QK: rows of the retrieved passages, best first; -1 where fewer were found.
        scores_QK: their scores.
        positive_scores_Q: score of each query's own positive.
        known_positives: for each query, the text ids of all its known positives.
        passage_text_P: text id of every passage of the corpus.
        rules: which are allowed.
        seed: the draw of a query depends on it and on the query's place alone.
        false_negatives_QK: candidates that a cross-encoder takes for answers; they are no negatives.
        known_negatives: for each query, rows of passages that are known not to answer it; the first ``count`` of them are
            chosen whatever the rules say, and mining fills up.

    Returns:
        int64 ``[Q, count]`` passage rows, their scores (float32, NaN where one was not retrieved), and the report. A query with too few allowed candidates is filled with random
        passages (counted) that are no known positive of it and were not retrieved, so that they score below those that were.

    Raises:
        UserError: the corpus has too few passages.
    """
    report = MiningReport()
    different = len(np.unique(passage_text_P))
    check_corpus(different, max((len(k) for k in known_positives), default=0), rules)
    chosen_QN, chosen_scores_QN = mine_part(
        candidates_QK, scores_QK, positive_scores_Q, known_positives, passage_text_P, rules, report, different=different, first_row=0, seed=seed,
        false_negatives_QK=false_negatives_QK, known_negatives=known_negatives,
    )  # fmt: skip
    retrieved = chosen_scores_QN[~np.isnan(chosen_scores_QN)]
    if len(retrieved):
        report.score_quantiles = [float(q) for q in np.quantile(retrieved.astype(np.float64), QUANTILES)]
    return chosen_QN, chosen_scores_QN, report


def check_corpus(different: int, most_known: int, rules: NegativeRules) -> None:
    """UserError for a corpus in which a query would find too few negatives.

    Args:
        different: texts of the corpus.
        most_known: the most known positives that a query has.
        rules: how many negatives are wanted.
    """
    if different <= rules.count + most_known:
        raise UserError(f"negatives: a corpus of {different} different passages is too small for {rules.count} negatives")


def mine_part(
    candidates_QK: NDArray[np.int64],
    scores_QK: NDArray[np.float32],
    positive_scores_Q: NDArray[np.float32],
    known_positives: Sequence[set[int]],
    passage_text_P: NDArray[np.int64],
    rules: NegativeRules,
    report: MiningReport,
    *,
    different: int,
    first_row: int,
    seed: int,
    false_negatives_QK: NDArray[np.bool_] | None = None,
    known_negatives: Sequence[Sequence[int]] = (),
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """As `mine`, of some of the queries; all parts together give what it gives of all.

    Args:
        report: counts are added; the quantiles of the scores are left to the caller.
        different: texts of the corpus, see `check_corpus`.
        first_row: the number of the part's first query among all.
        others: as `mine`, of these queries.
    """
    report.queries += len(candidates_QK)
    chosen_QN = np.empty((len(candidates_QK), rules.count), dtype=np.int64)
    chosen_scores_QN = np.full(chosen_QN.shape, np.nan, dtype=np.float32)
    window = slice(rules.first_rank - 1, rules.last_rank)
    for row in range(len(candidates_QK)):
        candidates, scores = candidates_QK[row, window], scores_QK[row, window]
        there = candidates >= 0
        candidates, scores = candidates[there], scores[there]
        report.candidates += len(candidates)
        allowed = ~np.isin(passage_text_P[candidates], list(known_positives[row]))
        report.known_positives += int((~allowed).sum())
        tied = scores == positive_scores_Q[row]
        report.tied_with_positive += int((allowed & tied).sum())
        allowed &= ~tied
        limits = _limits(positive_scores_Q[row], rules)
        for margin, limit in limits.items():
            passed = scores <= limit
            setattr(report, margin, getattr(report, margin) + int((allowed & ~passed).sum()))
            allowed &= passed
        if false_negatives_QK is not None:
            answers = false_negatives_QK[row, window][there]
            report.answers_by_teacher += int((allowed & answers).sum())
            allowed &= ~answers
        own = np.asarray(known_negatives[row][: rules.count] if known_negatives else [], dtype=np.int64)
        report.known_negatives += len(own)
        allowed &= ~np.isin(passage_text_P[candidates], passage_text_P[own])
        wanted = rules.count - len(own)
        draw = generator(seed, "negatives", first_row + row)
        places = np.flatnonzero(allowed)
        _, first = np.unique(passage_text_P[candidates[places]], return_index=True)
        places = places[np.sort(first)]  # one copy of each text
        if len(places) > wanted:
            places = np.sort(draw.choice(places, wanted, replace=False))
        found = np.concatenate([own, candidates[places]])
        chosen_scores_QN[row, : len(own)] = [_score_of(passage, candidates_QK[row], scores_QK[row]) for passage in own]
        chosen_scores_QN[row, len(own) : len(found)] = scores[places]
        missing = rules.count - len(found)
        if missing:
            report.filled_at_random += missing
            retrieved = candidates_QK[row] >= 0
            avoided = set(passage_text_P[candidates_QK[row][retrieved]].tolist())
            lowest = scores_QK[row, -1] if retrieved.all() else 0.0  # of a passage that was not retrieved: at most this
            small = different <= rules.count + len(known_positives[row] | avoided)
            ties = retrieved.all() and lowest == positive_scores_Q[row]
            if small or ties or any(lowest > limit for limit in limits.values()):
                report.filled_against_rules += missing
            taken = known_positives[row] if small else known_positives[row] | avoided
            found = np.concatenate([found, _fill(found, taken, passage_text_P, missing, draw)])
        chosen_QN[row] = found
    return chosen_QN, chosen_scores_QN


def _score_of(passage: int, candidates_K: NDArray[np.int64], scores_K: NDArray[np.float32]) -> float:
    """NaN where it was not retrieved."""
    places = np.flatnonzero(candidates_K == passage)
    return float(scores_K[places[0]]) if len(places) else float("nan")


def _limits(positive: np.float32, rules: NegativeRules) -> dict[str, np.float32]:
    """Highest score of a negative by each margin, under the name of its count."""
    limits = {}
    if rules.absolute_margin is not None:
        limits["over_absolute_margin"] = positive - rules.absolute_margin
    if rules.relative_margin is not None:
        limits["over_relative_margin"] = positive - rules.relative_margin * abs(positive)
    return limits


def _fill(
    found: NDArray[np.int64], taken: set[int], passage_text_P: NDArray[np.int64], missing: int, draw: np.random.Generator
) -> NDArray[np.int64]:
    """Random passages whose texts are not taken nor found already."""
    taken = {*taken, *passage_text_P[found].tolist()}
    filled: list[int] = []
    for row in draw.permutation(len(passage_text_P)) if len(passage_text_P) < 4096 else iter(lambda: int(draw.integers(len(passage_text_P))), -1):
        text = int(passage_text_P[row])
        if text not in taken:
            taken.add(text)
            filled.append(int(row))
            if len(filled) == missing:
                break
    if len(filled) < missing:
        raise UserError(f"negatives: the corpus has too few different passages for {missing} more negatives")
    return np.asarray(filled, dtype=np.int64)
