"""A file of training groups read part by part: its texts for a cross-encoder, its rows to be written again with the scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_e5.curation.engines.run_parts import Function, Part, Progress, parts_of, read_arrays, run_parts
from lightning_e5.curation.mining.teacher_scores import separation_of
from lightning_e5.errors import UserError
from lightning_e5.files.parquet import batches_of, iter_parquet, parquet_rows
from lightning_e5.files.scratch import mapped

_TEXTS = {"query": "string", "positive": "string", "negatives": "list<string>"}
_SCORES = {"retriever_scores": "list<float>"}


class StoredGroups:
    """The groups of a ``ranked.parquet``, of which a part is in memory.

    Args:
        path: of the file.
        part_rows: groups of a part.
        retrieved: whether each passage's score of the retriever is needed, too.

    Raises:
        UserError: what is no such file, has no rows, a group without negatives, or another number of scores than passages.
    """

    def __init__(self, path: Path, part_rows: int, *, retrieved: bool) -> None:
        self.path, self.part_rows = path, part_rows
        self.rows = parquet_rows(path, _TEXTS | (_SCORES if retrieved else {}))
        if not self.rows:
            raise UserError(f"{path}: has no rows")
        #: Passages of each part.
        self.passages: list[int] = []
        for first in range(0, self.rows, part_rows):
            _, groups = texts_of_rows(path, slice(first, first + part_rows))
            alone = next((first + row for row, group in enumerate(groups) if len(group) < 2), None)
            if alone is not None:
                raise UserError(f"{path}: row {alone} has no negatives to compare the positive with")
            self.passages.append(sum(map(len, groups)))
            if retrieved:
                self.retriever_scores(slice(first, min(self.rows, first + part_rows)), [len(group) for group in groups])

    def retriever_scores(self, rows: slice, sizes: Sequence[int]) -> list[NDArray[np.float32]]:
        """The scores by which mining found the passages of some groups, ``sizes`` of each."""
        tables = iter_parquet(self.path, _SCORES, self.part_rows, rows.start, rows.stop)
        column = [scores for table in tables for scores in table["retriever_scores"].to_pylist()]
        for row, (scores, size) in enumerate(zip(column, sizes, strict=True), rows.start):
            if scores is None or len(scores) != size:
                raise UserError(f"{self.path}: row {row} has {len(scores or ())} retriever_scores for {size} passages")
        return [np.array(scores, dtype=np.float32) for scores in column]

    def score(self, scorer: Function, folder: Path, **where: Any) -> list[Part]:
        """Have all parts scored, into files; ``where``: `run_parts`' engine and GPUs."""
        size = self.part_rows
        parts = parts_of(folder / "scores", self.rows, size, what="groups", steps=lambda rows: self.passages[rows.start // size])
        for _ in run_parts(ScoreStored(scorer, self.path), parts, title="score", unit="pair", **where):
            pass
        return parts

    def tables(self) -> Iterator[Any]:
        """All columns, part after part."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        held: list[Any] = []
        with pq.ParquetFile(self.path) as file:
            for batch in batches_of(file, self.part_rows):
                held.append(pa.Table.from_batches([batch]))
                whole = pa.concat_tables(held)
                while len(whole) >= self.part_rows:
                    yield whole.slice(0, self.part_rows)
                    whole = whole.slice(self.part_rows)
                held = [whole]
        if held and len(held[0]):
            yield held[0]


@dataclass(frozen=True)
class ScoreStored:
    """Rows of a file of groups -> ``scores``, as a scorer of (queries, groups) gives them (`ScoreGroups`), and ``sizes`` of the groups."""

    scorer: Function
    path: Path

    def __call__(self, work: slice, progress: Progress) -> dict[str, NDArray[np.float32]]:
        texts = texts_of_rows(self.path, work)
        return {"scores": np.asarray(self.scorer(texts, progress)["scores"]), "sizes": np.array([len(group) for group in texts[1]])}


def texts_of_rows(path: Path, rows: slice) -> tuple[list[str], list[list[str]]]:
    """Queries, and the positive and negatives of each."""
    queries: list[str] = []
    groups: list[list[str]] = []
    for table in iter_parquet(path, _TEXTS, rows.stop - rows.start, rows.start, rows.stop):
        queries += table["query"].to_pylist()
        groups += [[p, *(ns or [])] for p, ns in zip(table["positive"].to_pylist(), table["negatives"].to_pylist(), strict=True)]
    return queries, groups


def scores_of_part(part: Part) -> list[NDArray[np.float32]]:
    """The logits of a part's groups, without what fills up the shorter ones."""
    found = read_arrays(part.path)
    return [row[:size] for row, size in zip(found["scores"], found["sizes"].tolist(), strict=True)]


class SeparationInFiles:
    """As `separation`, of groups that come part by part; their figures lie in a file meanwhile, 24 bytes a group."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._file = path, path.open("wb")

    def add(self, scores: Sequence[NDArray[np.float32]]) -> None:
        """Take in some groups."""
        lists = [s.astype(np.float64) for s in scores]
        found = np.empty(len(lists), dtype=_FIGURES)
        found["first"] = [s[0] > s[1:].max() for s in lists]
        found["margin"] = [s[0] - s[1:].max() for s in lists]
        found["spread"] = [np.std(s) for s in lists]
        found.tofile(self._file)

    def found(self) -> dict[str, float]:
        """Of all groups; empty of none."""
        self._file.close()
        figures = mapped(self._path, _FIGURES)
        return separation_of(*(figures[name] for name in ("first", "margin", "spread"))) if len(figures) else {}


_FIGURES = np.dtype([("first", "?"), ("margin", "<f8"), ("spread", "<f8")])
