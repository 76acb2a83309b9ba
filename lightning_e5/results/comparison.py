"""Runs compared: single runs with the first of them, or an ablation's variants, each over its seeds, with its baseline.

What the tables, the page, the figures and the exported files are made from. No row says more than its data: missing seeds
and failed variants stay visible, runs evaluated on other tests are refused, other compute is flagged, and a difference is
claimed only as `lightning_e5.evaluation.statistics.decision` has it, over the whole table.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lightning_e5.errors import UserError, suggestion
from lightning_e5.evaluation.statistics.decision import Decision, decide, holm
from lightning_e5.evaluation.statistics.seed_significance import Estimate, SeedTable
from lightning_e5.results.ablation import AblationData
from lightning_e5.results.run import Result, RunData
from lightning_e5.results.same_tests import check_same_tests

#: A row's pairs or tokens may differ by this share from the baseline's before it is flagged.
TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class Cell:
    """One row's figure of one metric.

    ``mean``: over seeds, or the value of a single run. ``per_seed``: seed -> value; ``per_query``: ``[S, Q]`` in the order of
    the seeds and of the sorted query ids, None where the metric has no such values; ``difference``: to the baseline;
    ``p_holm``: adjusted over the table; ``decision``: empty where there is no difference.
    """

    mean: Estimate
    per_seed: dict[int, float] = field(default_factory=dict)
    per_query: NDArray[np.float64] | None = None
    difference: Estimate | None = None
    p_holm: float | None = None
    decision: Decision | Literal[""] = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A variant; or one model of a single run on one collection, or what is not of one (both are empty then).

    ``name``: of the variant or run; ``cells``: metric -> figure, without metrics that it has not; ``pairs``, ``tokens``,
    ``steps``, ``seconds``: of the stages that the model's weights went through, of a variant's headline and as means over
    seeds; ``flags``: how its compute differs. Of a variant alone: ``seeds``: finished ones; ``unfinished``: seed -> how its run
    stands; ``paper``: column -> the paper's figure.
    """

    name: str
    model: str = ""
    collection: str = ""
    description: str = ""
    seeds: tuple[int, ...] = ()
    unfinished: dict[int, str] = field(default_factory=dict)
    cells: dict[str, Cell] = field(default_factory=dict)
    pairs: float | None = None
    tokens: float | None = None
    steps: float | None = None
    seconds: float | None = None
    flags: tuple[str, ...] = ()
    paper: dict[str, float] = field(default_factory=dict)

    @property
    def seeds_shown(self) -> str:
        """``2 of 3 seeds``."""
        planned = len(self.seeds) + len(self.unfinished)
        return f"{len(self.seeds)} of {planned} seeds"

    @property
    def unfinished_shown(self) -> str:
        """``seed 3 failed: out of memory``, seeds in one state together; empty where every run is finished."""
        by_state: dict[str, list[str]] = {}
        for seed, state in self.unfinished.items():
            by_state.setdefault(state, []).append(str(seed))
        return "; ".join(f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)} {state}" for state, seeds in by_state.items())


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rows and the metrics that they are compared by; of single runs the first is the baseline of its models."""

    title: str
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class FurtherDifference:
    """The difference of a variant to another one than the baseline; ``cells``: metric -> the variant's figure with it."""

    variant: str
    reference: str
    cells: dict[str, Cell]


@dataclass(frozen=True, slots=True)
class AblationComparison(Comparison):
    """All variants of an ablation, in its order, what else is compared, and which machines and versions made the runs."""

    data: AblationData
    environments: tuple[dict[str, Any], ...]
    further: tuple[FurtherDifference, ...] = ()

    @property
    def baseline(self) -> Row:
        """The row that the others are compared with."""
        return next(row for row in self.rows if row.name == self.data.baseline)


def full_names(wanted: str, known: Collection[str], preferred: Sequence[str] = ()) -> list[str]:
    """The known metrics that a full name or an end names; of several with that end those that are preferred, if any is."""
    ends = [metric for metric in known if metric.endswith(f"/{wanted}")]
    return [wanted] if wanted in known else [metric for metric in ends if metric in preferred] or ends


def suggested(wanted: str, known: Collection[str]) -> str:
    """``; did you mean ...`` of a metric that is not known, by full names and ends."""
    return suggestion(wanted, {*known, *(metric.rsplit("/", 1)[-1] for metric in known)})


