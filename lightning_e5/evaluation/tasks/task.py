"""What the tasks beside retrieval have in common: texts, an embedder, one main value with its interval, flat metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lightning_e5.errors import UserError
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.progress import progress
from lightning_e5.types import Embedder, Metrics

#: Bootstrap samples of a task's interval.
SAMPLES = 1000
#: Texts whose embedding shows a bar of its own.
_MANY = 2000


@dataclass(frozen=True)
class TaskResult:
    """What an embedder reached on one set.

    ``metric``: the main one; ``value``, ``low`` and ``high``: its value and 95% interval; ``items``: what the interval is
    over (pairs, texts, queries); ``others``: further metrics; ``facts``: settings and counts for the table; ``columns``:
    equal-length columns, one value per item, for a Parquet file of the name ``file``; ``measure``: the main metric over some
    of the items, by their numbers (NaN where these do not define it).
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
    measure: Callable[[NDArray[np.int64]], float] | None = field(default=None, compare=False, repr=False)

    @property
    def metrics(self) -> Metrics:
        """Flat: the main metric, its ``_low`` and ``_high``, and the others."""
        interval = {self.metric: self.value, f"{self.metric}_low": self.low, f"{self.metric}_high": self.high}
        return interval | self.others

    def row(self) -> dict[str, Any]:
        """The row of the tasks' table, without model and set."""
        main = {"task": self.task, "metric": self.metric, "value": self.value, "low": self.low, "high": self.high}
        return {**main, "items": self.items, "others": dict(self.others), **self.facts}


class Task(Protocol):
    """One set with its way of judging an embedder; E5 gives all texts of such tasks the prefix of queries."""

    @property
    def name(self) -> str:
        """The set's name."""
        ...

    def texts(self) -> Sequence[str]:
        """Every text that is embedded."""
        ...

    def items(self) -> Sequence[tuple[str, ...]]:
        """Of each item the texts by any of which one would know it from training: the query of a candidate list, both
        sentences of a pair, the text that is classified."""
        ...

    def evaluate(self, embedder: Embedder, *, seed: int) -> TaskResult:
        """Judge; ``seed`` is that of the interval's bootstrap."""
        ...


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
