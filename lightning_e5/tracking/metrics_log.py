"""``metrics.jsonl`` of a training: one row per step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_e5.files.run_layout import LOG
from lightning_e5.files.storage import naming_the_file, read_log, write_text

#: Columns of ``metrics.jsonl`` that differ when the same step is computed again.
TIMED = ("seconds", "data_seconds", "mfu", "memory_gb", "pairs_per_second", "tokens_per_second")


class JsonlLogger:
    """A log that appends one JSON row per step to ``metrics.jsonl``, at once and in full precision."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / LOG
        self._file: Any = None
        self._held: dict[int, Mapping[str, float]] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write a row."""
        row = {"step": step, **metrics}
        held = self._held.pop(step, {}) if step is not None else {}
        if all(held.get(name) == value for name, value in row.items() if name not in TIMED):
            row |= {name: float(held[name]) for name in TIMED if name in row and name in held}
        with naming_the_file(self.path):
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("a", encoding="utf-8")
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    def truncate(self, step: int) -> None:
        """Drop rows after ``step`` and a torn last line, so that a resumed run continues without gap or repetition."""
        self.finalize("truncate")
        rows = [row for row in read_metrics_log(self.path.parent) if row["step"] <= step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def hold(self, rows: Mapping[int, Mapping[str, float]]) -> None:
        """Rows that a mirror of this file has of steps that are computed again: where the results are the same, the step
        keeps the times of the mirror's row, so that the two do not differ."""
        self._held = dict(rows)

    def finalize(self, status: str) -> None:
        """Close the file; the next row opens it again."""
        if self._file is not None:
            file, self._file = self._file, None
            with naming_the_file(self.path):  # closing writes what a full disk did not take before
                file.close()


def read_metrics_log(directory: Path) -> list[dict[str, float]]:
    """The rows of ``metrics.jsonl``; a torn last line (a killed writer's) is left out."""
    return read_log(directory / LOG)