def decided(rows: Sequence[Row]) -> list[Row]:
    """The rows with what their differences show, by Holm's p-values over every difference of the table.

    Equal values, such as of the same BM25 in two runs, are not one more question that the table asks.
    """
    found = _decided_cells([cell for row in rows for cell in row.cells.values()])
    return [replace(row, cells={name: found.get(id(cell), cell) for name, cell in row.cells.items()}) for row in rows]


def _decided_cells(every: Sequence[Cell]) -> dict[int, Cell]:
    """The identity of a cell with a difference -> the cell with what its difference shows, over all of them."""
    cells = [cell for cell in every if cell.difference is not None]
    differences = [cell.difference for cell in cells if cell.difference is not None]
    adjusted = holm([None if d.mean == 0 and d.low == d.high else d.p_value for d in differences])
    return {
        id(cell): replace(cell, p_holm=p_holm, decision=decide(d.mean, (d.low, d.high), p_holm))
        for cell, d, p_holm in zip(cells, differences, adjusted, strict=True)
    }


def other_compute(ours: Sequence[float | None], base: Sequence[float | None]) -> tuple[str, ...]:
    """How pairs and tokens differ from the baseline's, where by more than the tolerance."""
    flags = []
    for what, own, theirs in zip(("pairs", "tokens"), ours, base, strict=True):
        if own is not None and theirs is not None and abs(own - theirs) > TOLERANCE * theirs:
            flags.append(f"{what} {own / theirs - 1:+.0%}" if theirs else f"{what} from 0")
    return tuple(flags)


Runs = dict[str, dict[int, RunData]]


def compare_ablation(data: AblationData, metrics: Sequence[str] | None = None) -> AblationComparison:
    """Compare the finished runs of an ablation.

    Args:
        data: the ablation.
        metrics: full names (``e5-pt/python-docs/ndcg@10``) or their ends; the ablation's report by default.

    Raises:
        UserError: no finished run, none of the baseline, a metric that no run has, or runs evaluated on different tests.
    """
    runs = {v: {s: data.run(v, s) for s in data.finished(v)} for v in data.variants}
    if not any(runs.values()):
        raise UserError(f"{data.path}: no run of the ablation is finished")
    if not runs[data.baseline]:
        states = "; ".join(f"seed {s} {data.state(data.baseline, s)}" for s in data.planned(data.baseline))
        raise UserError(f"{data.path}: the baseline {data.baseline!r} has no finished run ({states})")
    names = _wanted(data, runs, metrics)
    _check_tests(data, runs, names)
    rows = [_row(data, variant, runs[variant]) for variant in data.variants]
    filled = {name: _column(name, runs, data) for name in names}
    rows = [replace(r, cells={n: c[r.name] for n, (c, _) in filled.items() if r.name in c}) for r in rows]
    further = [FurtherDifference(*two, {n: c[two] for n, (_, c) in filled.items() if two in c}) for two in data.also_compare]
    every = [*(row.cells for row in rows), *(two.cells for two in further)]
    found = _decided_cells([cell for cells in every for cell in cells.values()])
    rows = [replace(row, cells={n: found.get(id(cell), cell) for n, cell in row.cells.items()}) for row in rows]
    further = [replace(row, cells={n: found.get(id(cell), cell) for n, cell in row.cells.items()}) for row in further]
    rows = [replace(row, **_spent(runs[row.name], names)) for row in rows]
    baseline = next(row for row in rows if row.name == data.baseline)
    rows = [replace(row, flags=other_compute((row.pairs, row.tokens), (baseline.pairs, baseline.tokens))) for row in rows]
    environments: list[dict[str, Any]] = []  # what the runs' environment.json say, each once
    for run in (run for by_seed in runs.values() for run in by_seed.values()):
        if run.environment and run.environment not in environments:
            environments.append(run.environment)
    return AblationComparison(f"{data.name} ({data.scale})", tuple(names), tuple(rows), data, tuple(environments), tuple(further))


def split_metric(run: RunData, name: str) -> tuple[str, str, str] | None:
    """``(model, collection, metric)`` of a retrieval metric's full name; None for any other metric."""
    found = run.figures.get(name)
    return (found[0].model, found[0].collection, found[1]) if found is not None and name in run.metrics else None


