"""Clustering: MTEB's k-means, and V-measure against scikit-learn's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import v_measure_score

from lightning_e5.evaluation.tasks.clustering import ClusteringTask, v_measure
from lightning_e5.evaluation.tasks.labelled import LabelledTexts


def labelled(count: int = 90) -> LabelledTexts:
    labels = [f"group {i % 3}" for i in range(count)]
    return LabelledTexts("toy", [f"text {i}" for i in range(count)], labels, list(range(1, count + 1)), Path("x.jsonl"))


def test_v_measure_of_counts_is_scikit_learns() -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        labels, clusters = draw.integers(4, size=50), draw.integers(4, size=50)
        counts = np.bincount(labels * 4 + clusters, minlength=16).reshape(4, 4)
        assert v_measure(counts) == pytest.approx(v_measure_score(labels, clusters), abs=1e-12)
    assert v_measure(np.array([[5.0]])) == 1.0 and v_measure(np.eye(3)) == pytest.approx(1.0)


def test_separate_clouds_are_found_and_noise_is_not(table) -> None:  # type: ignore[no-untyped-def]
    data = labelled()
    clouds = {t: np.eye(3)[i % 3] + 0.05 * table(width=3).vector(t) for i, t in enumerate(data.texts)}
    found = ClusteringTask(data).evaluate(table(clouds))
    assert found.value > 0.85 and found.metric == "v_measure" and found.facts["labels"] == 3
    noise = ClusteringTask(data).evaluate(table())
    assert noise.value < 0.2 and noise.high < found.low and noise.low < noise.high


def test_the_first_run_is_mtebs_and_the_value_the_mean(table) -> None:  # type: ignore[no-untyped-def]
    """Oracle: mteb's evaluator's own call of scikit-learn (batch of 500, n_init auto, seed 42)."""
    from sklearn.cluster import MiniBatchKMeans

    data = labelled()
    embedder = table()
    embedded = embedder.embed(data.texts, "query").numpy()
    values = []
    for seed in (42, 43):
        means = MiniBatchKMeans(n_clusters=3, batch_size=500, n_init="auto", compute_labels=True, random_state=seed)
        values.append(v_measure_score(data.labels, means.fit(embedded).labels_))
    assert ClusteringTask(data, runs=1).evaluate(embedder).value == pytest.approx(values[0])
    two = ClusteringTask(data, runs=2).evaluate(embedder)
    assert two.value == pytest.approx(np.mean(values)) and two.facts["highest"] == pytest.approx(max(values))
