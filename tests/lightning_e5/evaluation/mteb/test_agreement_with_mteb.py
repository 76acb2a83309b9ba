"""The same embeddings through mteb's own evaluators: equal to 1e-4, and a test for every case that mteb handles otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir.data import RetrievalData
from lightning_e5.evaluation.beir.metrics import evaluate_run
from lightning_e5.evaluation.beir.retrieval import RetrievalTask
from lightning_e5.evaluation.mteb.adapter import MtebEncoder
from lightning_e5.evaluation.tasks.classification import ClassificationTask
from lightning_e5.evaluation.tasks.clustering import ClusteringTask
from lightning_e5.evaluation.tasks.labelled import LabelledTexts
from lightning_e5.evaluation.tasks.pair_classification import PairClassificationTask
from lightning_e5.evaluation.tasks.reranking import CandidateList, RerankingTask
from lightning_e5.evaluation.tasks.sts import STSData, STSTask
from lightning_e5.models.encoder import TextEncoder
from tests.lightning_e5.evaluation.mteb import small_mteb_tasks as small

CUTS = (1, 3, 5, 10, 100)
NAMES = {"ndcg": "ndcg", "map": "map", "recall": "recall", "precision": "precision", "mrr": "mrr"}
METRICS = [f"{family}@{k}" for family in NAMES for k in CUTS]


def adapter(embedder: Any) -> MtebEncoder:
    return MtebEncoder(embedder, "tests/small", "1")


def in_our_names(found: dict[str, Any], cuts: tuple[int, ...] = CUTS) -> dict[str, float]:
    return {f"{family}@{k}": found[f"{theirs}_at_{k}"] for family, theirs in NAMES.items() for k in cuts}


@pytest.fixture
def lines(texts: list[str]) -> list[str]:
    return list(dict.fromkeys(" ".join(t.split()) for t in texts))


@pytest.fixture
def encoder(small_bert, small_tokenizer) -> TextEncoder:  # type: ignore[no-untyped-def]
    return TextEncoder(small_bert, small_tokenizer)


def labelled(lines: list[str], labels: list[Any]) -> LabelledTexts:
    return LabelledTexts("small", lines, labels, list(range(1, len(lines) + 1)), Path("small.jsonl"))


def test_retrieval(lines: list[str], encoder: TextEncoder) -> None:
    qrels = {f"q{i}": {f"d{i}": 1 + i % 2, f"d{69 - i}": i % 3} for i in range(24)}
    corpus = {f"d{i}": line for i, line in enumerate(lines[:70])}
    data = RetrievalData("small", "test", corpus, {f"q{i}": lines[i][5:60] for i in range(24)}, qrels)
    theirs = in_our_names(small.scores(small.retrieval(data, k_values=CUTS), adapter(encoder)))
    ours = RetrievalTask(data, k=100, metrics=METRICS).evaluate(encoder)
    assert 0 < theirs["ndcg@10"] < 1
    assert ours.metrics == pytest.approx(theirs, abs=1e-4)


def test_sts(lines: list[str], encoder: TextEncoder) -> None:
    first, second, gold = lines[:60], lines[1:61], [float(i * 7 % 6) for i in range(60)]
    theirs = small.scores(small.sts(first, second, gold), adapter(encoder))
    ours = STSTask(STSData("small", first, second, np.array(gold))).evaluate(encoder)
    assert (ours.metrics["spearman"], ours.metrics["pearson"]) == pytest.approx((theirs["cosine_spearman"], theirs["cosine_pearson"]), abs=1e-4)


def test_pair_classification(lines: list[str], encoder: TextEncoder) -> None:
    first, second, labels = lines[:60], [lines[i][::-1] if i % 3 else lines[i][3:] for i in range(60)], [int(i % 3 == 0 or i % 7 == 1) for i in range(60)]
    theirs = small.scores(small.pair_classification(first, second, labels), adapter(encoder))
    ours = PairClassificationTask("small", first, second, np.array(labels)).evaluate(encoder)
    assert 0 < ours.value < 1
    assert (ours.value, ours.metrics["accuracy"]) == pytest.approx((theirs["cosine_ap"], theirs["cosine_accuracy"]), abs=1e-4)


@pytest.mark.parametrize("normalize", [False, True])
def test_classification(lines: list[str], encoder: TextEncoder, normalize: bool) -> None:
    labels = [len(line) % 3 for line in lines]
    train, test = (lines[:90], labels[:90]), (lines[90:150], labels[90:150])
    peer = MtebEncoder(encoder, "tests/small", "1", normalize_probes=normalize)
    theirs = small.scores(small.classification(train, test), peer)
    ours = ClassificationTask(labelled(*train), labelled(*test), normalize=normalize).evaluate(encoder)
    assert (ours.value, ours.metrics["f1"]) == pytest.approx((theirs["accuracy"], theirs["f1"]), abs=1e-4)


def test_clustering(lines: list[str], encoder: TextEncoder) -> None:
    labels = [str(len(line) % 4) for line in lines[:120]]
    theirs = small.scores(small.clustering(lines[:120], labels), adapter(encoder))
    ours = ClusteringTask(labelled(lines[:120], labels), runs=1).evaluate(encoder)
    assert ours.value == pytest.approx(theirs["v_measure"], abs=1e-4)


def ranked_lists(lists: list[CandidateList], **more: Any) -> Any:
    """The lists as mteb's re-ranking task."""
    corpus, qrels, top = {}, {}, {}
    for number, one in enumerate(lists):
        documents = [(f"x{i}-{number}", text, 1) for i, text in enumerate(one.positive)]
        documents += [(f"y{i}-{number}", text, 0) for i, text in enumerate(one.negative)]
        corpus |= {key: text for key, text, _ in documents}
        qrels[f"q{number}"] = {key: grade for key, _, grade in documents}
        top[f"q{number}"] = [key for key, _, _ in documents]
    data = RetrievalData("small", "test", corpus, {f"q{n}": one.query for n, one in enumerate(lists)}, qrels)
    return small.retrieval(data, top, "Reranking", **more)


