"""An ablation's variants compared with its baseline: what the table, the page and the exported files are made from.

Missing seeds and failed variants stay visible; runs judged by other tests are refused; a difference is claimed only where
its interval, which holds the noise of seeds and of queries, leaves out 0 and Holm's p over the whole table is at most 0.05.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_e5.errors import UserError, suggestion
from lightning_e5.evaluation.statistics.seed_significance import Estimate, SeedTable, holm_where_known
from lightning_e5.evaluation.statistics.significance import NO_DIFFERENCE
from lightning_e5.results.ablation import AblationData
from lightning_e5.results.run import Result, RunData
from lightning_e5.results.same_tests import check_same_tests

LEVEL = 0.05
#: A variant's pairs or tokens may differ by this share from the baseline's before its row is flagged.
TOLERANCE = 0.05
NO_SPREAD = "no interval"
IS_BASELINE = "the baseline"


@dataclass(frozen=True, slots=True)
class Cell:
    """One variant's figure of one metric.

    ``per_seed``: seed -> value; ``per_query``: ``[S, Q]`` in the order of the seeds and of the sorted query ids, None where
    the metric has no such values; ``difference``: to the baseline; ``p_holm``: adjusted over the table.
    """

    per_seed: dict[int, float]
    per_query: NDArray[np.float64] | None
    mean: Estimate
    difference: Estimate | None = None
    p_holm: float | None = None
    verdict: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One variant.

    ``seeds``: finished ones; ``unfinished``: seed -> how its run stands; ``cells``: metric -> figure, without metrics that
    it has not; ``pairs``, ``tokens``, ``steps``, ``seconds``: means over seeds, of the stages that the weights of the
    headline's model went through; ``flags``: how its compute differs; ``paper``: column -> the paper's figure.
    """

    variant: str
    description: str
    seeds: tuple[int, ...]
    unfinished: dict[int, str]
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
    def trouble(self) -> str:
        """``seed 3 failed: out of memory``, seeds in one state together; empty where every run is finished."""
        by_state: dict[str, list[str]] = {}
        for seed, state in self.unfinished.items():
            by_state.setdefault(state, []).append(str(seed))
        return "; ".join(f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)} {state}" for state, seeds in by_state.items())


@dataclass(frozen=True, slots=True)
class Comparison:
    """All variants of an ablation, in its order, and which machines and versions made the runs."""

    data: AblationData
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    environments: tuple[dict[str, Any], ...]

    @property
    def baseline(self) -> Row:
        """The row that the others are compared with."""
        return next(row for row in self.rows if row.variant == self.data.baseline)


def compare_ablation(data: AblationData, metrics: Sequence[str] | None = None) -> Comparison:
    """Compare the finished runs of an ablation.

    Args:
        data: the ablation.
        metrics: full names (``e5-pt/python-docs/ndcg@10``) or their ends; the ablation's report by default.

    Raises:
        UserError: no finished run, none of the baseline, a metric that no run has, or runs judged by different tests.
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
    filled = {name: _column(name, runs, data.baseline) for name in names}
    rows = [replace(r, cells={n: c[r.variant] for n, c in filled.items() if r.variant in c}) for r in rows]
    rows = _with_compute(_with_verdicts(rows, names), runs, names, data.baseline)
    return Comparison(data, tuple(names), tuple(rows), tuple(_environments(runs)))


Runs = dict[str, dict[int, RunData]]


def split_metric(run: RunData, name: str) -> tuple[str, str, str] | None:
    """``(model, collection, metric)`` of a retrieval metric's full name; None for any other metric."""
    found = run.figures.get(name)
    return (found[0].model, found[0].collection, found[1]) if found is not None and name in run.metrics else None


def _wanted(data: AblationData, runs: Runs, metrics: Sequence[str] | None) -> list[str]:
    known = dict.fromkeys(m for by_seed in (runs[data.baseline], *_of(runs)) for run in by_seed.values() for m in run.metrics)
    found: dict[str, None] = {}
    for wanted in data.report if metrics is None else metrics:
        ends = [m for m in known if m.endswith(f"/{wanted}")]
        names = [wanted] if wanted in known else [m for m in ends if m in data.report] or ends
        if not names:
            where = f"{data.path}: report: {wanted}" if metrics is None else f"--metric {wanted}"
            raise UserError(f"{where}: no finished run has it{suggestion(wanted, {*known, *(m.rsplit('/', 1)[-1] for m in known)})}")
        found |= dict.fromkeys(names)
    if not found:
        raise UserError(f"{data.path}: the ablation reports no metric; name one with --metric")
    return list(found)


