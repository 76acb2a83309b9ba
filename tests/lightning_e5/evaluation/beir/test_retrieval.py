"""The retrieval task, with an embedder and with a searcher, and what it leaves on disk."""

from __future__ import annotations

import random

import pyarrow.parquet as pq
import pytest
import pytrec_eval
import torch

from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir.data import RetrievalData
from lightning_e5.evaluation.beir.retrieval import RetrievalTask
from lightning_e5.retrieval.exact import ExactIndex
from lightning_e5.retrieval.faiss_index import FaissIndex


class Letters:
    """Counts of letters."""

    def embed(self, texts, kind, *, normalize=True):
        vectors = torch.tensor([[float(text.count(letter)) for letter in "abc"] for text in texts])
        return torch.nn.functional.normalize(vectors) if normalize else vectors


class Fixed:
    """A searcher with one answer; notes its arguments."""

    def __init__(self, run):
        self.run = run

    def retrieve(self, corpus, queries, k):
        self.seen = (dict(corpus), dict(queries), k)
        return self.run


DATA = RetrievalData(
    name="toy",
    split="test",
    corpus={"d 1": "aaa", "d%2": "bbb", "d3": "ccc", "d4": "aab"},
    queries={"q1": "a", "q2": "b", "q3": "c"},
    qrels={"q1": {"d 1": 1}, "q2": {"d4": 2, "gone": 1}, "q3": {"d3": 0}},
    missing_documents=1,
)


def test_evaluates_an_embedder():
    task = RetrievalTask(DATA, metrics=["ndcg@10", "mrr@1", "recall@100"])
    result = task.evaluate(Letters())
    assert (task.name, result.name, result.split) == ("toy", "toy", "test")
    assert set(result.metrics) == {"ndcg@10", "mrr@1", "recall@100"}
    assert result.per_query["mrr@1"] == {"q1": 1.0, "q2": 0.0}
    assert result.metrics["mrr@1"] == 0.5
    assert result.metrics["recall@100"] == 0.75
    counts = {"self_excluded": 0, "same_id_kept": 0, "tie_queries": 0}
    assert result.counts == {"queries": 2, "documents": 4, "missing": 0, "dangling": 1, **counts}
    assert result.tied == {1: 0.0, 10: 0.0, 100: 0.0}
    assert result.lowest == result.highest == result.metrics
    assert list(result.run["q1"])[:2] == ["d 1", "d4"]


@pytest.mark.parametrize("kept", [False, True])
def test_an_approximate_index_shows_its_recall(tmp_path, kept):
    rng = random.Random(0)
    corpus = {f"d{i:03d}": "".join(rng.choices("abc", k=9)) + "abc"[i % 3] * (i % 17) for i in range(400)}
    queries = {f"q{i}": "".join(rng.choices("abc", k=7)) for i in range(20)}
    data = RetrievalData("toy", "test", corpus, queries, {q: {"d000": 1} for q in queries})
    embedder = Known() if kept else Letters()
    options = {"k": 10, "metrics": ["ndcg@10"], "cache_dir": tmp_path if kept else None}
    exact = RetrievalTask(data, **options).evaluate(embedder)
    assert "ann_recall@10" not in exact.counts
    flat = RetrievalTask(data, index=FaissIndex("flat", threads=1), **options)
    for _ in range(2):  # the index is empty each time
        found = flat.evaluate(embedder)
        assert found.counts["ann_recall@10"] == 1.0
        assert found.run == exact.run
    task = RetrievalTask(data, index=FaissIndex("ivf", lists=60, nprobe=1, threads=1), **options)
    found = task.evaluate(embedder)
    assert 0 < found.counts["ann_recall@10"] < 1
    assert found.run != exact.run
    assert "ann_recall@10" not in RetrievalTask(data, index=ExactIndex(), **options).evaluate(embedder).counts


class Known(Letters):
    def fingerprint(self):
        return "letters"


class Kinds(Letters):
    def __init__(self):
        self.kinds = []

    def embed(self, texts, kind, *, normalize=True):
        self.kinds.append(kind)
        return super().embed(texts, kind)


def test_documents_may_be_of_the_kind_of_queries_and_keep_their_own():
    data = RetrievalData("toy", "test", {"q1": "aaa", "d2": "aab"}, {"q1": "aaa"}, {"q1": {"d2": 1}})
    embedder = Kinds()
    result = RetrievalTask(data, k=10, metrics=["mrr@10"], passage_kind="query", queries_are_documents=False).evaluate(embedder)
    assert embedder.kinds == ["query", "query"]
    assert result.metrics == {"mrr@10": 0.5}
    assert RetrievalTask(data, k=10, metrics=["mrr@10"]).evaluate(embedder).metrics == {"mrr@10": 1.0}


