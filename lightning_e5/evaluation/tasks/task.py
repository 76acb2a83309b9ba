"""What the tasks of an evaluation have in common: texts, a model, one main value with its interval, flat metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lightning_e5.errors import UserError
from lightning_e5.evaluation.statistics.answers import Answers
from lightning_e5.files.parquet import write_parquet
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.progress import progress
from lightning_e5.text import texts_digest
from lightning_e5.types import Embedder, Kind, Metrics

#: Bootstrap samples of a task's interval.
SAMPLES = 1000
#: Texts whose embedding shows a bar of its own.
_MANY = 2000


@dataclass(frozen=True)
class TaskResult:
    """What a model reached on one set.

    ``metric``: the main one; ``value``, ``low`` and ``high``: its value and 95% interval; ``items``: what the interval is
    over (pairs, texts, queries); ``others``: further metrics; ``facts``: settings and counts for the table; ``columns``:
    equal-length columns, one value per item, for a Parquet file of the name ``file``; ``measure``: the metrics over some
    of the items, by their numbers (the main one alone where it is a number, NaN where these do not define it); ``groups``:
    retrieval's main metric per query, in groups whose means count the same; ``answers``: what two models are compared by, None where
    their answers to one item cannot be compared (clusters); ``per_item``: metrics of single items, in their order.
    """

    task: str
    metric: str
    value: float
    low: float
    high: float
    items: int
    others: Metrics = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    file: str = "items.parquet"
    measure: Callable[[NDArray[np.int64]], float | Metrics] | None = field(default=None, compare=False, repr=False)
    groups: Sequence[NDArray[np.float64]] = field(default=(), compare=False, repr=False)
    answers: Answers | None = field(default=None, compare=False, repr=False)
    per_item: Mapping[str, NDArray[Any]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def metrics(self) -> Metrics:
        """Flat: the main metric, its ``_low`` and ``_high``, and the others."""
        interval = {self.metric: self.value, f"{self.metric}_low": self.low, f"{self.metric}_high": self.high}
        return interval | self.others

    def by_item(self) -> dict[str, dict[str, float]]:
        """Metric -> item -> value, of the metrics that single items have; an item is its number, from 0, in the order of the file."""
        return {metric: {str(number): float(value) for number, value in enumerate(values)} for metric, values in self.per_item.items()}

    def save(self, folder: Path) -> None:
        """Write the values per item."""
        write_parquet(folder / self.file, self.columns)

    def over(self, items: NDArray[np.int64]) -> Metrics:
        """The metrics over some of the items, by their numbers; without those that these do not define."""
        if self.measure is None or not len(items):
            return {}
        found = self.measure(items)
        return dict(found) if isinstance(found, Mapping) else {} if np.isnan(found) else {self.metric: float(found)}


class EvalTask(Protocol):
    """One set with its way of evaluating a model."""

    @property
    def name(self) -> str:
        """The set's name."""
        ...

    def texts(self) -> Sequence[str] | Mapping[Kind, Sequence[str]]:
        """Every text that is embedded; by kind where not all get the prefix of queries, as E5 gives it in all tasks but retrieval."""
        ...

    def items(self) -> Sequence[tuple[str, ...]]:
        """Of each item the texts by any of which one would know it from training: the query of a search or of a candidate
        list, both sentences of a pair, the text that is classified."""
        ...

    def evaluate(self, embedder: Any, *, seed: int) -> TaskResult:
        """Evaluate a model; ``seed`` is that of the interval's bootstrap."""
        ...


def items_identity(task: EvalTask) -> str:
    """The name by content of what a task evaluates on: the texts of its items, whatever file they came from.

    A model's record names so what chose its weights (`lightning_e5.models.training_record`).
    """
    return f"items {texts_digest(sorted(chr(0).join(item) for item in task.items()))}"


def bootstrap(
    measure: Callable[[NDArray[np.int64]], float], items: int, *, samples: int = SAMPLES, seed: int = 0
) -> tuple[float, float]:
    """The 95% percentile interval of a measure of resampled items.

    Args:
        measure: of row numbers ``[items]``, drawn with replacement; NaN where a draw leaves it undefined (then left out).
        items: how many there are.
        samples: draws.
        seed: of the draws.
    """
    draw = np.random.default_rng(seed)
    values = np.array([measure(draw.integers(items, size=items)) for _ in range(samples)])
    return quantiles(values)


def quantiles(values: NDArray[np.float64]) -> tuple[float, float]:
    """The 2.5% and 97.5% quantiles of bootstrap values."""
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def finite_embeddings(embedder: Embedder, texts: Sequence[str], name: str, *, normalize: bool = True) -> NDArray[np.float32]:
    """float32 ``[N, D]`` with the prefix of queries; UserError names the set and the first text that is not finite."""
    if isinstance(embedder, TextEncoder) and len(texts) >= _MANY:
        with progress(len(texts), f"embed {name}", "text") as bar:
            embedded: NDArray[np.float32] = embedder.embed(texts, "query", normalize=normalize, progress=bar).numpy()
    else:
        embedded = embedder.embed(texts, "query", normalize=normalize).numpy()
    good = np.isfinite(embedded).all(1)
    if not good.all():
        raise UserError(f"{name}: the embedding of text {int(np.argmin(good))} is not finite")
    return embedded