def test_reranking(lines: list[str], encoder: TextEncoder) -> None:
    lists = [CandidateList(lines[i][:40], (lines[i], lines[i + 30]), tuple(lines[60 + i : 68 + i])) for i in range(20)]
    theirs = small.scores(ranked_lists(lists), adapter(encoder))
    ours = RerankingTask("small", lists).evaluate(encoder)
    assert 0 < ours.value < 1
    assert (ours.value, ours.metrics["mrr"]) == pytest.approx((theirs["map_at_1000"], theirs["mrr_at_1000"]), abs=1e-4)


def test_queries_without_results() -> None:
    """mteb averages over the queries that a run has, so a model that answers one query of two has nDCG 1.0. Ours counts
    the other as 0 and says that there is one."""
    from mteb._evaluators.retrieval_metrics import calculate_retrieval_scores

    qrels, run = {"q1": {"a": 1}, "q2": {"b": 1}}, {"q1": {"a": 1.0}}
    theirs = calculate_retrieval_scores(run, qrels, [10])
    assert (theirs.ndcg["NDCG@10"], theirs.mrr["MRR@10"]) == (1.0, 1.0)
    ours = evaluate_run(run, qrels, ["ndcg@10", "mrr@10"])
    assert (ours.mean["ndcg@10"], ours.mean["mrr@10"], ours.missing) == (0.5, 0.5, 1)


