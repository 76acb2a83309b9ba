"""The values of an ablation's variants and seeds, the same from its directory and from a W&B group, and what they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lightning_e5.ablation.ablation_data import AblationData
from lightning_e5.ablation.run_data import RunData
from lightning_e5.config import Node
from lightning_e5.errors import UserError, suggestion
from lightning_e5.evaluation.seed_significance import Estimate, estimate, holm_where_known, paired_estimate

#: A difference is claimed up to this p-value, after Holm's correction over the variants.
LEVEL = 0.05
Rows = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class VariantResults:
    """An ablation's finished runs as values.

    ``variants``: name -> description; ``values``: (variant, seed) -> metric -> value; ``curves``: (variant, seed) -> training
    stage -> its rows, one per step; ``per_query``: (variant, seed, metric) -> query -> value, for the reported metrics of
    which a run keeps them; ``missing``: planned runs without a result, and how they stand.
    """

    name: str
    question: str
    held_constant: tuple[str, ...]
    baseline: str
    report: tuple[str, ...]
    variants: Mapping[str, str]
    values: Mapping[tuple[str, int], Mapping[str, float]]
    curves: Mapping[tuple[str, int], Mapping[str, Rows]]
    per_query: Mapping[tuple[str, int, str], Mapping[str, float]] = field(default_factory=dict)
    missing: Sequence[tuple[str, int, str]] = ()
    paper: Node | None = None

    def seeds(self, variant: str) -> list[int]:
        """The seeds of a variant's finished runs, in order."""
        return sorted(seed for name, seed in self.values if name == variant)

    def metrics(self) -> list[str]:
        """Every metric that a finished run has."""
        return sorted({name for values in self.values.values() for name in values})


@dataclass(frozen=True, slots=True)
class VariantRow:
    """A variant on one metric.

    ``seeds`` and ``values``: one value a seed; ``estimate``: their mean with its interval over seeds and queries;
    ``difference``: to the baseline, paired, over the seeds that both have (None for the baseline itself and where no
    seed is common); ``p_value``: of the difference, after Holm; ``verdict``: ``higher``, ``lower``, ``no difference
    shown``, ``baseline`` or ``not testable``.
    """

    variant: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    estimate: Estimate
    difference: Estimate | None
    p_value: float | None
    verdict: str


def results_of(data: AblationData, metrics: Sequence[str] = ()) -> VariantResults:
    """The finished runs of an ablation's directory.

    Args:
        metrics: beside the reported ones, those to keep per query.
    """
    values, curves, per_query = {}, {}, {}
    for variant in data.variants:
        for seed in data.finished(variant):
            run = data.run(variant, seed)
            values[variant, seed] = dict(run.metrics)
            curves[variant, seed] = run.learning_curves()
            for metric in dict.fromkeys([*data.report, *metrics]):
                if found := _per_query(run, metric):
                    per_query[variant, seed, metric] = found
    missing = [(variant, seed, data.state(variant, seed)) for variant, seed in data.missing()]
    return VariantResults(
        f"{data.name} ({data.scale})", data.question, tuple(data.held_constant), data.baseline, tuple(data.report), data.variants,
        values, curves, per_query, missing, data.paper,
    )  # fmt: skip


def variant_rows(results: VariantResults, metric: str) -> list[VariantRow]:
    """Every variant that has the metric, in the ablation's order.

    Raises:
        UserError: no finished run has the metric.
    """
    found = {v: matrix for v in results.variants if (matrix := _matrix(results, v, metric)) is not None}
    if not found:
        known = results.metrics()
        raise UserError(f"{results.name}: no finished run has the metric {metric!r}{suggestion(metric, known)}")
    differences = {v: _difference(results, v, metric) for v in found if v != results.baseline}
    tested = [v for v, d in differences.items() if d is not None and d.p_value is not None]
    adjusted = dict(zip(tested, holm_where_known([_known(differences[v]).p_value for v in tested]), strict=True)) if tested else {}
    rows = []
    for variant, (seeds, values) in found.items():
        difference, p_value = differences.get(variant), adjusted.get(variant)
        verdict = "baseline" if variant == results.baseline else "not testable"
        if difference is not None and p_value is not None:
            verdict = "no difference shown" if p_value > LEVEL else "higher" if difference.mean > 0 else "lower"
        means = values if values.ndim == 1 else values.mean(1)
        rows.append(VariantRow(variant, tuple(seeds), tuple(map(float, means)), estimate(values), difference, p_value, verdict))
    return rows


