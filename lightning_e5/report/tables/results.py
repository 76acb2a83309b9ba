"""A run's models on its collections: figures, what each is above the step before it and above the reference, and what it cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lightning_e5.report.tables.evaluation import difference_cell, interval, labelled, published_columns
from lightning_e5.report.tables.table import Column, Table, number
from lightning_e5.results.durations import duration
from lightning_e5.results.run import MAIN_METRIC, Result, RunData


def results_table(run: RunData, results: Sequence[Result], names: Sequence[str], *, differences: bool = True) -> Table:
    """A row per model and collection.

    Args:
        run: the results' run.
        results: those shown.
        names: the metrics shown; the interval is the first one's.
        differences: with the differences to the step before and to the reference, which make the table wide.
    """
    where = Column("collection", lambda r: r.collection) if len({r.collection for r in results}) > 1 else None
    first, *others = (number(name, _metric(name), ".3f") for name in names)
    beside = published_columns(results, _metric(names[0]), lambda r: r.row.get("published", {}).get(names[0]), "difference to it")
    return Table.of(results, [
        Column("model", lambda r: labelled(r.row)), where, first, number("95% interval", lambda r: interval(r.row)), *beside, *others,
        *(_differences(run, results) if differences else []),
        number("pairs seen", pairs_seen), number("time", _time),
    ])  # fmt: skip


def difference_table(run: RunData, results: Sequence[Result]) -> Table:
    """The models of one collection, each beside what it is above the step before it and above the reference."""
    columns = [Column("model", lambda r: labelled(r.row)), number("nDCG@10", _metric(MAIN_METRIC), ".3f"), *_differences(run, results)]
    return Table.of(results, columns)


def further_comparisons(result: Result) -> list[str]:
    """What a model is compared with beside the reference and the step before it."""
    return [f"{labelled(result.row)} to {other['model']}: {difference_cell(other)}" for other in result.previous[1:]]


def pairs_seen(result: Result) -> str:
    """The pairs that a model's weights saw; of a start of others, which does not say what it has seen, those of this run."""
    if "tokens_seen" in result.row and result.row["pairs_seen"] is None:
        return f"unknown + {result.pairs:,}" if result.trained_by else "unknown"
    return f"{result.row.get('pairs_seen') or result.pairs:,}"


def _differences(run: RunData, results: Sequence[Result]) -> list[Column]:
    references = {r.collection: run.reference(r.collection) for r in results}
    columns = []
    if any(r.previous for r in results):
        columns.append(Column("to the step before", lambda r: difference_cell(r.previous[0]) if r.previous else ""))
    if named := sorted({name for name in references.values() if name}):

        def to_reference(result: Result) -> str | None:
            if "difference" in result.row:
                return difference_cell(result.row)
            return "the reference" if result.model == references[result.collection] else None

        columns.append(Column(f"to {' / '.join(named)}", to_reference))
    return columns


def _metric(name: str) -> Callable[[Result], float | None]:
    return lambda result: result.metrics.get(name)


def _time(result: Result) -> str:
    return "none" if not result.trained_by else "unknown" if result.seconds is None else duration(result.seconds)