def test_queries_with_nothing_relevant(table) -> None:  # type: ignore[no-untyped-def]
    """mteb leaves out queries without a judgement but keeps those whose judgements are all 0, which no ranking can answer:
    a perfect run has nDCG 0.5. Ours averages over the queries with something to find."""
    data = RetrievalData("small", "test", {"a": "x", "b": "y"}, {"q1": "x", "q2": "y"}, {"q1": {"a": 1}, "q2": {"b": 0}})
    assert small.scores(small.retrieval(data), adapter(table()))["ndcg_at_10"] == 0.5
    assert RetrievalTask(data).evaluate(table()).metrics["ndcg@10"] == 1.0


def test_equal_scores_are_decided_by_names(table) -> None:  # type: ignore[no-untyped-def]
    """mteb ranks equal scores by falling id, as trec_eval does, and says nothing of it: the figure changes from 0 to 1
    when documents are renamed. Ours ranks them alike, reports the share of queries that ids decide, and gives the lowest
    and the highest value over all orders."""
    found = []
    for right, wrong in (("z", "a"), ("a", "z")):
        data = RetrievalData("small", "test", {right: "same", wrong: "same"}, {"q1": "one", "q2": "two"}, {"q1": {right: 1}, "q2": {right: 1}})
        found.append(small.scores(small.retrieval(data), adapter(table()))["ndcg_at_1"])
        ours = RetrievalTask(data, metrics=["ndcg@1"]).evaluate(table())
        assert ours.metrics["ndcg@1"] == found[-1] and ours.tied[1] == 1.0
        assert (ours.lowest["ndcg@1"], ours.highest["ndcg@1"]) == (0.0, 1.0)
    assert found == [1.0, 0.0]


def test_queries_that_are_documents(table) -> None:  # type: ignore[no-untyped-def]
    """mteb leaves the query's own document in, unless a task says otherwise; then it takes it out of the results after
    cutting them, so that a run k deep has k - 1 documents and recall@k misses what is at rank k. Ours fetches one more."""
    vectors = {f"t{i}": [1.0, 0.1 * i] for i in range(8)}
    corpus = {f"d{i}": f"t{i}" for i in range(8)}
    data = RetrievalData("small", "test", corpus, {"d0": "t0", "d7": "t7"}, {"d0": {"d2": 1}, "d7": {"d5": 1}})
    plain = small.scores(small.retrieval(data, k_values=(1, 2), main="recall_at_2"), adapter(table(vectors)))
    asked = small.scores(small.retrieval(data, k_values=(1, 2), main="recall_at_2", ignore_identical_ids=True), adapter(table(vectors)))
    ours = RetrievalTask(data, k=2, metrics=["recall@2", "mrr@2"]).evaluate(table(vectors))
    assert (plain["recall_at_2"], asked["recall_at_2"], ours.metrics["recall@2"]) == (0.0, 0.0, 1.0)
    deeper = small.scores(small.retrieval(data, k_values=(1, 2, 3), main="recall_at_2", ignore_identical_ids=True), adapter(table(vectors)))
    assert (deeper["recall_at_2"], deeper["mrr_at_2"]) == (ours.metrics["recall@2"], ours.metrics["mrr@2"])


def test_embeddings_that_are_not_numbers(table) -> None:  # type: ignore[no-untyped-def]
    """mteb's top-k takes NaN for the highest score, so a model whose embedding of the right document is NaN is given a
    figure, here a perfect one. Our tasks, and our encoder inside mteb, refuse it."""

    class Unchecked(MtebEncoder):
        @staticmethod
        def _finite(embedded_ND: Any, name: str) -> Any:
            return embedded_ND

    vectors = {"x": [1.0, 0.0], "y": [float("nan"), 0.0], "z": [0.0, 1.0]}
    data = RetrievalData("small", "test", {"a": "x", "b": "y"}, {"q1": "x", "q2": "z"}, {"q1": {"b": 1}, "q2": {"b": 1}})
    theirs = small.scores(small.retrieval(data), Unchecked(table(vectors), "tests/small", "1"))
    assert theirs["ndcg_at_1"] == 1.0
    with pytest.raises(UserError, match="NaN"):
        RetrievalTask(data).evaluate(table(vectors))
    with pytest.raises(UserError, match="Small: the embedding of text 1 is not finite"):
        small.scores(small.retrieval(data), adapter(table(vectors)))


