"""The same model through beir's own evaluation: equal to 1e-4, and a test for every case that beir handles otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from beir.datasets.data_loader import GenericDataLoader
from beir.retrieval.evaluation import EvaluateRetrieval
from beir.retrieval.models import SentenceBERT
from beir.retrieval.search.dense import DenseRetrievalExactSearch

from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir.data import RetrievalData, load_beir
from lightning_e5.evaluation.beir.metrics import evaluate_run
from lightning_e5.evaluation.beir.retrieval import RetrievalTask
from lightning_e5.models.encoder import TextEncoder

CUTS = [1, 3, 5, 10, 100]
#: Our name -> beir's.
NAMES = {"ndcg": "NDCG", "map": "MAP", "recall": "Recall", "precision": "P", "mrr": "MRR"}
METRICS = [f"{family}@{k}" for family in NAMES for k in CUTS]


class BeirModel:
    """An embedder as beir calls it."""

    def __init__(self, embedder: Any) -> None:
        self.embedder = embedder

    def encode_queries(self, queries: list[str], **options: Any) -> torch.Tensor:
        return self.embedder.embed(queries, "query")

    def encode_corpus(self, corpus: list[dict[str, str]], **options: Any) -> torch.Tensor:
        return self.embedder.embed([f"{row['title']} {row['text']}".strip() for row in corpus], "passage")


def with_beir(model: Any, corpus: Any, queries: Any, qrels: Any, cuts: list[int] = CUTS) -> tuple[dict[str, float], Any]:
    """beir's metrics in our names, and its run."""
    evaluation = EvaluateRetrieval(DenseRetrievalExactSearch(model, show_progress_bar=False), k_values=cuts, score_function="cos_sim")
    run = evaluation.retrieve(corpus, queries)
    return judged_by_beir(qrels, run, cuts), run


def judged_by_beir(qrels: Any, run: Any, cuts: list[int] = CUTS) -> dict[str, float]:
    run = {query: dict(found) for query, found in run.items()}  # beir removes documents from it
    parts = [*EvaluateRetrieval.evaluate(qrels, run, cuts), EvaluateRetrieval.evaluate_custom(qrels, run, cuts, "mrr")]
    ours = {theirs: name for name, theirs in NAMES.items()}
    return {f"{ours[name.split('@')[0]]}@{name.split('@')[1]}": value for part in parts for name, value in part.items()}


def rows_of(data: RetrievalData) -> dict[str, dict[str, str]]:
    return {key: {"title": "", "text": text} for key, text in data.corpus.items()}


@pytest.fixture
def folder(tmp_path: Path, texts: list[str]) -> Path:
    """Real documentation in BEIR's layout: titles, none, empty documents, grades, queries that are documents."""
    lines = list(dict.fromkeys(" ".join(t.split()) for t in texts))
    documents = [{"_id": f"d{i}", "title": line[:20] if i % 3 else "", "text": line} for i, line in enumerate(lines[:70])]
    documents += [{"_id": "no-text", "title": "Only a title", "text": ""}, {"_id": "empty", "title": "", "text": ""}]
    queries = [{"_id": f"q{i}", "text": lines[i][5:60]} for i in range(24)] + [{"_id": "d3", "text": lines[3]}, {"_id": "d4", "text": lines[4]}]
    judged = [f"q{i}\td{i}\t{1 + i % 2}\n" for i in range(24)] + [f"q{i}\td{(7 * i) % 60 + 1}\t1\n" for i in range(1, 20, 3)]
    judged += [f"q{i}\td{69 - i}\t0\n" for i in range(5)] + ["q9\tgone\t2\n", "d3\td5\t1\n", "d4\td6\t1\n"]
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents), encoding="utf-8")
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries), encoding="utf-8")
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judged), encoding="utf-8")
    return tmp_path


def test_a_whole_set_from_files_to_metrics(folder: Path, small_bert, small_tokenizer) -> None:  # type: ignore[no-untyped-def]
    """beir with sentence-transformers and ours, each by its own loader, encoder, search and metrics."""
    encoder = TextEncoder(small_bert, small_tokenizer)
    encoder.save_pretrained(folder / "model")
    peer = SentenceBERT(str(folder / "model"), prompt_names={"query": "query", "passage": "passage"}, device="cpu")
    theirs, run = with_beir(peer, *GenericDataLoader(str(folder)).load("test"))
    ours = RetrievalTask(load_beir(folder), k=100, metrics=METRICS).evaluate(encoder)
    assert theirs.keys() == ours.metrics.keys() and 0 < theirs["ndcg@10"] < 1
    for name, value in ours.metrics.items():
        assert theirs[name] == pytest.approx(value, abs=1e-4), name
    counts = {"self_excluded": 2, "same_id_kept": 0, "tie_queries": 0}  # d3, and d4, whose document has a title before its text
    assert ours.counts == {"queries": 26, "documents": 72, "missing": 0, "dangling": 1, **counts}
    assert {q: set(found) for q, found in run.items()} == {q: set(found) for q, found in ours.run.items()}
    for query, found in run.items():
        assert query not in found
        np.testing.assert_allclose([ours.run[query][d] for d in found], list(found.values()), atol=2e-6)


