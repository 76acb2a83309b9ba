"""The few-shot probe: the very samples and figures of MTEB's own task, and its options."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lightning_e5.errors import UserError
from lightning_e5.evaluation.tasks.classification import ClassificationTask, few_shot_rows
from lightning_e5.evaluation.tasks.labelled import LabelledTexts

COUNTS = {2: 60, 0: 40, 1: 5}  # one label has fewer texts than samples are wanted


def labelled(part: str, times: int = 1) -> LabelledTexts:
    labels = [label for label, count in COUNTS.items() for _ in range(count * times)]
    labels = [labels[i] for i in np.random.default_rng(3).permutation(len(labels))]
    texts = [f"{part} {i} of {label}" for i, label in enumerate(labels)]
    return LabelledTexts("toy", texts, labels, list(range(1, len(texts) + 1)), Path(f"{part}.jsonl"))


@pytest.fixture
def task() -> ClassificationTask:
    return ClassificationTask(labelled("train"), labelled("test"))


@pytest.fixture
def embedder(table, task):  # type: ignore[no-untyped-def]
    """Overlapping clouds, one per label, of length far from 1."""
    centres = np.random.default_rng(1).normal(size=(3, 8))
    vectors = {}
    for data in (task.train, task.test):
        for text, label in zip(data.texts, data.labels, strict=True):
            vectors[text] = 3 * centres[int(label)] + 4 * table().vector(text)
    return table(vectors)


def test_the_figures_are_those_of_mteb(task, embedder) -> None:  # type: ignore[no-untyped-def]
    """Oracle: the installed mteb's own sampling, probe and scores on the same embeddings."""
    from datasets import Dataset
    from mteb.abstasks.classification import AbsTaskClassification

    class Theirs(AbsTaskClassification):
        def __init__(self) -> None:
            self.seed = 42

    theirs = Theirs()
    train = Dataset.from_dict({"text": task.train.texts, "label": task.train.labels})
    test = Dataset.from_dict({"text": task.test.texts, "label": task.test.labels})
    order, rows, scores = None, [], []
    for experiment in range(theirs.n_experiments):
        _, order, chosen = theirs._undersample_data(train, experiment, order)
        rows.append(list(chosen))
        embedded = [np.stack([embedder.vector(t) for t in texts]) for texts in (train[chosen]["text"], test["text"])]
        scores.append(theirs._run_experiment(train.select(chosen), test, *embedded, timer=None)[0])
    assert task.samples_per_label == theirs.samples_per_label and task.chosen() == rows
    result = task.evaluate(embedder)
    assert result.value == pytest.approx(np.mean([s["accuracy"] for s in scores]), abs=1e-12)
    assert result.others["f1"] == pytest.approx(np.mean([s["f1"] for s in scores]), abs=1e-12)
    assert 0.4 < result.value < 0.99  # the clouds overlap: not a figure that anything would reach


def test_features_are_queries_and_not_normalised_unless_asked(task, embedder) -> None:  # type: ignore[no-untyped-def]
    plain = task.evaluate(embedder)
    assert set(embedder.calls) == {("query", False)} and plain.facts["normalized"] is False
    unit = ClassificationTask(task.train, task.test, normalize=True).evaluate(embedder)
    assert set(embedder.calls[2:]) == {("query", True)} and unit.facts["normalized"] is True
    assert unit.value != plain.value


def test_interval_items_and_texts(task, embedder) -> None:  # type: ignore[no-untyped-def]
    result = task.evaluate(embedder, seed=5)
    assert result.low < result.value < result.high and result.items == len(task.test.texts)
    assert result.metrics == task.evaluate(embedder, seed=5).metrics
    assert result.metrics["accuracy_low"] == result.low
    assert float(np.mean(result.columns["correct"])) == pytest.approx(result.value)
    used = {task.train.texts[row] for rows in task.chosen() for row in rows}
    assert set(task.texts()) == used | set(task.test.texts)


def test_a_collapsed_encoder_scores_as_a_constant_answer(table, task) -> None:  # type: ignore[no-untyped-def]
    """The probe learns nothing but which label its samples have most of."""
    alike = table({text: [1.0, 2.0] for text in task.texts()})
    value = task.evaluate(alike).value
    shares = {count / sum(COUNTS.values()) for count in COUNTS.values()}
    assert min(shares) <= value <= max(shares)


def test_samples_per_label() -> None:
    labels = ["a"] * 20 + ["b"] * 3
    rows = few_shot_rows(labels, 16, 2)
    assert [sorted(labels[i] for i in one) for one in rows] == [["a"] * 16 + ["b"] * 3] * 2
    assert rows[0] != rows[1] and len(set(rows[0])) == 19
    with pytest.raises(UserError, match="samples_per_label"):
        ClassificationTask(labelled("train"), labelled("test"), samples_per_label=0)


def test_an_embedding_that_is_not_finite_is_refused(task, embedder) -> None:  # type: ignore[no-untyped-def]
    embedder.vectors[task.test.texts[4]] = [float("nan")] * 8
    with pytest.raises(UserError, match="toy: the embedding of text 4 is not finite"):
        task.evaluate(embedder)
