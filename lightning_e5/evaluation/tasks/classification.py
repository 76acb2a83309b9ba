"""Few-shot classification as in MTEB: a logistic regression on the embeddings of a few samples per label, ten times."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from lightning_e5.errors import UserError
from lightning_e5.evaluation.statistics.answers import Answers, crossed_test
from lightning_e5.evaluation.tasks.labelled import LabelledTexts, check_labels_known, load_split
from lightning_e5.evaluation.tasks.task import SAMPLES, TaskResult, finite_embeddings, quantiles
from lightning_e5.types import Embedder

#: MTEB's: its tasks' seed, its resamplings, its limit of the optimiser's iterations.
MTEB_SEED, RESAMPLINGS, MAX_ITERATIONS = 42, 10, 100
#: MTEB's samples per label of a task that sets none of its own (its emotion task takes 16).
SAMPLES_PER_LABEL = 8


@dataclass(frozen=True)
class ClassificationTask:
    """A linear probe on few labelled texts.

    Args:
        train: the samples are drawn from these.
        test: what the probe is evaluated on; no label that ``train`` lacks.
        samples_per_label: in each resampling; all there are of a label that has fewer.
        normalize: probe unit vectors. E5's own evaluation does not; MTEB's figures of a model whose sentence-transformers
            folder ends with a normalisation (such as all-MiniLM-L6-v2) do.
        resamplings: independent probes.

    Source: paper section 4.2 (MTEB's classification); settings of MTEB and of the authors' evaluation.
    """

    train: LabelledTexts
    test: LabelledTexts
    samples_per_label: int = SAMPLES_PER_LABEL
    normalize: bool = False
    resamplings: int = RESAMPLINGS

    def __post_init__(self) -> None:
        if self.samples_per_label < 1 or self.resamplings < 1:
            raise UserError(f"{self.name}: samples_per_label and resamplings must be >= 1, not {self.samples_per_label} and {self.resamplings}")
        check_labels_known(self.test, set(self.train.labels), str(self.train.path))

    @classmethod
    def load(
        cls, folder: Path | str, split: str = "test", name: str | None = None, *,
        samples_per_label: int = SAMPLES_PER_LABEL, normalize: bool = False,
    ) -> ClassificationTask:  # fmt: skip
        """Read ``train.jsonl`` and ``<split>.jsonl`` of a folder (or their ``.gz``); UserError as `load_labelled`."""
        train, test = load_split(folder, "train", name), load_split(folder, split, name)
        return cls(train, test, samples_per_label, normalize)

    @property
    def name(self) -> str:
        """The set's name."""
        return self.test.name

    def chosen(self) -> list[list[int]]:
        """The training rows of each resampling."""
        return few_shot_rows(self.train.labels, self.samples_per_label, self.resamplings)

    def texts(self) -> list[str]:
        """The test texts and the training texts that any resampling uses."""
        return [*self.test.texts, *(self.train.texts[row] for row in self._union())]

    def items(self) -> list[tuple[str]]:
        """The test texts."""
        return [(text,) for text in self.test.texts]

    def evaluate(self, embedder: Embedder, *, seed: int = 0) -> TaskResult:
        """Mean accuracy and macro F1 over the resamplings; the interval resamples test texts and resamplings."""
        union = self._union()
        place = {row: index for index, row in enumerate(union)}
        train_UD = finite_embeddings(embedder, [self.train.texts[r] for r in union], self.name, normalize=self.normalize)
        test_ND = finite_embeddings(embedder, self.test.texts, self.name, normalize=self.normalize)
        train_labels, truth_N = self.train.array(), self.test.array()
        correct_RN = np.empty((self.resamplings, len(truth_N)), dtype=bool)
        f1 = []
        stopped = 0
        for number, rows in enumerate(self.chosen()):
            probe = LogisticRegression(max_iter=MAX_ITERATIONS, random_state=MTEB_SEED)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                probe.fit(train_UD[[place[row] for row in rows]], train_labels[rows])
            stopped += any(issubclass(w.category, ConvergenceWarning) for w in caught)
            predicted_N = probe.predict(test_ND)
            correct_RN[number] = predicted_N == truth_N
            f1.append(float(f1_score(truth_N, predicted_N, average="macro")))
        low, high = _interval(correct_RN, seed)
        facts = {
            "samples_per_label": self.samples_per_label, "resamplings": self.resamplings, "normalized": self.normalize,
            "labels": len(set(self.train.labels)), "not_converged": stopped, **self.test.facts,
        }  # fmt: skip
        columns = {"label": [str(label) for label in self.test.labels], "correct": correct_RN.mean(0)}
        return TaskResult(
            "classification", "accuracy", float(correct_RN.mean()), low, high, len(truth_N), {"f1": float(np.mean(f1))}, facts, columns,
            measure=lambda rows: float(correct_RN[:, rows].mean()), answers=Answers(correct_RN, crossed_test),
            per_item={"accuracy": correct_RN.mean(0)},
        )  # fmt: skip

    def _union(self) -> list[int]:
        return sorted({row for rows in self.chosen() for row in rows})


def few_shot_rows(labels: Sequence[Hashable], per_label: int, resamplings: int) -> list[list[int]]:
    """The rows of each resampling, in MTEB's own order.

    MTEB shuffles one list of all rows again and again, each time with a generator of the same seed (so the orders differ
    because the list does), and takes the first ``per_label`` rows of each label.
    """
    order = list(range(len(labels)))
    chosen = []
    for _ in range(resamplings):
        np.random.RandomState(MTEB_SEED).shuffle(order)
        taken: Counter[Hashable] = Counter()
        rows = []
        for row in order:
            if taken[labels[row]] < per_label:
                taken[labels[row]] += 1
                rows.append(row)
        chosen.append(rows)
    return chosen


def _interval(correct_RN: NDArray[np.bool_], seed: int) -> tuple[float, float]:
    resamplings, items = correct_RN.shape
    draw = np.random.default_rng(seed)
    weights_SR = draw.multinomial(resamplings, np.full(resamplings, 1 / resamplings), size=SAMPLES)
    means = [
        weights @ (correct_RN @ np.bincount(draw.integers(items, size=items), minlength=items)) / (resamplings * items)
        for weights in weights_SR
    ]
    return quantiles(np.array(means, dtype=np.float64))
