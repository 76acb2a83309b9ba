"""Re-ranking: candidate lists of a query ordered by cosine, evaluated by MAP and MRR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_e5.errors import UserError
from lightning_e5.evaluation.statistics.answers import Answers
from lightning_e5.evaluation.statistics.paired_test import bootstrap_interval, paired_test
from lightning_e5.evaluation.tasks.task import SAMPLES, TaskResult, finite_embeddings
from lightning_e5.files.rows import SplitRows, check_format
from lightning_e5.types import Embedder, compares_by_cosine


@dataclass(frozen=True, slots=True)
class CandidateList:
    """A query, the candidates that answer it and those that do not."""

    query: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]


@dataclass(frozen=True)
class RerankingTask:
    """Candidate lists to be ordered (``facts``: what a result's row says of the file); E5 gives queries and candidates alike the prefix of queries.

    Source: paper section 4.2 (MTEB's re-ranking: mean average precision).
    """

    name: str
    lists: list[CandidateList]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path | str, name: str | None = None, split: str = "test") -> RerankingTask:
        """Read rows ``{"query", "positive": [...], "negative": [...]}`` from a JSONL(.gz) or Parquet file.

        Args:
            path, name, split: as `lightning_e5.evaluation.tasks.sts.load_sts`.

        Raises:
            UserError: with file and line for a row without a query, without candidates of both kinds, with an empty
                candidate, or with one named twice.
        """
        path = Path(path)
        check_format(path, "jsonl", "parquet")
        lists = []
        rows = SplitRows(path, split, columns=("query", "positive", "negative"))
        for where, row in rows:
            if not isinstance(row.get("query"), str) or not row["query"].strip():
                raise UserError(f"{where}: the key 'query' is not a text")
            for key in ("positive", "negative"):
                found = row.get(key)
                if not isinstance(found, list) or not found or not all(isinstance(t, str) and t.strip() for t in found):
                    raise UserError(f"{where}: the key {key!r} is not a list of at least one text")
            candidates = [*row["positive"], *row["negative"]]
            twice = next((t for i, t in enumerate(candidates) if t in candidates[:i]), None)
            if twice is not None:
                raise UserError(f"{where}: the candidate {twice[:60]!r} is there twice")
            lists.append(CandidateList(row["query"], tuple(row["positive"]), tuple(row["negative"])))
        if not lists:
            raise UserError(f"{path}: has 0 candidate lists")
        return cls(name or path.name.split(".")[0], lists, rows.facts())

    def texts(self) -> list[str]:
        """Of each list the query, its positives and its negatives."""
        return [text for one in self.lists for text in (one.query, *one.positive, *one.negative)]

    def items(self) -> list[tuple[str]]:
        """The queries."""
        return [(one.query,) for one in self.lists]

    def evaluate(self, embedder: Embedder, *, seed: int = 0) -> TaskResult:
        """MAP and MRR over the queries; the interval resamples queries."""
        embedded = finite_embeddings(embedder, self.texts(), self.name, normalize=compares_by_cosine(embedder))
        start, precision, reciprocal, tied = 0, [], [], 0
        for one in self.lists:
            size = 1 + len(one.positive) + len(one.negative)
            query_D, candidates_CD = embedded[start], embedded[start + 1 : start + size]
            start += size
            cosines_C = candidates_CD @ query_D
            ranks = positive_ranks(cosines_C, len(one.positive))
            precision.append(float(np.mean(np.arange(1, len(ranks) + 1) / ranks)))
            reciprocal.append(1.0 / float(ranks[0]))
            tied += bool(np.isin(cosines_C[: len(one.positive)], cosines_C[len(one.positive) :]).any())
        low, high = bootstrap_interval(precision, SAMPLES, seed=seed)
        others = {"mrr": float(np.mean(reciprocal))}
        facts = {"tied": tied / len(self.lists), **self.facts}
        columns = {"ap": precision, "reciprocal_rank": reciprocal}
        precision_N = np.array(precision)
        return TaskResult(
            "re-ranking", "map", float(np.mean(precision)), low, high, len(self.lists), others, facts, columns,
            measure=lambda rows: float(precision_N[rows].mean()), answers=Answers(precision_N, paired_test),
            per_item={"map": precision_N, "mrr": np.array(reciprocal)},
        )  # fmt: skip


def positive_ranks(cosines_C: NDArray[np.float32] | Sequence[float], positives: int) -> NDArray[np.int64]:
    """The ranks, from 1 and rising, of the first ``positives`` candidates; of equal cosines the negatives come first,
    so that a model that tells nothing apart gains nothing."""
    cosines_C = np.asarray(cosines_C)
    negative = np.arange(len(cosines_C)) >= positives
    order = np.lexsort((~negative, -cosines_C))
    ranks: NDArray[np.int64] = np.flatnonzero(~negative[order]) + 1
    return ranks
