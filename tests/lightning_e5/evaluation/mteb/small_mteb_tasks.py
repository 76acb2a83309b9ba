"""mteb's own task classes on data that a test makes in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset, DatasetDict
from mteb.abstasks import (
    AbsTaskClassification,
    AbsTaskClusteringLegacy,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from mteb.abstasks.task_metadata import TaskMetadata

from lightning_e5.evaluation.beir.data import RetrievalData


def small_task(base: Any, kind: str, main_score: str, dataset: Any, name: str = "Small", **attributes: Any) -> Any:
    """A task of a subclass of ``base`` whose ``load_data`` needs no network."""
    about = TaskMetadata(
        name=name, dataset={"path": "tests/small", "revision": "1"}, description="Made by a test.", reference=None, type=kind,
        category="t2t", modalities=["text"], eval_splits=["test"], eval_langs=["eng-Latn"], main_score=main_score,
        date=("2020-01-01", "2020-12-31"), domains=["Written"], task_subtypes=[], license="cc0-1.0",
        annotations_creators="derived", dialect=[], sample_creation="found", bibtex_citation="", prompt=None,
    )  # fmt: skip

    def load_data(self: Any, num_proc: int | None = None, **kwargs: Any) -> None:
        self.dataset, self.data_loaded = dataset, True

    return type("Small", (base,), {"metadata": about, "load_data": load_data, **attributes})()


def retrieval(
    data: RetrievalData, top_ranked: Mapping[str, list[str]] | None = None, kind: str = "Retrieval", main: str = "ndcg_at_10", **more: Any
) -> Any:
    """A retrieval or re-ranking task of our own data."""
    part = {
        "corpus": Dataset.from_dict({"id": list(data.corpus), "title": [""] * len(data.corpus), "text": list(data.corpus.values())}),
        "queries": Dataset.from_dict({"id": list(data.queries), "text": list(data.queries.values())}),
        "relevant_docs": {q: dict(grades) for q, grades in data.qrels.items()}, "top_ranked": top_ranked,
    }  # fmt: skip
    return small_task(AbsTaskRetrieval, kind, main, {"default": {"test": part}}, **more)


def sts(first: list[str], second: list[str], scores: list[float], **more: Any) -> Any:
    """An STS task."""
    rows = Dataset.from_dict({"sentence1": first, "sentence2": second, "score": scores})
    return small_task(AbsTaskSTS, "STS", "cosine_spearman", DatasetDict(test=rows), **more)


def pair_classification(first: list[str], second: list[str], labels: list[int], **more: Any) -> Any:
    """A pair classification task."""
    rows = Dataset.from_dict({"sentence1": first, "sentence2": second, "labels": labels})
    return small_task(AbsTaskPairClassification, "PairClassification", "max_ap", DatasetDict(test=rows), **more)


def classification(train: tuple[list[str], list[int]], test: tuple[list[str], list[int]], **more: Any) -> Any:
    """A classification task."""
    parts = {name: Dataset.from_dict({"text": texts, "label": labels}) for name, (texts, labels) in (("train", train), ("test", test))}
    return small_task(AbsTaskClassification, "Classification", "accuracy", DatasetDict(parts), **more)


def clustering(texts: list[str], labels: list[str], **more: Any) -> Any:
    """A clustering task of one set of texts."""
    rows = Dataset.from_dict({"sentences": [texts], "labels": [labels]})
    return small_task(AbsTaskClusteringLegacy, "Clustering", "v_measure", DatasetDict(test=rows), **more)


def scores(task: Any, encoder: Any) -> dict[str, Any]:
    """What mteb's own evaluation says of an encoder."""
    import mteb

    found = mteb.evaluate(encoder, task, cache=None, co2_tracker=False, show_progress_bar=False)
    return dict(found.task_results[0].scores["test"][0])