def _of(runs: Runs) -> list[dict[int, RunData]]:
    return list(runs.values())


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
    return Row(variant, data.variants[variant], tuple(runs), unfinished, paper=paper)


def _column(name: str, runs: Runs, baseline: str) -> dict[str, Cell]:
    """Variant -> its figure of one metric, without variants of which no run has it."""
    having = {v: {s: run for s, run in by_seed.items() if name in run.metrics} for v, by_seed in runs.items()}
    having = {v: by_seed for v, by_seed in having.items() if by_seed}
    arrays = {v: _per_query(name, by_seed) for v, by_seed in having.items()}
    whole = all(array is not None for array in arrays.values())
    per_seed = {v: {s: float(run.metrics[name]) for s, run in by_seed.items()} for v, by_seed in having.items()}
    table = SeedTable({v: arrays[v] if whole else list(per_seed[v].values()) for v in having})  # type: ignore[misc]
    cells = {}
    for variant in having:
        compared = variant != baseline and baseline in having
        difference = table.difference(variant, baseline) if compared else None
        cells[variant] = Cell(per_seed[variant], arrays[variant] if whole else None, table.mean(variant), difference)
    return cells


def _per_query(name: str, runs: dict[int, RunData]) -> NDArray[np.float64] | None:
    rows = []
    for run in runs.values():
        parts = split_metric(run, name)
        if parts is None or not run.has_per_query(*parts):
            return None
        values = run.per_query(*parts)
        rows.append([values[query] for query in sorted(values)])
    return np.array(rows)


def _with_verdicts(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """The rows with Holm's p-values, over every difference of the table that is one, and what may be said."""
    places = [(r, n) for r in range(len(rows)) for n in names if n in rows[r].cells]
    differences = [rows[r].cells[n].difference for r, n in places]
    tested = [None if d is None or (d.mean == 0 and d.low == d.high) else d.p_value for d in differences]
    cells: list[dict[str, Cell]] = [dict(row.cells) for row in rows]
    for (r, n), difference, p_holm in zip(places, differences, holm_where_known(tested), strict=True):
        cells[r][n] = replace(cells[r][n], p_holm=p_holm, verdict=_verdict(difference, p_holm))
    return [replace(row, cells=c) for row, c in zip(rows, cells, strict=True)]


def _verdict(difference: Estimate | None, p_holm: float | None) -> str:
    if difference is None:
        return ""
    if difference.low is None or difference.high is None:
        return NO_SPREAD
    if p_holm is None or p_holm > LEVEL or difference.low <= 0 <= difference.high:
        return NO_DIFFERENCE
    return "higher" if difference.mean > 0 else "lower"


def _with_compute(rows: Sequence[Row], runs: Runs, names: Sequence[str], baseline: str) -> list[Row]:
    spent = {row.variant: _spent(runs[row.variant], names) for row in rows}
    filled = []
    for row in rows:
        flags = []
        for what in ("pairs", "tokens"):
            ours, theirs = spent[row.variant][what], spent[baseline][what]
            if ours is not None and theirs is not None and abs(ours - theirs) > TOLERANCE * theirs:
                flags.append(f"{what} {ours / theirs - 1:+.0%}" if theirs else f"{what} from 0")
        filled.append(replace(row, flags=tuple(flags), **spent[row.variant]))  # type: ignore[arg-type]
    return filled


def _spent(runs: dict[int, RunData], names: Sequence[str]) -> dict[str, float | None]:
    """Means over seeds, of the first metric's model that was trained; the whole run's time where no metric has one."""
    found = [_judged_model(run, names) for run in runs.values()]
    results = [result for result in found if result is not None]
    keys = ("pairs", "tokens", "steps", "seconds")
    if results and len(results) == len(found):
        return {key: _mean([getattr(result, key) for result in results]) for key in keys}
    seconds = [math.fsum(t["seconds"] for t in run.times().values()) for run in runs.values()]
    return {**dict.fromkeys(keys, None), "seconds": _mean(seconds)}


def _judged_model(run: RunData, names: Sequence[str]) -> Result | None:
    for name in names:
        parts = split_metric(run, name)
        if parts is not None:
            return next(r for r in run.results() if (r.model, r.collection) == parts[:2])
    return None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None


def _environments(runs: Runs) -> list[dict[str, Any]]:
    """What the runs' ``environment.json`` say, each once."""
    found: list[dict[str, Any]] = []
    for by_seed in runs.values():
        for run in by_seed.values():
            environment = run.environment
            if environment and environment not in found:
                found.append(environment)
    return found
