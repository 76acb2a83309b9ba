"""One row per query or item, model, collection and metric: for a notebook, or a test of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_e5.errors import UserError
from lightning_e5.evaluation.tasks.task import TaskResult
from lightning_e5.files.parquet import write_parquet
from lightning_e5.files.storage import atomic_path

#: The columns: a query's id (or an item's number, from 0, in its file's order), and what it got.
COLUMNS = ("item", "model", "collection", "metric", "value")


class PerQueryFile:
    """The values of single queries and items, kept in memory and written whole.

    Args:
        path: ends in ``.csv`` or ``.parquet``.
        option: what the message calls it.

    Raises:
        UserError: another ending.
    """

    def __init__(self, path: Path, option: str = "--per-query") -> None:
        if path.suffix.lower() not in (".csv", ".parquet"):
            raise UserError(f"{option}: {path}: ends in {path.suffix or 'nothing'!r}, not in .csv or .parquet")
        self.path = path
        self.columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}

    def keep(self, model: str, collection: str, result: TaskResult) -> None:
        """Keep what a model's single queries got; metrics that are of no single item (of clusters) have no rows."""
        for metric, values in result.by_item().items():
            columns: tuple[list[Any], ...] = (list(values), [model] * len(values), [collection] * len(values), [metric] * len(values), list(values.values()))
            for name, column in zip(COLUMNS, columns, strict=True):
                self.columns[name] += column

    def write(self) -> None:
        """Write the file, atomically."""
        if self.path.suffix.lower() == ".parquet":
            import pyarrow as pa

            arrays = {name: pa.array(column, pa.float64() if name == "value" else pa.string()) for name, column in self.columns.items()}
            write_parquet(self.path, arrays)
            return
        import csv

        with atomic_path(self.path) as temporary, temporary.open("w", encoding="utf-8", newline="") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(zip(*self.columns.values(), strict=True))
