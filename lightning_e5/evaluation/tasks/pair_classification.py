"""Pair classification: how well the cosine of two texts tells pairs that belong together (1) from others (0)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from lightning_e5.errors import UserError
from lightning_e5.evaluation.statistics.answers import Answers, average_precision_of, ranking_test
from lightning_e5.evaluation.tasks.sts import pair_rows
from lightning_e5.evaluation.tasks.task import TaskResult, bootstrap, finite_embeddings
from lightning_e5.files.rows import SplitRows, number_of
from lightning_e5.types import Embedder

COLUMNS = ("label", "sentence1", "sentence2")
_LABELS = {"false": 0.0, "true": 1.0}


@dataclass(frozen=True)
class PairClassificationTask:
    """Pairs of texts with labels 0 and 1; ``facts``: what a result's row says of the file.

    Source: paper section 4.2 (MTEB's pair classification: average precision of cosines).
    """

    name: str
    first: list[str]
    second: list[str]
    labels: NDArray[np.int64]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path | str, name: str | None = None, split: str = "test") -> PairClassificationTask:
        """Read ``label`` (0 or 1, false or true), ``sentence1`` and ``sentence2`` from a TSV, CSV, JSONL or Parquet file.

        Args:
            path, name, split: as `load_sts`.

        Raises:
            UserError: with file and line for anything missing or malformed, or for a label other than 0 and 1; with the
                file where one of the two labels is missing.
        """
        path = Path(path)
        rows = SplitRows(path, split, columns=COLUMNS)
        first, second, labels = [], [], []
        for where, label, one, other in pair_rows(rows, COLUMNS):
            number = _LABELS.get(str(label).strip().lower(), number_of(label))
            if number not in (0, 1):
                raise UserError(f"{where}: the label {str(label)[:40]!r} is not 0 or 1 (nor false or true)")
            first.append(one)
            second.append(other)
            labels.append(int(number))
        if len(set(labels)) < 2:
            raise UserError(f"{path}: needs pairs of both labels, 0 and 1")
        return cls(name or path.name.split(".")[0], first, second, np.array(labels), rows.facts())

    def texts(self) -> list[str]:
        """The first texts, then the second ones."""
        return [*self.first, *self.second]

    def items(self) -> list[tuple[str, str]]:
        """The pairs."""
        return list(zip(self.first, self.second, strict=True))

    def evaluate(self, embedder: Embedder, *, seed: int = 0) -> TaskResult:
        """Average precision of the cosines and the accuracy at the best threshold; the interval resamples pairs."""
        first_ND, second_ND = np.split(finite_embeddings(embedder, self.texts(), self.name), 2)
        cosines_N = (first_ND * second_ND).sum(1)

        def precision(rows: NDArray[np.int64]) -> float:
            labels = self.labels[rows]
            return float(average_precision_score(labels, cosines_N[rows])) if labels.any() else float("nan")

        value = precision(np.arange(len(cosines_N)))
        low, high = bootstrap(precision, len(cosines_N), seed=seed)
        accuracy, threshold = best_threshold(cosines_N, self.labels)
        others = {"accuracy": accuracy, "threshold": threshold}
        columns = {"label": self.labels, "cosine": cosines_N}
        return TaskResult(
            "pair classification", "ap", value, low, high, len(cosines_N), others, self.facts, columns, measure=precision,
            answers=Answers(cosines_N, partial(ranking_test, measure=average_precision_of(self.labels))), per_item={"cosine": cosines_N},
        )  # fmt: skip


def best_threshold(cosines_N: NDArray[np.float32], labels_N: NDArray[np.int64]) -> tuple[float, float]:
    """The highest accuracy of "1 where the cosine is at least the threshold", and the highest threshold that has it.

    The threshold is chosen on the pairs that it is evaluated on, as in MTEB; equal cosines are never told apart.
    """
    thresholds, group_N = np.unique(cosines_N, return_inverse=True)
    ones = np.bincount(group_N, labels_N)
    zeros = np.bincount(group_N, 1 - labels_N)
    # at threshold i: the ones from i on and the zeros below i are right; past the last, only zeros
    right = np.append(ones[::-1].cumsum()[::-1], 0) + np.append(0, zeros.cumsum())
    best = len(right) - 1 - int(right[::-1].argmax())
    threshold = thresholds[best] if best < len(thresholds) else np.nextafter(thresholds[-1], np.float32(2))
    return float(right[best] / len(labels_N)), float(threshold)