def test_a_model_that_embeds_all_alike(table) -> None:  # type: ignore[no-untyped-def]
    """mteb's STS correlation of a constant is NaN, which spreads to every average. Ours is 0: nothing was told apart. Its
    best accuracy of pairs is 0, though calling every pair different is right for two of three; ours says so."""
    vectors = {key: [1.0, 0.0] for key in "abcdef"}
    first, second = list("abc"), list("def")
    assert np.isnan(small.scores(small.sts(first, second, [1.0, 2.0, 3.0]), adapter(table(vectors)))["cosine_spearman"])
    assert STSTask(STSData("small", first, second, np.array([1.0, 2.0, 3.0]))).evaluate(table(vectors)).value == 0.0
    theirs = small.scores(small.pair_classification(first, second, [0, 0, 1]), adapter(table(vectors)))
    ours = PairClassificationTask("small", first, second, np.array([0, 0, 1])).evaluate(table(vectors))
    assert theirs["cosine_accuracy"] == 0.0 and ours.metrics["accuracy"] == pytest.approx(2 / 3)
    assert theirs["cosine_ap"] == pytest.approx(ours.value) == pytest.approx(1 / 3)


def test_the_best_of_five_similarities(table) -> None:  # type: ignore[no-untyped-def]
    """mteb's main score of pairs is the best of five ways to compare two embeddings, chosen on the judged pairs. Ours is
    the cosine's, the one that the model was trained for; for unit vectors the others order pairs alike, but for the sum
    of absolute differences."""
    vectors = {"a": [1.0, 0.0], "b": [0.8, 0.6], "c": [1.0, 0.0, 0.0, 0.0], "e": [0.0, 1.0]}
    vectors = {key: [*value, *[0.0] * (4 - len(value))] for key, value in vectors.items()} | {"d": [0.85, 0.3, 0.3, 0.3]}
    first, second, labels = ["a", "c", "a"], ["b", "d", "e"], [1, 0, 0]
    theirs = small.scores(small.pair_classification(first, second, labels), adapter(table(vectors)))
    ours = PairClassificationTask("small", first, second, np.array(labels)).evaluate(table(vectors))
    assert theirs["max_ap"] == theirs["manhattan_ap"] == 1.0
    assert ours.value == pytest.approx(theirs["cosine_ap"]) == pytest.approx(0.5)


def test_one_clustering_and_several(lines: list[str], encoder: TextEncoder) -> None:
    """mteb's v-measure of a set is that of one start of k-means, with seed 42. Ours is the mean of five, of which the
    first is mteb's, and their range stands in the row."""
    labels = [str(len(line) % 4) for line in lines[:80]]
    theirs = small.scores(small.clustering(lines[:80], labels), adapter(encoder))["v_measure"]
    ours = ClusteringTask(labelled(lines[:80], labels)).evaluate(encoder)
    assert ours.facts["lowest"] < ours.value < ours.facts["highest"]
    assert ours.facts["lowest"] - 1e-6 <= theirs <= ours.facts["highest"] + 1e-6 and abs(theirs - ours.value) > 1e-4


def test_a_label_that_no_sample_has(lines: list[str], encoder: TextEncoder) -> None:
    """mteb evaluates texts whose label the training part lacks, which are always wrong, without a word. Ours refuses."""
    train, test = (lines[:40], [i % 2 for i in range(40)]), (lines[40:60], [2] * 10 + [0] * 6 + [1] * 4)
    assert small.scores(small.classification(train, test), adapter(encoder))["accuracy"] <= 0.5
    with pytest.raises(UserError, match="2"):
        ClassificationTask(labelled(*train), labelled(*test))