def test_evaluates_a_searcher_and_counts_what_is_missing():
    searcher = Fixed({"q1": {"d 1": 2.0}})
    result = RetrievalTask(DATA, k=10, metrics=["ndcg@10"]).evaluate(searcher)
    assert searcher.seen == (DATA.corpus, DATA.queries, 11)  # one more shows whether scores tie at the end
    assert result.metrics == {"ndcg@10": 0.5}
    assert result.counts["missing"] == 1


def test_saves_a_run_and_a_table(tmp_path):
    result = RetrievalTask(DATA, metrics=["ndcg@10", "mrr@10"], k=10).evaluate(
        Fixed({"q1": {"d%2": 0.1, "d 1": 0.1, "d3": 1 / 3}, "q2": {}})
    )
    result.save(tmp_path / "out")
    lines = (tmp_path / "out" / "run.trec").read_text().splitlines()
    assert lines == [
        "q1 Q0 d3 1 0.3333333333333333 lightning_e5",
        "q1 Q0 d%252 2 0.1 lightning_e5",
        "q1 Q0 d%201 3 0.1 lightning_e5",
    ]
    table = pq.read_table(tmp_path / "out" / "per_query.parquet").to_pydict()
    assert table == {"query_id": ["q1", "q2"], "ndcg@10": pytest.approx([0.5, 0.0], abs=1e-5), "mrr@10": [1 / 3, 0.0]}
    first = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    result.save(tmp_path / "out")
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


def test_trec_eval_reads_the_same_figures_from_the_run_file(tmp_path):
    """Float64 scores that are equal as float32, many ties, and ids that are no ASCII: writing makes and breaks none."""
    rng = random.Random(3)
    names = [f"d{i}" for i in range(40)] + ["ä", "日本", "D", "\U0001f600"]
    run = {f"q{i}": {d: rng.choice([1 / 61, 1 / 61 + 1e-12, 1 / 3, 0.1 + 0.2, 0.3]) for d in rng.sample(names, 20)} for i in range(30)}
    qrels = {query: {d: rng.randrange(3) for d in names[::3]} | {"d0": 1} for query in run}
    data = RetrievalData("toy", "test", dict.fromkeys(names, "text"), dict.fromkeys(run, "text"), qrels)
    result = RetrievalTask(data, k=10, metrics=["ndcg@10", "map@10", "precision@5"]).evaluate(Fixed(run))
    result.save(tmp_path)
    read = {}
    for line in (tmp_path / "run.trec").read_text(encoding="utf-8").splitlines():
        query, _, document, _, score, _ = line.split(" ")
        read.setdefault(query, {})[document] = float(score)
    assert all(len(found) == 10 for found in read.values()) and result.counts["tie_queries"] > 20
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "map_cut.10", "P.5"}).evaluate(read)
    whole = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "map_cut.10", "P.5"}).evaluate(run)  # of uncut runs: so is the cut
    for name, measure in (("ndcg@10", "ndcg_cut_10"), ("map@10", "map_cut_10"), ("precision@5", "P_5")):
        for query, value in result.per_query[name].items():
            assert value == pytest.approx(theirs[query][measure], abs=1e-12) == pytest.approx(whole[query][measure], abs=1e-12)


def test_a_run_file_holds_any_id(tmp_path):
    names = ["a b", "a\tb", "a\0b", "a%b", "\ud800"]
    data = RetrievalData("toy", "test", dict.fromkeys(names, "text"), {"q 1": "text"}, {"q 1": {"a b": 1}})
    RetrievalTask(data, k=10, metrics=["mrr@10"]).evaluate(Fixed({"q 1": dict.fromkeys(names, 1.0)})).save(tmp_path)
    columns = [line.split(" ") for line in (tmp_path / "run.trec").read_text(encoding="utf-8").splitlines()]
    assert {row[2] for row in columns} == {"a%20b", "a%09b", "a%00b", "a%25b", "%ED%A0%80"} and all(len(row) == 6 for row in columns)


def test_refuses_a_cut_off_beyond_k_and_what_cannot_search():
    with pytest.raises(UserError, match="cut-off 100"):
        RetrievalTask(DATA, k=10)
    with pytest.raises(UserError, match="neither 'embed' nor 'retrieve'"):
        RetrievalTask(DATA).evaluate(object())
