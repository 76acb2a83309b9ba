"""What differs between runs as a table: a row per key, a column per run."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from lightning_e5.report.tables.table import Column, Table
from lightning_e5.results.single_runs import RunsComparison
from lightning_e5.results.what_differs import Differing

NOTHING = "Nothing differs in configuration, versions, machine, data and training."
#: Letters of a value that a terminal and a page show.
_SHOWN = 60


def differing_table(comparison: RunsComparison, *, whole: bool = False) -> Table:
    """A row per key that differs; values that are longer than a line are cut, unless ``whole``."""

    def of_run(number: int) -> Callable[[Differing], str | None]:
        return lambda one: None if one.values[number] is None else _cut(_said(one.values[number], counted=one.what == "training" and not whole), whole)

    columns = [Column(name, of_run(number), "text") for number, name in enumerate(comparison.names)]
    return Table.of(comparison.differing, [Column("differs in", lambda one: one.what), Column("key", lambda one: one.key), *columns])


def differing_text(comparison: RunsComparison) -> str:
    """For a terminal; empty for a single run."""
    if len(comparison.names) < 2:
        return ""
    return differing_table(comparison).text() if comparison.differing else NOTHING


def _said(value: Any, *, counted: bool) -> str:
    if counted and isinstance(value, int):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cut(value: str, whole: bool) -> str:
    return value if whole or len(value) <= _SHOWN else f"{value[:_SHOWN]}…"
