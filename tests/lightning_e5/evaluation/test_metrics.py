"""Metrics against a loop-written oracle and against pytrec_eval itself."""

from __future__ import annotations

import math

import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_e5.errors import UserError
from lightning_e5.evaluation.metrics import evaluate_run, parse_metric, rank_documents

NAMES = [f"{family}@{k}" for family in ("ndcg", "recall", "map", "mrr", "precision") for k in (1, 3, 10)]
TREC = {"ndcg": "ndcg_cut_", "recall": "recall_", "map": "map_cut_", "precision": "P_"}

identifiers = st.sampled_from([f"d{i}" for i in range(8)])  # judgements and runs share some, so some dangle
grades = st.dictionaries(identifiers, st.integers(-1, 3), max_size=8)
tied_scores = st.dictionaries(identifiers, st.sampled_from([-1.5, 0.0, 1.0, 1.0 + 1e-12, 2.0]), max_size=8)
queries = st.sampled_from(["q1", "q2", "q3", "q4"])
all_qrels = st.dictionaries(queries, grades, min_size=1).filter(
    lambda qrels: any(grade > 0 for judged in qrels.values() for grade in judged.values())
)


def oracle(run, qrels, name):
    """query -> value, with nothing but loops."""
    family, k = parse_metric(name)
    values = {}
    for query, judged in qrels.items():
        ideal = sorted((grade for grade in judged.values() if grade > 0), reverse=True)
        if not ideal:
            continue
        scores = dict(run.get(query, {}))
        ranking = []
        while scores:
            best = None
            for document in scores:
                if best is None or (-scores[document], document) < (-scores[best], best):
                    best = document
            ranking.append(best)
            del scores[best]
        gained = dcg = precisions = first = 0.0
        for rank, document in enumerate(ranking[:k], 1):
            grade = judged.get(document, 0)
            if grade > 0:
                gained += 1
                dcg += grade / math.log2(rank + 1)
                precisions += gained / rank
                first = first or 1 / rank
        idcg = sum(grade / math.log2(rank + 1) for rank, grade in enumerate(ideal[:k], 1))
        values[query] = {
            "ndcg": dcg / idcg,
            "recall": gained / len(ideal),
            "map": precisions / len(ideal),
            "mrr": first,
            "precision": gained / k,
        }[family]
    return values


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


@settings(max_examples=100, deadline=None)
@given(
    run=st.dictionaries(
        queries,
        st.dictionaries(identifiers, st.integers(-100, 100), min_size=1).map(
            lambda scores: {d: s + i / 16 for i, (d, s) in enumerate(scores.items())}
        ),
    ),
    qrels=all_qrels,
)
def test_equals_pytrec_eval_where_nothing_is_tied(run, qrels):
    run = {q: s for q, s in run.items() if len(set(s.values())) == len(s)}
    measures = {"ndcg_cut.3,10", "recall.3,10", "map_cut.3,10", "P.3,10"}
    expected = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    scores = evaluate_run(run, qrels, NAMES)
    for name in NAMES:
        family, k = parse_metric(name)
        if family == "mrr" or k == 1:
            continue
        for query, value in scores.per_query[name].items():
            assert value == pytest.approx(expected.get(query, {}).get(f"{TREC[family]}{k}", 0.0), abs=1e-9)


def as_trec_eval_breaks_ties(run):
    """The same rankings with ties broken by rising id, as scores without ties that float32 holds."""
    return {
        query: {d: float(len(scores) - rank) for rank, d in enumerate(sorted(scores, key=lambda d: (-scores[d], d)))}
        for query, scores in run.items()
    }


@settings(max_examples=150, deadline=None)
@given(run=st.dictionaries(queries, tied_scores), qrels=all_qrels, extra=st.integers(0, 3))
def test_every_metric_equals_pytrec_eval_with_ties_missing_queries_and_dangling_judgements(run, qrels, extra):
    qrels = {q: {**grades, **{f"gone{i}": i for i in range(extra + 1)}} for q, grades in qrels.items()}  # not in any run
    names = [f"{family}@{k}" for family in ("ndcg", "recall", "map", "mrr", "precision") for k in (1, 3, 10, 1000)]
    scores = evaluate_run(run, qrels, names)
    ranked = as_trec_eval_breaks_ties(run)
    judged = [q for q, grades in qrels.items() if any(g > 0 for g in grades.values())]
    for name in names:
        family, k = parse_metric(name)
        if family == "mrr":  # trec_eval's has no cut-off: the run is cut
            cut = {q: {d: s for d, s in r.items() if s > len(r) - k} for q, r in ranked.items()}
            found, key = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(cut), "recip_rank"
        else:
            measure = TREC[family].removesuffix("_")
            found, key = pytrec_eval.RelevanceEvaluator(qrels, {f"{measure}.{k}"}).evaluate(ranked), f"{measure}_{k}"
        expected = {q: found.get(q, {}).get(key, 0.0) for q in judged}  # a missing query is 0
        assert scores.per_query[name] == pytest.approx(expected, abs=1e-9), name
        assert scores.mean[name] == pytest.approx(sum(expected.values()) / len(judged), abs=1e-9)


def test_ties_go_to_the_lower_id_not_as_in_trec_eval():
    run, qrels = {"q": {"a": 1.0, "b": 1.0}}, {"q": {"a": 1}}
    assert evaluate_run(run, qrels, ["mrr@10"]).mean == {"mrr@10": 1.0}
    arbiter = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(run)
    assert arbiter["q"]["recip_rank"] == 0.5
    assert rank_documents({"b": 1.0, "c": 2.0, "a": 1.0}) == ["c", "a", "b"]


def test_scores_closer_than_float32_are_not_tied():
    run, qrels = {"q": {"a": 1.0, "b": 1.0 + 1e-12}}, {"q": {"b": 1}}
    assert evaluate_run(run, qrels, ["mrr@10"]).mean == {"mrr@10": 1.0}


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


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_refuses_scores_that_are_not_finite(score):
    with pytest.raises(UserError, match=r"document 'd7' for query 'q1'"):
        evaluate_run({"q1": {"d1": 1.0, "d7": score}}, {"q1": {"d1": 1}})


def test_refuses_bad_metrics_and_nothing_judged():
    for name in ("ndcg", "ndcg@0", "ndcg@x", "accuracy@1"):
        with pytest.raises(UserError, match="unknown metric"):
            evaluate_run({}, {"q": {"d": 1}}, [name])
    with pytest.raises(UserError, match="nothing to average"):
        evaluate_run({"q": {"d": 1.0}}, {"q": {"d": 0}})