def test_queries_without_results() -> None:
    """beir's nDCG, MAP, recall and precision are means over the queries that the run has, its MRR over all: a model that
    answers one query of two perfectly and the other not at all has nDCG 1.0 and MRR 0.5. Ours counts an unanswered query
    as 0 everywhere (trec_eval's option -c) and says how many there are."""
    qrels, run = {"q1": {"a": 1}, "q2": {"b": 1}}, {"q1": {"a": 1.0, "b": 0.5}}
    theirs = judged_by_beir(qrels, run)
    assert (theirs["ndcg@10"], theirs["map@10"], theirs["mrr@10"]) == (1.0, 1.0, 0.5)
    ours = evaluate_run(run, qrels, METRICS)
    assert (ours.mean["ndcg@10"], ours.mean["map@10"], ours.mean["mrr@10"], ours.missing) == (0.5, 0.5, 0.5, 1)


def test_queries_with_nothing_relevant() -> None:
    """beir counts a query whose judgements are all 0 as 0, though no ranking could do better: a perfect run has nDCG 0.5.
    Ours averages over the queries with something to find."""
    qrels, run = {"q1": {"a": 1}, "q2": {"b": 0}}, {"q1": {"a": 1.0}, "q2": {"b": 1.0}}
    assert judged_by_beir(qrels, run)["ndcg@10"] == 0.5
    assert evaluate_run(run, qrels, METRICS).mean["ndcg@10"] == 1.0


def test_equal_scores_are_decided_by_names() -> None:
    """beir leaves equal scores to trec_eval, which ranks them by falling id, but its MRR takes the run's own order: the
    same run has precision@1 1.0 and MRR@1 0.0, and says nothing of the tie. Ours ranks as trec_eval for every metric,
    reports the share of queries that ids decide, and gives the lowest and the highest value over all orders."""
    qrels, run = {"q1": {"z": 1}}, {"q1": {"a": 0.5, "z": 0.5}}
    theirs = judged_by_beir(qrels, run)
    assert (theirs["precision@1"], theirs["mrr@1"]) == (1.0, 0.0)
    ours = evaluate_run(run, qrels, METRICS)
    assert (ours.mean["precision@1"], ours.mean["mrr@1"], ours.tied[1]) == (1.0, 1.0, 1.0)
    assert (ours.lowest["mrr@1"], ours.highest["mrr@1"], ours.tie_queries) == (0.0, 1.0, 1)


def test_scores_that_differ_less_than_float32_can_tell() -> None:
    """trec_eval, and so beir, reads scores as float32, in which these two are equal, and lets the id decide; so does ours,
    which says that it is so."""
    qrels, run = {"q1": {"a": 1}}, {"q1": {"a": 1.0 + 1e-9, "b": 1.0}}
    assert judged_by_beir(qrels, run)["precision@1"] == 0.0
    ours = evaluate_run(run, qrels, METRICS)
    assert (ours.mean["precision@1"], ours.tied[1], ours.tie_queries) == (0.0, 1.0, 1)


def test_which_of_equal_documents_are_found(table) -> None:  # type: ignore[no-untyped-def]
    """Where more documents have one score than the run is deep, beir keeps whichever its chunked top-k meets, so the order
    of the corpus changes the figure. Ours keeps the highest ids, those that trec_eval would keep of all documents, whatever
    the order; and the range says that nothing was told apart."""
    names = [f"d{i:02d}" for i in range(40)]
    data = RetrievalData("toy", "test", dict.fromkeys(names, "same"), {"q1": "one", "q2": "two"}, {"q1": {"d00": 1}, "q2": {"d01": 1}})
    turned = RetrievalData("toy", "test", dict.fromkeys(reversed(names), "same"), data.queries, data.qrels)
    found = [with_beir(BeirModel(table()), rows_of(d), d.queries, d.qrels, [1, 5])[1] for d in (data, turned)]
    assert found[0]["q1"].keys() != found[1]["q1"].keys()
    ours = [RetrievalTask(d, k=5, metrics=["recall@5"]).evaluate(table()) for d in (data, turned)]
    assert list(ours[0].run["q1"]) == list(ours[1].run["q1"]) == names[:-6:-1]
    assert (ours[0].lowest["recall@5"], ours[0].highest["recall@5"], ours[0].tied[5]) == (0.0, 1.0, 1.0)


def test_mrr_of_queries_that_are_documents() -> None:
    """beir's MRR does not leave out the document that is the query itself; only if its other metrics were asked for before
    is it gone, for these remove it from the run they are given. Ours never retrieves it."""
    qrels, run = {"d1": {"d2": 1}}, {"d1": {"d1": 1.0, "d2": 0.9}}
    assert EvaluateRetrieval.evaluate_custom(qrels, run, [10], "mrr")["MRR@10"] == 0.5
    EvaluateRetrieval.evaluate(qrels, run, [10])
    assert EvaluateRetrieval.evaluate_custom(qrels, run, [10], "mrr")["MRR@10"] == 1.0


