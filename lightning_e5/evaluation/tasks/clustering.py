"""Clustering as in MTEB: mini-batch k-means with as many clusters as labels, evaluated by V-measure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import v_measure_score

from lightning_e5.errors import UserError
from lightning_e5.evaluation.tasks.labelled import LabelledTexts, load_labelled
from lightning_e5.evaluation.tasks.task import SAMPLES, TaskResult, finite_embeddings, quantiles
from lightning_e5.types import Embedder

#: MTEB's: texts per step of k-means, and its tasks' seed, the first of ours.
BATCH_SIZE, MTEB_SEED = 500, 42


@dataclass(frozen=True)
class ClusteringTask:
    """Texts with the labels that clusters are compared with.

    Args:
        data: the texts.
        runs: clusterings, of the seeds 42 (MTEB's), 43 and so on; the value is their mean.

    Source: paper section 4.2 (MTEB's clustering).
    """

    data: LabelledTexts
    runs: int = 5

    def __post_init__(self) -> None:
        if self.runs < 1:
            raise UserError(f"{self.name}: runs must be >= 1, not {self.runs}")

    @classmethod
    def load(cls, path: Path | str, name: str | None = None, split: str = "test") -> ClusteringTask:
        """Read a file of ``text`` and ``label``; arguments and UserError as `load_labelled`."""
        return cls(load_labelled(path, name, split))

    @property
    def name(self) -> str:
        """The set's name."""
        return self.data.name

    def texts(self) -> list[str]:
        """The texts."""
        return self.data.texts

    def items(self) -> list[tuple[str]]:
        """The texts."""
        return [(text,) for text in self.data.texts]

    def evaluate(self, embedder: Embedder, *, seed: int = 0) -> TaskResult:
        """Mean V-measure of the clusterings; the interval resamples texts (clusters stay) and clusterings."""
        embedded_ND = finite_embeddings(embedder, self.data.texts, self.name)
        names, labels_N = np.unique(self.data.array(), return_inverse=True)
        found_RN = np.stack([self._cluster(embedded_ND, len(names), run) for run in range(self.runs)])
        values = [float(v_measure_score(labels_N, found_N)) for found_N in found_RN]
        low, high = quantiles(_resampled(labels_N, found_RN, len(names), seed))
        facts = {"labels": len(names), "runs": self.runs, "lowest": min(values), "highest": max(values), **self.data.facts}
        columns = {"label": [str(label) for label in self.data.labels], "cluster": found_RN[0]}
        return TaskResult(
            "clustering", "v_measure", float(np.mean(values)), low, high, len(labels_N), {}, facts, columns,
            measure=lambda rows: float(np.mean([v_measure_score(labels_N[rows], found_N[rows]) for found_N in found_RN])),
        )  # fmt: skip

    def _cluster(self, embedded_ND: NDArray[np.float32], clusters: int, run: int) -> NDArray[np.int32]:
        means = MiniBatchKMeans(
            n_clusters=clusters, batch_size=BATCH_SIZE, n_init="auto", compute_labels=True, random_state=MTEB_SEED + run
        )
        found: NDArray[np.int32] = means.fit(embedded_ND).labels_
        return found


def _resampled(labels_N: NDArray[Any], found_RN: NDArray[np.int32], clusters: int, seed: int) -> NDArray[np.float64]:
    """Mean V-measures of bootstrap samples of texts and clusterings."""
    runs, items = found_RN.shape
    draw = np.random.default_rng(seed)
    cells_RN = labels_N * clusters + found_RN
    values = np.empty(SAMPLES)
    for sample in range(SAMPLES):
        weights_N = np.bincount(draw.integers(items, size=items), minlength=items)
        scores = [
            v_measure(np.bincount(cells_N, weights_N, clusters * clusters).reshape(clusters, clusters))
            for cells_N in cells_RN[draw.integers(runs, size=runs)]
        ]
        values[sample] = np.mean(scores)
    return values


def v_measure(counts: NDArray[Any]) -> float:
    """V-measure of a table of counts, labels by clusters; as scikit-learn's of the items that it counts."""
    share = counts / counts.sum()
    labels, clusters = _entropy(share.sum(1)), _entropy(share.sum(0))
    if not labels + clusters:
        return 1.0
    return 2 * (labels + clusters - _entropy(share.ravel())) / (labels + clusters)


def _entropy(share: NDArray[np.float64]) -> float:
    there = share[share > 0]
    return float(-(there * np.log(there)).sum())
