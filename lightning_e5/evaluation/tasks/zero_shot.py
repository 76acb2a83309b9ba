"""Zero-shot classification: the label whose prompt is nearest to the text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import f1_score

from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError
from lightning_e5.evaluation.statistics.answers import Answers
from lightning_e5.evaluation.statistics.paired_test import bootstrap_interval, paired_test
from lightning_e5.evaluation.tasks.labelled import LabelledTexts, check_labels_known
from lightning_e5.evaluation.tasks.task import SAMPLES, TaskResult, finite_embeddings
from lightning_e5.types import Embedder


@configurable("settings", constructs=True)
@dataclass(frozen=True)
class ZeroShotPrompts:
    """How a text and the labels are worded.

    Args:
        labels: label -> its prompt.
        text: what is embedded of a text; ``{text}`` stands for it.
    """

    labels: Mapping[str, str]
    text: str = "{text}"

    def __post_init__(self) -> None:
        if len(self.labels) < 2 or not all(isinstance(p, str) and p.strip() for p in self.labels.values()):
            raise UserError(f"zero_shot.labels: needs at least 2 labels with a prompt each, not {dict(self.labels)!r}")
        if "{text}" not in self.text:
            raise UserError(f"zero_shot.text: {self.text!r} has no {{text}} in it")


#: The paper's wording for SST-2 (section 4.3), where label 1 is positive.
SST2_PROMPTS = ZeroShotPrompts(
    {"0": "it is an example of terrible movie review", "1": "it is an example of great movie review"}, "movie review: {text}"
)


@dataclass(frozen=True)
class ZeroShotTask:
    """Texts classified by the nearest label prompt.

    Args:
        data: the texts; no label without a prompt.
        prompts: the wording. Texts and prompts get the prefix of queries.

    Source: paper section 4.3 (zero-shot SST-2).
    """

    data: LabelledTexts
    prompts: ZeroShotPrompts = SST2_PROMPTS

    def __post_init__(self) -> None:
        named = [str(label) for label in self.data.labels]
        texts = LabelledTexts(self.data.name, self.data.texts, named, self.data.places, self.data.path)
        check_labels_known(texts, {str(label) for label in self.prompts.labels}, "zero_shot.labels")

    @property
    def name(self) -> str:
        """The set's name."""
        return self.data.name

    def texts(self) -> list[str]:
        """The worded texts, then the labels' prompts."""
        return [*(self.prompts.text.replace("{text}", t) for t in self.data.texts), *self.prompts.labels.values()]

    def items(self) -> list[tuple[str]]:
        """The texts, without wording."""
        return [(text,) for text in self.data.texts]

    def evaluate(self, embedder: Embedder, *, seed: int = 0) -> TaskResult:
        """Accuracy and macro F1; a text with several nearest labels is wrong, whichever of them is its own."""
        embedded = finite_embeddings(embedder, self.texts(), self.name)
        count = len(self.data.texts)
        names = np.array([str(label) for label in self.prompts.labels])
        similarity_NL = embedded[:count] @ embedded[count:].T
        tied_N = (similarity_NL == similarity_NL.max(1, keepdims=True)).sum(1) > 1
        predicted_N = np.where(tied_N, "", names[similarity_NL.argmax(1)])
        truth_N = np.array([str(label) for label in self.data.labels])
        correct_N = (predicted_N == truth_N).astype(float)
        low, high = bootstrap_interval(correct_N, SAMPLES, seed=seed)
        occurring = sorted({*truth_N, *predicted_N} - {""})
        others = {"zero_shot_f1": float(f1_score(truth_N, predicted_N, labels=occurring, average="macro", zero_division=0))}
        columns = {"label": truth_N, "predicted": predicted_N}
        return TaskResult(
            "zero-shot", "zero_shot_accuracy", float(correct_N.mean()), low, high, count, others,
            {"labels": len(names), "tied": float(tied_N.mean()), **self.data.facts}, columns, "zero_shot.parquet", lambda rows: float(correct_N[rows].mean()),
            answers=Answers(correct_N, paired_test), per_item={"zero_shot_accuracy": correct_N},
        )  # fmt: skip
