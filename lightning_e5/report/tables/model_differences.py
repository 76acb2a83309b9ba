"""An evaluation's models compared with one of them: the paired differences, what could not be compared, and every figure as rows of a CSV file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_e5.evaluation.beir.average import AVERAGES
from lightning_e5.report.tables.evaluation import labelled
from lightning_e5.report.tables.table import Column, Table, number
from lightning_e5.result_row import Comparison, ResultRow

#: What ``verdict`` says in words of the row's model.
_SHOWN = {"a is higher": "higher", "b is higher": "lower"}
_ENDS = ("low", "high")


def differences_table(rows: Sequence[ResultRow], reference: str) -> Table:
    """Every model's main metric beside the reference's: paired difference, 95% interval, Holm's p-value, what is shown.

    Args:
        rows: of an evaluation with that reference.
        reference: its name.
    """
    values = {(row.collection, row.metric): row.value for row in rows if row.model == reference}
    compared = [(row, row.difference) for row in rows if row.difference is not None]
    return Table.of(compared, [
        Column("model", lambda pair: labelled(pair[0].as_json())), Column("set", lambda pair: pair[0].collection),
        number("difference", lambda pair: pair[1].difference, "+.3f"),
        number("95% interval", lambda pair: f"[{pair[1].low:+.3f}, {pair[1].high:+.3f}]"), Column("shown", lambda pair: shown(pair[1])),
        number("p (Holm)", lambda pair: p_shown(pair[1].p_holm)), Column("metric", lambda pair: pair[0].metric),
        number("value", lambda pair: pair[0].value, ".3f"), number(reference, lambda pair: values.get((pair[0].collection, pair[0].metric)), ".3f"),
    ])  # fmt: skip


def comparison_notes(rows: Sequence[ResultRow], reference: str, *, chosen: bool = True) -> list[str]:
    """What was compared with what and how, and where no pairing is possible, as sentences; empty where there is one model.

    Args:
        rows, reference: as in `differences_table`.
        chosen: whether the user named the reference; else it is the first model.
    """
    if len({row.model for row in rows}) < 2:
        return []
    count = sum(row.difference is not None for row in rows)
    which = "" if chosen else " (the first model; --reference NAME chooses another)"
    notes = [
        f"Differences: each model minus {reference}{which}, paired over the same queries or items, with 95% bootstrap intervals; p by "
        f"randomisation, of few-shot probes by Satterthwaite's t; by Holm over all of the table's comparisons ({count})."
    ] if count else [f"No model is compared with {reference}{which}."]  # fmt: skip
    return notes + [f"{name}: not compared: {why}." for name, why in not_compared(rows, reference).items()]


def not_compared(rows: Sequence[ResultRow], reference: str) -> dict[str, str]:
    """Set -> why the models that were evaluated on it are not compared with the reference."""
    found = {}
    for name in dict.fromkeys(row.collection for row in rows):
        of_set = [row for row in rows if row.collection == name]
        if all(row.model == reference for row in of_set) or any(row.difference is not None for row in of_set):
            continue
        if name in AVERAGES:
            why = "it is an average; its sets are compared"
        elif all(row.model != reference for row in of_set):
            why = f"{reference} can only search"
        else:
            why = f"no pairing of items is possible in {of_set[0].task}, whose {of_set[0].metric} is of all items together, grouped anew by each model"
        found[name] = why
    return found


def evaluation_csv(rows: Sequence[ResultRow], reference: str | None) -> str:
    """A line per model, set and metric, values in full; intervals and differences stand beside each set's main metric."""
    difference = ("difference", "difference_low", "difference_high", "p_value", "p_holm", "shown")
    header = ["model", "set", "task", "metric", "value", *_ENDS, "items", "reference", *difference]
    lines: list[list[Any]] = []
    for row in rows:
        compared = row.difference
        ends = [None] * 6 if compared is None else [compared.difference, compared.low, compared.high, compared.p_value, compared.p_holm, shown(compared)]
        lines.append([row.model, row.collection, row.task, row.metric, row.value, row.low, row.high, row.queries, reference if compared else None, *ends])
        others = {name: value for name, value in row.metrics.items() if name not in (row.metric, *(f"{row.metric}_{end}" for end in _ENDS))}
        lines += [[row.model, row.collection, row.task, name, value, None, None, row.queries, None, *[None] * 6] for name, value in others.items()]
    if any(row.texts is not None and row.texts.dimensions for row in rows):
        header.append("dimensions")
        of_model = {(row.model, row.collection): row.texts.dimensions for row in rows if row.texts is not None}
        lines = [[*line, of_model.get((line[0], line[1]))] for line in lines]
    return Table([Column(title) for title in header], lines).csv()


def shown(compared: Comparison) -> str:
    """``higher``, ``lower`` or ``no difference shown``, of the row's model."""
    return _SHOWN.get(compared.shown, compared.shown)


def p_shown(p_value: float | None) -> str | None:
    """A p-value with three digits."""
    return None if p_value is None else "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"
