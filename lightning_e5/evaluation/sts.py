"""Semantic textual similarity: Spearman's correlation of cosines with people's judgements."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir_data import json_object, text_lines
from lightning_e5.evaluation.task import TaskResult
from lightning_e5.types import Embedder, Kind, Metrics

_COLUMNS = ("score", "sentence1", "sentence2")


@dataclass(frozen=True, slots=True)
class STSData:
    """Pairs of sentences and how similar people found them.

    ``scores`` float64 ``[N]``, higher is more similar (STS-B: 0 to 5); ``first`` and ``second``: the sentences.
    """

    name: str
    first: list[str]
    second: list[str]
    scores: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class STSResult:
    """``metrics``: ``spearman``, ``pearson`` and the 95% interval ``spearman_low``, ``spearman_high`` of a bootstrap over
    pairs; ``cosines`` float32 ``[N]``; ``tied``: share of the pairs whose cosine another pair has too."""

    metrics: Metrics
    cosines: NDArray[np.float32]
    tied: float


def load_sts(path: Path | str, name: str | None = None) -> STSData:
    """Read a TSV with the header ``score sentence1 sentence2`` (no quoting), JSONL rows with these keys, or Parquet.

    Raises:
        UserError: with file and line, for anything missing or malformed.
    """
    path = Path(path)
    rows = [row[1:] for row in pair_rows(path, _COLUMNS)]
    if len(rows) < 3:
        raise UserError(f"{path}: has {len(rows)} pairs; a correlation needs at least 3")
    scores = np.array([score for score, _, _ in rows])
    if (scores == scores[0]).all():
        raise UserError(f"{path}: all pairs have the score {scores[0]:g}, so there is nothing to correlate with")
    return STSData(name or path.stem, [a for _, a, _ in rows], [b for _, _, b in rows], scores)


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
            {"tied": result.tied}, columns, "pairs.parquet",
            lambda rows: correlation(result.cosines[rows], self.data.scores[rows]) if len(rows) > 2 else float("nan"),
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


def pair_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, float, str, str]]:
    """(place, number, text, text) of each row of a file of pairs: TSV with a header and no quoting, JSONL, or Parquet.

    Args:
        path: ``.parquet``, ``.jsonl``, ``.json``, anything else is TSV; the last two may be gzipped.
        columns: the names of the number and of the two texts.

    Raises:
        UserError: with file and line, for anything missing or malformed.
    """
    if path.suffix == ".parquet":
        from lightning_e5.storage import read_parquet

        table = read_parquet(path, {columns[0]: "double", columns[1]: "string", columns[2]: "string"})
        for number, row in enumerate(table.to_pylist()):
            where = f"{path}: row {number}"
            yield where, *_checked(row, where, columns)
        return
    lines = text_lines(path)
    if path.name.removesuffix(".gz").endswith((".jsonl", ".json")):
        for number, line in lines:
            where = f"{path}:{number}"
            yield where, *_checked(json_object(line, where), where, columns)
        return
    _, header = next(lines, (0, ""))
    names = header.split("\t")
    if not set(columns) <= set(names):
        raise UserError(f"{path}:1: lacks the header {' '.join(columns)} (separated by tabs)")
    for number, line in lines:
        where = f"{path}:{number}"
        cells = line.split("\t")
        if len(cells) != len(names):
            raise UserError(f"{where}: has {len(cells)} columns separated by tabs, not {len(names)}")
        yield where, *_checked(dict(zip(names, cells, strict=True)), where, columns)


def _checked(row: Mapping[str, Any], where: str, columns: Sequence[str]) -> tuple[float, str, str]:
    for key in columns:
        if key not in row:
            raise UserError(f"{where}: lacks the key {key!r}")
    number, first, second = (row[key] for key in columns)
    for key, text in zip(columns[1:], (first, second), strict=True):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{where}: the key {key!r} is not a text")
    try:
        value = float(number)
    except (TypeError, ValueError):
        raise UserError(f"{where}: the {columns[0]} {number!r} is not a number") from None
    if not math.isfinite(value):
        raise UserError(f"{where}: the {columns[0]} {number!r} is not finite")
    return value, first, second