def result_table(results: VariantResults, metric: str) -> tuple[list[str], list[list[str]]]:
    """Header and cells: each variant's mean with interval, its difference to the baseline, and the paper's own figures."""
    columns: Mapping[str, Mapping[str, float]] = (results.paper or {}).get("figures") or {}
    header = ["variant", "seeds", metric, "95% interval", "difference to the baseline", "p (Holm)", "verdict"]
    header += [f"paper: {title}" for title in columns]
    cells = []
    rows = {row.variant: row for row in variant_rows(results, metric)}
    for variant in results.variants:
        paper = [f"{figure[variant]:g}" if variant in figure else "–" for figure in columns.values()]
        if variant not in rows:
            cells.append([variant, "none", "–", "–", "–", "–", "not finished", *paper])
            continue
        row = rows[variant]
        difference, p_value = "–", "–" if row.p_value is None else f"{row.p_value:.3f}"
        if row.difference is not None:
            difference = f"{row.difference.mean:+.3f} {_interval(row.difference, '+')}".strip()
        shown = _interval(row.estimate) or "–"
        cells.append([variant, ", ".join(map(str, row.seeds)), f"{row.estimate.mean:.3f}", shown, difference, p_value, row.verdict, *paper])
    return header, cells


def _interval(found: Estimate, sign: str = "") -> str:
    return "" if found.low is None or found.high is None else f"[{found.low:{sign}.3f}, {found.high:{sign}.3f}]"


def _known(found: Estimate | None) -> Estimate:
    assert found is not None
    return found


def _matrix(results: VariantResults, variant: str, metric: str) -> tuple[list[int], NDArray[np.float64]] | None:
    """The seeds that have the metric, with ``[S, Q]`` values per query where all of them keep the same queries, else ``[S]``."""
    seeds = [s for s in results.seeds(variant) if metric in results.values[variant, s]]
    if not seeds:
        return None
    kept = [results.per_query.get((variant, s, metric)) for s in seeds]
    first = kept[0]
    if first and all(k is not None and k.keys() == first.keys() for k in kept):
        return seeds, np.array([[k[q] for q in first] for k in kept if k is not None])
    return seeds, np.array([results.values[variant, s][metric] for s in seeds], np.float64)


def _difference(results: VariantResults, variant: str, metric: str) -> Estimate | None:
    """To the baseline, over the seeds of both; per query where both have values of the same queries."""
    seeds = [
        s for s in results.seeds(variant)
        if metric in results.values[variant, s] and metric in results.values.get((results.baseline, s), {})
    ]  # fmt: skip
    if not seeds:
        return None
    ours, theirs = ([results.per_query.get((v, s, metric)) for s in seeds] for v in (variant, results.baseline))
    first = ours[0]
    if first and all(k is not None and k.keys() == first.keys() for k in (*ours, *theirs)):
        left, right = (np.array([[k[q] for q in first] for k in kept if k is not None]) for kept in (ours, theirs))
    else:
        left, right = (np.array([results.values[v, s][metric] for s in seeds]) for v in (variant, results.baseline))
    return paired_estimate(left, right)


def _per_query(run: RunData, metric: str) -> dict[str, float]:
    """Query -> value of a metric of a full name; empty for one that is not of single queries."""
    model, _, rest = metric.partition("/")
    collection, _, name = rest.rpartition("/")
    try:
        return run.per_query(model, collection, name)
    except UserError:
        return {}