def test_self_retrieval_at_the_last_place(table) -> None:  # type: ignore[no-untyped-def]
    """A run k deep has k other documents though the query finds itself: both fetch one more. And a document that is one
    query's own stays retrievable for the others."""
    vectors = {f"t{i}": [1.0, 0.1 * i] for i in range(8)}
    data = RetrievalData(
        "toy", "test", {f"d{i}": f"t{i}" for i in range(8)}, {"d0": "t0", "d1": "t1"}, {"d0": {"d2": 1}, "d1": {"d0": 1, "d3": 1}}
    )
    theirs, run = with_beir(BeirModel(table(vectors)), rows_of(data), data.queries, data.qrels, [1, 2])
    ours = RetrievalTask(data, k=2, metrics=[f"{family}@{k}" for family in NAMES for k in (1, 2)]).evaluate(table(vectors))
    assert {q: set(found) for q, found in ours.run.items()} == {q: set(found) for q, found in run.items()} == {"d0": {"d1", "d2"}, "d1": {"d0", "d2"}}
    assert ours.metrics == pytest.approx(theirs, abs=1e-5)


def test_equal_ids_of_unlike_texts(table) -> None:  # type: ignore[no-untyped-def]
    """beir leaves out every document with the id of the query. Where questions and documents are both numbered from 1, it
    so leaves out the answers: a perfect model has nDCG 0. Ours goes by the texts, unless a set declares its queries to be
    documents, and counts the documents that stayed."""
    vectors = {"first question": [1.0, 0.0], "first answer": [1.0, 0.1], "second question": [0.0, 1.0], "second answer": [0.1, 1.0]}
    data = RetrievalData(
        "toy", "test", {"1": "first answer", "2": "second answer"}, {"1": "first question", "2": "second question"},
        {"1": {"1": 1}, "2": {"2": 1}},
    )  # fmt: skip
    theirs, _ = with_beir(BeirModel(table(vectors)), rows_of(data), data.queries, data.qrels)
    ours = RetrievalTask(data).evaluate(table(vectors))
    assert (theirs["ndcg@10"], ours.metrics["ndcg@10"]) == (0.0, 1.0)
    assert (ours.counts["self_excluded"], ours.counts["same_id_kept"]) == (0, 2)
    declared = RetrievalTask(data, queries_are_documents=True).evaluate(table(vectors))
    assert declared.metrics["ndcg@10"] == theirs["ndcg@10"] and declared.counts["self_excluded"] == 2
    copies = RetrievalData("toy", "test", {"1": "x", "2": "y"}, {"1": "x", "2": "y"}, {"1": {"1": 1}, "2": {"1": 1}})
    found = RetrievalTask(copies, metrics=["mrr@10"]).evaluate(table())  # a copy that is judged relevant is an answer
    assert found.per_query["mrr@10"] == {"1": 1.0, "2": 1.0} and found.counts["self_excluded"] == 1


def test_a_judged_document_that_is_not_there(table) -> None:  # type: ignore[no-untyped-def]
    """Both leave it in the ideal ranking and in recall's denominator; ours counts it, too."""
    data = RetrievalData("toy", "test", {"a": "x", "b": "y"}, {"q1": "x", "q2": "y"}, {"q1": {"a": 1, "gone": 1}, "q2": {"b": 1}}, 1)
    theirs, _ = with_beir(BeirModel(table()), rows_of(data), data.queries, data.qrels)
    ours = RetrievalTask(data, k=100, metrics=METRICS).evaluate(table())
    assert ours.metrics == pytest.approx(theirs, abs=1e-5)
    assert ours.metrics["recall@100"] == 0.75 and ours.counts["dangling"] == 1


def test_embeddings_that_are_not_numbers(table) -> None:  # type: ignore[no-untyped-def]
    """beir takes a NaN score for -1, the lowest cosine, and gives a broken model a figure. Ours refuses it."""
    vectors = {"x": [1.0, 0.0], "y": [float("nan"), 0.0], "z": [0.0, 1.0]}
    data = RetrievalData("toy", "test", {"a": "x", "b": "y"}, {"q1": "x", "q2": "z"}, {"q1": {"a": 1}, "q2": {"b": 1}})
    theirs, run = with_beir(BeirModel(table(vectors)), rows_of(data), data.queries, data.qrels)
    assert theirs["ndcg@1"] == 0.5 and run["q1"]["b"] == -1.0
    with pytest.raises(UserError, match="NaN"):
        RetrievalTask(data).evaluate(table(vectors))


def test_a_set_of_one_query(table) -> None:  # type: ignore[no-untyped-def]
    """beir's search asks for the second query's scores to learn the number of documents, and fails where there is one
    query. Ours evaluates it."""
    data = RetrievalData("toy", "test", {"a": "x", "b": "y"}, {"q1": "x"}, {"q1": {"a": 1}})
    with pytest.raises(IndexError):
        with_beir(BeirModel(table()), rows_of(data), data.queries, data.qrels)
    assert RetrievalTask(data).evaluate(table()).metrics["ndcg@10"] == 1.0
