"""``metrics.jsonl`` of a training: one row per step, written by a Lightning logger."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment

from lightning_e5.files.run_layout import LOG
from lightning_e5.files.storage import naming_the_file, read_log, write_text

#: Columns of ``metrics.jsonl`` that differ when the same step is computed again.
TIMED = ("seconds", "mfu", "memory_gb", "pairs_per_second", "tokens_per_second")


class JsonlLogger(Logger):
    """A Lightning logger that appends one JSON row per call to ``metrics.jsonl``."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.path = directory / LOG
        self._file: Any = None
        self._held: dict[int, Mapping[str, float]] = {}

    @property
    def name(self) -> str:
        return "jsonl"

    @property
    def version(self) -> str:
        return "0"

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The open file."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
        return self._file

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {"step": step, **metrics}
        held = self._held.pop(step, {}) if step is not None else {}
        if all(held.get(name) == value for name, value in row.items() if name not in TIMED):
            row |= {name: float(held[name]) for name in TIMED if name in row and name in held}
        with naming_the_file(self.path):
            self.experiment.write(json.dumps(row) + "\n")
            self.experiment.flush()

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the resolved configuration lies beside as ``config.yaml``."""

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
        if self._file is not None:
            file, self._file = self._file, None
            with naming_the_file(self.path):  # closing writes what a full disk did not take before
                file.close()


def read_metrics_log(directory: Path) -> list[dict[str, float]]:
    """The rows of ``metrics.jsonl``; a torn last line (a killed writer's) is left out."""
    return read_log(directory / LOG)