def _wanted(data: AblationData, runs: Runs, metrics: Sequence[str] | None) -> list[str]:
    known = dict.fromkeys(m for by_seed in (runs[data.baseline], *runs.values()) for run in by_seed.values() for m in run.metrics)
    found: dict[str, None] = {}
    for wanted in data.report if metrics is None else metrics:
        names = full_names(wanted, known, preferred=data.report)
        if not names:
            where = f"{data.path}: report: {wanted}" if metrics is None else f"--metric {wanted}"
            raise UserError(f"{where}: no finished run has it{suggested(wanted, known)}")
        found |= dict.fromkeys(names)
    if not found:
        raise UserError(f"{data.path}: the ablation reports no metric; name one with --metric")
    return list(found)


def _check_tests(data: AblationData, runs: Runs, names: Sequence[str]) -> None:
    every = [(data.run_name(v, s), run) for v, by_seed in runs.items() for s, run in by_seed.items()]
    seed, first = next(iter(runs[data.baseline].items()))
    parts = [p for _, run in every for n in names if (p := split_metric(run, n)) is not None]
    collections = {collection for _, collection, _ in parts}
    for name, run in every:
        if run is not first:
            check_same_tests(data.run_name(data.baseline, seed), first, name, run, collections)


def _row(data: AblationData, variant: str, runs: dict[int, RunData]) -> Row:
    unfinished = {s: data.state(variant, s) for s in data.planned(variant) if s not in runs}
    figures = (data.paper or {}).get("figures") or {}
    paper = {str(column): float(by[variant]) for column, by in figures.items() if by.get(variant) is not None}
    return Row(variant, description=data.variants[variant], seeds=tuple(runs), unfinished=unfinished, paper=paper)


def _column(name: str, runs: Runs, data: AblationData) -> tuple[dict[str, Cell], dict[tuple[str, str], Cell]]:
    """Of one metric: variant -> its figure, without variants of which no run has it; and what else is compared -> its figure."""
    having = {v: {s: run for s, run in by_seed.items() if name in run.metrics} for v, by_seed in runs.items()}
    having = {v: by_seed for v, by_seed in having.items() if by_seed}
    arrays = {v: _per_query(name, by_seed) for v, by_seed in having.items()}
    whole = all(array is not None for array in arrays.values())
    per_seed = {v: {s: float(run.metrics[name]) for s, run in by_seed.items()} for v, by_seed in having.items()}
    table = SeedTable({v: arrays[v] if whole else list(per_seed[v].values()) for v in having})  # type: ignore[misc]

    def cell(variant: str, reference: str) -> Cell:
        compared = variant != reference and reference in having
        difference = table.difference(variant, reference) if compared else None
        return Cell(table.mean(variant), per_seed[variant], arrays[variant] if whole else None, difference)

    further = {(v, other): cell(v, other) for v, other in data.also_compare if v in having and other in having}
    return {variant: cell(variant, data.baseline) for variant in having}, further


def _per_query(name: str, runs: dict[int, RunData]) -> NDArray[np.float64] | None:
    rows = []
    for run in runs.values():
        parts = split_metric(run, name)
        if parts is None or not run.has_per_query(*parts):
            return None
        values = run.per_query(*parts)
        rows.append([values[query] for query in sorted(values)])
    return np.array(rows)


def _spent(runs: dict[int, RunData], names: Sequence[str]) -> dict[str, Any]:
    """Means over seeds, of the first metric's model that was trained; the whole run's time where no metric has one."""
    found = [_headline_result(run, names) for run in runs.values()]
    results = [result for result in found if result is not None]
    keys = ("pairs", "tokens", "steps", "seconds")
    if results and len(results) == len(found):
        return {key: _mean([getattr(result, key) for result in results]) for key in keys}
    seconds = [math.fsum(t["seconds"] for t in run.times().values()) for run in runs.values()]
    return {**dict.fromkeys(keys, None), "seconds": _mean(seconds)}


def _headline_result(run: RunData, metrics: Sequence[str]) -> Result | None:
    for name in metrics:
        parts = split_metric(run, name)
        if parts is not None:
            return next(r for r in run.results() if (r.model, r.collection) == parts[:2])
    return None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None
