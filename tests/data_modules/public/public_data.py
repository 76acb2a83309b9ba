"""Public data sets in small: the files of a publisher's layout, written below a folder."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_modules.public.published import NOMIC_PAIR_SPLITS, NOMIC_TRIPLE_SPLITS
from lightning_e5.types import PairCandidate, RankedExample, ReadReport


def parquet(path: Path, columns: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def split(folder: Path, name: str, columns: dict[str, list[Any]], files: int = 1) -> None:
    """A split in ``files`` files, row after row."""
    rows = len(next(iter(columns.values())))
    for number in range(files):
        part = slice(number * rows // files, (number + 1) * rows // files)
        parquet(folder / f"{name}-{number:05d}-of-{files:05d}.parquet", {key: column[part] for key, column in columns.items()})


def nomic_pairs(folder: Path, rows: int = 12) -> None:
    """All 29 splits; the first in two files."""
    for number, name in enumerate(NOMIC_PAIR_SPLITS):
        columns = {
            "query": [f"what is {name} number {row}" for row in range(rows)],
            "document": [f"{name} number {row} is the thing of river {row * 7 % rows} and hill {number}" for row in range(rows)],
            "dataset": [name] * rows,
            "shard": [row // 4 for row in range(rows)],
        }
        split(folder / "data", name, columns, 2 if number == 0 else 1)


def nomic_triples(folder: Path, rows: int = 10) -> None:
    """All 10 splits, those of MEDI with one negative a row as they come."""
    for name in NOMIC_TRIPLE_SPLITS:
        negatives = 1 if name.startswith("medi") else 8
        columns = {
            "query": [f"who wrote {name} {row}" for row in range(rows)],
            "document": [f"{name} {row} was written by author {row}" for row in range(rows)],
            "negative": [[f"{name} {row} was not written by author {n}" for n in range(negatives)] for row in range(rows)],
            "dataset": [name] * rows,
        }
        split(folder / "data", name, columns)


def lines(path: Path, rows: list[Any]) -> None:
    """Gzipped JSON lines; bytes stand as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)))


def read(source: Any) -> tuple[list[PairCandidate], ReadReport]:
    """All pairs of a source, part by part."""
    report = ReadReport()
    return [pair for part in source.parts() for pair in source.read(part, report)], report


def ranked(source: Any) -> tuple[list[RankedExample], ReadReport]:
    """All examples of a source."""
    report = ReadReport()
    return list(source.read(report)), report
