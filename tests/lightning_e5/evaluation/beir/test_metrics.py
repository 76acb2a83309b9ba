"""Metrics against a loop-written oracle and against pytrec_eval itself."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir.metrics import evaluate_run, parse_metric, rank_documents

NAMES = [f"{family}@{k}" for family in ("ndcg", "recall", "map", "mrr", "precision") for k in (1, 3, 10)]
TREC = {"ndcg": "ndcg_cut_", "recall": "recall_", "map": "map_cut_", "precision": "P_"}

# ids whose order as strings is not that of their numbers, nor of their letters without regard to case, and not ASCII alone
identifiers = st.sampled_from(["d1", "d10", "d9", "D5", "ä", "z", "日本", "\U0001f600", "d1 2"])  # judgements and runs share some, so some dangle
grades = st.dictionaries(identifiers, st.integers(-1, 3), max_size=8)
tied_scores = st.dictionaries(identifiers, st.sampled_from([-1.5, -0.0, 0.0, 1.0, 1.0 + 1e-12, 2.0]), max_size=8)
queries = st.sampled_from(["q1", "q2", "q3", "q4"])
all_qrels = st.dictionaries(queries, grades, min_size=1).filter(
    lambda qrels: any(grade > 0 for judged in qrels.values() for grade in judged.values())
)


def ranked(scores):
    """By falling float32 score and falling UTF-8 bytes of the id, with nothing but loops."""
    left, ranking = {document: np.float32(score) for document, score in scores.items()}, []
    while left:
        best = None
        for document in left:
            if best is None or (left[document], document.encode()) > (left[best], best.encode()):
                best = document
        ranking.append(best)
        del left[best]
    return ranking


def measured(ranking, judged, name):
    """One measure of one ranking."""
    family, k = parse_metric(name)
    ideal = sorted((grade for grade in judged.values() if grade > 0), reverse=True)
    gained = dcg = precisions = first = 0.0
    for rank, document in enumerate(ranking[:k], 1):
        grade = judged.get(document, 0)
        if grade > 0:
            gained += 1
            dcg += grade / math.log2(rank + 1)
            precisions += gained / rank
            first = first or 1 / rank
    idcg = sum(grade / math.log2(rank + 1) for rank, grade in enumerate(ideal[:k], 1))
    values = {"ndcg": dcg / idcg, "recall": gained / len(ideal), "map": precisions / len(ideal), "mrr": first, "precision": gained / k}
    return values[family]


def oracle(run, qrels, name):
    """query -> value."""
    return {q: measured(ranked(run.get(q, {})), judged, name) for q, judged in qrels.items() if any(g > 0 for g in judged.values())}


def every_order(scores):
    """All rankings that the scores allow."""
    groups = [[d for d in scores if np.float32(scores[d]) == score] for score in sorted({np.float32(s) for s in scores.values()}, reverse=True)]
    for orders in itertools.product(*(itertools.permutations(group) for group in groups)):
        yield [document for group in orders for document in group]


@settings(max_examples=200, deadline=None)
@given(run=st.dictionaries(queries, tied_scores), qrels=all_qrels)
def test_equals_the_loops(run, qrels):
    scores = evaluate_run(run, qrels, NAMES)
    for name in NAMES:
        expected = oracle(run, qrels, name)
        assert scores.per_query[name] == pytest.approx(expected, abs=1e-9), name
        assert scores.mean[name] == pytest.approx(sum(expected.values()) / len(expected), abs=1e-9)
    judged = oracle(run, qrels, "ndcg@1")
    assert scores.missing == sum(not run.get(query) for query in judged)


@settings(max_examples=200, deadline=None)
@given(run=st.dictionaries(queries, tied_scores), qrels=all_qrels, extra=st.integers(0, 3))
def test_every_metric_equals_pytrec_eval_with_ties_missing_queries_and_qrels_of_missing_documents(run, qrels, extra):
    qrels = {q: {**grades, **{f"gone{i}": i for i in range(extra + 1)}} for q, grades in qrels.items()}  # not in any run
    names = [f"{family}@{k}" for family in ("ndcg", "recall", "map", "mrr", "precision") for k in (1, 3, 10, 1000)]
    scores = evaluate_run(run, qrels, names)
    judged = [q for q, grades in qrels.items() if any(g > 0 for g in grades.values())]
    for name in names:
        family, k = parse_metric(name)
        if family == "mrr":  # trec_eval's has no cut-off: the run is cut, in trec_eval's order
            cut = {q: {d: s for d, s in r.items() if d in ranked(r)[:k]} for q, r in run.items()}
            found, key = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(cut), "recip_rank"
        else:
            measure = TREC[family].removesuffix("_")
            found, key = pytrec_eval.RelevanceEvaluator(qrels, {f"{measure}.{k}"}).evaluate(run), f"{measure}_{k}"
        expected = {q: found.get(q, {}).get(key, 0.0) for q in judged}  # a missing query is 0
        assert scores.per_query[name] == pytest.approx(expected, abs=1e-9), name
        assert scores.mean[name] == pytest.approx(sum(expected.values()) / len(judged), abs=1e-9)


few = st.sampled_from(["a", "b", "c", "d", "e"])


@settings(max_examples=150, deadline=None)
@given(
    scores=st.dictionaries(few, st.sampled_from([0.0, 1.0, 1.0 + 1e-12, 2.0]), min_size=1, max_size=5),
    judged=st.dictionaries(few, st.integers(0, 3), min_size=1, max_size=5).filter(lambda grades: any(grades.values())),
)
def test_lowest_and_highest_are_those_of_all_orders_of_equal_scores(scores, judged):
    names = [f"{family}@{k}" for family in ("ndcg", "recall", "map", "mrr", "precision") for k in (1, 2, 3, 10)]
    found = evaluate_run({"q": scores}, {"q": judged}, names)
    differs = False
    for name in names:
        values = [measured(order, judged, name) for order in every_order(scores)]
        assert (found.lowest[name], found.highest[name]) == pytest.approx((min(values), max(values)), abs=1e-12), name
        differs |= max(values) - min(values) > 1e-12
        assert found.lowest[name] <= found.mean[name] + 1e-12 and found.mean[name] <= found.highest[name] + 1e-12
    assert found.tie_queries == differs


@settings(max_examples=100, deadline=None)
@given(
    scores=st.dictionaries(few, st.sampled_from([0.0, 1.0, 2.0]), min_size=2, max_size=5),
    judged=st.dictionaries(few, st.integers(0, 2), min_size=1, max_size=5).filter(lambda grades: any(grades.values())),
    depth=st.integers(1, 4),
)
def test_where_equal_scores_go_on_past_the_runs_end_the_two_are_bounds(scores, judged, depth):
    names = [f"{family}@{k}" for family in ("ndcg", "recall", "map", "mrr", "precision") for k in (1, 2, 4)]
    order = ranked(scores)
    run = {d: scores[d] for d in order[: depth + 1]}
    found = evaluate_run({"q": run}, {"q": judged}, names, depth=depth)
    ends = len(order) <= depth or scores[order[depth - 1]] != scores[order[depth]]
    for name in names:
        values = [measured(one[:depth], judged, name) for one in every_order(scores)]
        assert found.mean[name] == pytest.approx(measured(order[:depth], judged, name), abs=1e-12)
        assert found.lowest[name] <= min(values) + 1e-12 and found.highest[name] >= max(values) - 1e-12, name
        if ends:
            assert (found.lowest[name], found.highest[name]) == pytest.approx((min(values), max(values)), abs=1e-12), name


def test_a_collapsed_encoder_gets_no_figure_without_its_range():
    """All scores equal: what the ids make of it is a figure, the range is all that is known."""
    run = {"q1": dict.fromkeys("abcdef", 0.5), "q2": dict.fromkeys("abcdef", 0.5)}
    found = evaluate_run(run, {"q1": {"f": 1}, "q2": {"a": 1}}, ["mrr@10", "ndcg@1"])
    assert found.mean["mrr@10"] == pytest.approx((1 + 1 / 6) / 2) and found.tie_queries == 2
    assert (found.lowest, found.highest) == ({"mrr@10": pytest.approx(1 / 6), "ndcg@1": 0.0}, {"mrr@10": 1.0, "ndcg@1": 1.0})


def test_ties_go_to_the_higher_id_as_in_trec_eval():
    run, qrels = {"q": {"a": 1.0, "b": 1.0}}, {"q": {"a": 1}}
    assert evaluate_run(run, qrels, ["mrr@10"]).mean == {"mrr@10": 0.5}
    assert pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(run)["q"]["recip_rank"] == 0.5
    assert rank_documents({"b": 1.0, "c": 2.0, "a": 1.0}) == ["c", "b", "a"]
    assert rank_documents(dict.fromkeys(["9", "10", "1", "a", "B"], 0.0)) == ["a", "B", "9", "10", "1"]  # ids are strings


def test_scores_closer_than_float32_are_tied_as_in_trec_eval():
    run, qrels = {"q": {"a": 1.0 + 1e-12, "b": 1.0}}, {"q": {"b": 1}}
    found = evaluate_run(run, qrels, ["mrr@10", "mrr@1"])
    assert found.mean == {"mrr@10": 1.0, "mrr@1": 1.0} and found.tied[1] == 1.0 and found.tie_queries == 1
    assert pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(run)["q"]["recip_rank"] == 1.0


def test_ids_that_trec_eval_cannot_hold():
    """A lone surrogate, and ids that are equal up to a NUL character."""
    run, qrels = {"q\ud800": {"\ud800": 1.0, "a\0b": 2.0, "a\0c": 3.0}}, {"q\ud800": {"a\0b": 1}}
    assert evaluate_run(run, qrels, ["mrr@10"]).mean == {"mrr@10": 0.5}


def test_a_missing_query_is_zero_and_counted():
    qrels = {"q1": {"a": 1}, "q2": {"a": 1}, "q3": {"a": 1}, "unjudged": {"a": 0}}
    scores = evaluate_run({"q1": {"a": 1.0}, "q3": {}, "unjudged": {"a": 1.0}, "other": {"a": 1.0}}, qrels)
    assert scores.mean["ndcg@10"] == pytest.approx(1 / 3)
    assert scores.per_query["ndcg@10"] == {"q1": 1.0, "q2": 0.0, "q3": 0.0}
    assert scores.missing == 2


def test_counts_ties_at_the_cut_off():
    run = {"q1": {"a": 2.0, "b": 1.0, "c": 1.0}, "q2": {"a": 3.0, "b": 2.0, "c": 1.0}}
    qrels = {"q1": {"a": 1}, "q2": {"a": 1}}
    assert evaluate_run(run, qrels, ["ndcg@1", "map@2", "mrr@10"]).tied == {1: 0.0, 2: 0.5, 10: 0.0}


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, 1e39, 10**400, None, "high"])
def test_refuses_scores_that_are_not_finite(score):
    with pytest.raises(UserError, match=r"document 'd7' for query 'q1'"):
        evaluate_run({"q1": {"d1": 1.0, "d7": score}}, {"q1": {"d1": 1}})


@pytest.mark.parametrize("grade", [10**22, 0.5, "1", None, math.nan])
def test_refuses_grades_that_are_no_integers_of_trec_evals_size(grade):
    with pytest.raises(UserError, match=r"the judgement of document 'd7' for query 'q1' is .*no integer up to 2147483647"):
        evaluate_run({"q1": {"d1": 1.0}}, {"q1": {"d1": 1, "d7": grade}})


def test_refuses_bad_metrics_and_nothing_judged():
    for name in ("ndcg", "ndcg@0", "ndcg@x", "accuracy@1"):
        with pytest.raises(UserError, match="unknown metric"):
            evaluate_run({}, {"q": {"d": 1}}, [name])
    with pytest.raises(UserError, match="nothing to average"):
        evaluate_run({"q": {"d": 1.0}}, {"q": {"d": 0}})
