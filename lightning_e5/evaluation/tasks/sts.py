"""Semantic textual similarity: Spearman's correlation of cosines with people's judgements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lightning_e5.errors import UserError
from lightning_e5.evaluation.statistics.answers import Answers, ranking_test, spearman_of
from lightning_e5.evaluation.tasks.task import TaskResult
from lightning_e5.files.rows import SplitRows, number_of
from lightning_e5.types import Embedder, Kind, Metrics

_COLUMNS = ("score", "sentence1", "sentence2")


@dataclass(frozen=True, slots=True)
class STSData:
    """Pairs of sentences and how similar people found them.

    ``scores`` float64 ``[N]``, higher is more similar (STS-B: 0 to 5); ``first`` and ``second``: the sentences; ``facts``:
    what a result's row says of the file (`SplitRows.facts`).
    """

    name: str
    first: list[str]
    second: list[str]
    scores: NDArray[np.float64]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class STSResult:
    """``metrics``: ``spearman``, ``pearson`` and the 95% interval ``spearman_low``, ``spearman_high`` of a bootstrap over
    pairs; ``cosines`` float32 ``[N]``; ``tied``: share of the pairs whose cosine another pair has too."""

    metrics: Metrics
    cosines: NDArray[np.float32]
    tied: float


def load_sts(path: Path | str, name: str | None = None, split: str = "test") -> STSData:
    """Read ``score``, ``sentence1`` and ``sentence2`` from a TSV (a header, no quoting), CSV, JSONL or Parquet file.

    Args:
        path: the file; other columns are left alone, but for ``split``.
        name: of the set; the file's by default.
        split: of a file with a column ``split`` (as stsbenchmark.tsv has), the rows that are read.

    Raises:
        UserError: with file and line, for anything missing or malformed.
    """
    path = Path(path)
    of_split = SplitRows(path, split, columns=_COLUMNS)
    rows = [(_score(score, where), one, other) for where, score, one, other in pair_rows(of_split, _COLUMNS)]
    if len(rows) < 3:
        raise UserError(f"{path}: has {len(rows)} pairs; a correlation needs at least 3")
    scores = np.array([score for score, _, _ in rows])
    if (scores == scores[0]).all():
        raise UserError(f"{path}: all pairs have the score {scores[0]:g}, so there is nothing to correlate with")
    return STSData(name or path.stem, [a for _, a, _ in rows], [b for _, _, b in rows], scores, of_split.facts())


def _score(value: Any, where: str) -> float:
    score = number_of(value)
    if score is None:
        raise UserError(f"{where}: the score {str(value)[:40]!r} is not a finite number")
    return score


@dataclass(frozen=True)
class STSTask:
    """STS as one of the tasks of an evaluation."""

    data: STSData

    @property
    def name(self) -> str:
        """The set's name."""
        return self.data.name

    def texts(self) -> list[str]:
        """The first sentences, then the second ones."""
        return [*self.data.first, *self.data.second]

    def items(self) -> list[tuple[str, str]]:
        """The pairs."""
        return list(zip(self.data.first, self.data.second, strict=True))

    def evaluate(self, embedder: Embedder, *, seed: int = 0) -> TaskResult:
        """`evaluate_sts` with the prefix of queries."""
        result = evaluate_sts(self.data, embedder, seed=seed)
        value, low, high = (result.metrics[name] for name in ("spearman", "spearman_low", "spearman_high"))
        columns = {"score": self.data.scores, "cosine": result.cosines}
        return TaskResult(
            "sts", "spearman", value, low, high, len(self.data.scores), {"pearson": result.metrics["pearson"]},
            {"tied": result.tied, **self.data.facts}, columns, "pairs.parquet",
            lambda rows: correlation(result.cosines[rows], self.data.scores[rows]) if len(rows) > 2 else float("nan"),
            answers=Answers(result.cosines, partial(ranking_test, measure=spearman_of(self.data.scores))), per_item={"cosine": result.cosines},
        )  # fmt: skip


def evaluate_sts(data: STSData, embedder: Embedder, *, kind: Kind = "query", samples: int = 1000, seed: int = 0) -> STSResult:
    """Correlate the cosine of each pair with its score.

    Args:
        data: the pairs.
        embedder: embeds both sides.
        kind: whose prefix both sides get; E5 gives symmetric tasks "query: ".
        samples, seed: of the bootstrap over pairs.

    Raises:
        UserError: a cosine is not finite.

    Source: paper section 4.2 and its MTEB evaluation (STS: Spearman, prefix of queries on both sides).
    """
    embedded = embedder.embed([*data.first, *data.second], kind)
    first_ND, second_ND = embedded.tensor_split(2)
    cosines_N = (first_ND * second_ND).sum(1).numpy()
    if not np.isfinite(cosines_N).all():
        row = int(np.argmin(np.isfinite(cosines_N)))
        raise UserError(f"{data.name}: the cosine of pair {row} is {cosines_N[row]}; embeddings must be finite")
    spearman = correlation(cosines_N, data.scores)
    draw = np.random.default_rng(seed)
    drawn = draw.integers(len(cosines_N), size=(samples, len(cosines_N)))
    bootstrap = [correlation(cosines_N[rows], data.scores[rows]) for rows in drawn]
    low, high = np.quantile(bootstrap, [0.025, 0.975])
    metrics = {
        "spearman": spearman, "pearson": float(np.corrcoef(cosines_N, data.scores)[0, 1]) if np.ptp(cosines_N) else 0.0,
        "spearman_low": float(low), "spearman_high": float(high),
    }  # fmt: skip
    _, counts = np.unique(cosines_N, return_counts=True)
    return STSResult(metrics, cosines_N, float(counts[counts > 1].sum() / len(cosines_N)))


def correlation(cosines_N: NDArray[Any], scores_N: NDArray[np.float64]) -> float:
    """Spearman's rank correlation with mean ranks for ties; 0 where one side has a single value."""
    if not np.ptp(cosines_N) or not np.ptp(scores_N):
        return 0.0
    return float(stats.spearmanr(cosines_N, scores_N).statistic)


def pair_rows(rows: SplitRows, columns: Sequence[str]) -> Iterator[tuple[str, Any, str, str]]:
    """(place, value, text, text) of each row of a file of pairs.

    Args:
        rows: of the file and split.
        columns: the names of the value (a score, a label; not looked at here) and of the two texts.

    Raises:
        UserError: with file and line, for a column or a text that is missing.
    """
    for where, row in rows:
        for key in columns:
            if key not in row:
                raise UserError(f"{where}: lacks the key {key!r} (has: {', '.join(map(str, row))[:200]})")
        value, first, second = (row[key] for key in columns)
        for key, text in zip(columns[1:], (first, second), strict=True):
            if not isinstance(text, str) or not text.strip():
                raise UserError(f"{where}: the key {key!r} is not a text")
        yield where, value, first, second
