"""Single runs compared with the first of them: what differs between them, then model by model; rows and figures are those of `Comparison`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lightning_e5.errors import UserError
from lightning_e5.evaluation.statistics.paired_test import paired_tests
from lightning_e5.evaluation.statistics.seed_significance import Estimate
from lightning_e5.results.comparison import Cell, Comparison, Row, decided, full_names, other_compute, suggested
from lightning_e5.results.run import MAIN_METRIC, RunData
from lightning_e5.results.same_tests import other_tests
from lightning_e5.results.what_differs import Differing, what_differs

#: Behind the name of a collection that is not the first run's collection of that name.
OTHER_TEST = "another test"


@dataclass(frozen=True, slots=True)
class RunsComparison(Comparison):
    """Single runs: ``names``; ``differing``: what differs between them; ``apart``: why figures stand without a difference, as sentences."""

    names: tuple[str, ...]
    differing: tuple[Differing, ...]
    apart: tuple[str, ...]


def compare_runs(runs: Sequence[RunData], metrics: Sequence[str] | None = None) -> RunsComparison:
    """Compare finished runs with the first: every model of theirs with its model of that name on the same collection.

    The differences are of the first metric that has values per query, and about the queries alone, not the training seed. Where a
    run answered other queries than the first, or searched another corpus, its figures stand alone, under another name of the collection.

    Args:
        runs: of different directories.
        metrics: full names (``e5/python-docs/ndcg@10``, ``filter/recall``) or their ends (``ndcg@10``); the first run's
            headline by default.

    Raises:
        UserError: an unfinished run, or a metric that no run has.
    """
    if not runs:
        raise UserError("compare: no run was given")
    names = _run_names(runs)
    by_name = dict(zip(names, runs, strict=True))
    apart = {name: other_tests(names[0], runs[0], name, by_name[name]) for name in names[1:]}
    found: list[tuple[Row, str, dict[str, float]]] = []  # a row still without cells, its metrics' prefix, full names -> values
    for name, run in by_name.items():
        own = dict(run.metrics)
        for r in run.results():
            prefix = f"{r.model}/{r.collection}/"
            own = {metric: value for metric, value in own.items() if not metric.startswith(prefix)}
            row = Row(name, r.model, r.collection, pairs=r.pairs, tokens=r.tokens, steps=r.steps, seconds=r.seconds)
            found.append((row, prefix, {f"{prefix}{metric}": value for metric, value in r.metrics.items()}))
        found.append((Row(name, seconds=run.seconds_spent()), "", own))
    wanted_metrics = list(metrics or runs[0].config.get("headline") or [MAIN_METRIC])
    known = dict.fromkeys(metric for _, _, values in found for metric in values)
    columns: dict[str, None] = {}
    for wanted in wanted_metrics:
        chosen = full_names(wanted, known)
        if metrics is not None and not chosen:
            raise UserError(f"--metric {wanted}: no run has it{suggested(wanted, known)}")
        for row, prefix, values in found:
            for metric in [m for m in values if m in chosen]:
                row.cells[metric.removeprefix(prefix)] = Cell(Estimate(values[metric]))
                columns.setdefault(metric.removeprefix(prefix))
    rows = [row for row, _, _ in found if row.cells]
    if not rows:
        raise UserError(f"no run has any of the metrics {', '.join(wanted_metrics)}; name others with --metric")
    order = list(dict.fromkeys((row.model, row.collection) for row in rows))
    rows.sort(key=lambda row: (not row.model, order.index((row.model, row.collection))))  # a model's runs one below the other
    first = {(row.model, row.collection): row for row in rows if row.name == names[0]}
    _test_queries([row for row in rows if row.collection not in apart.get(row.name, {})], first, by_name, list(columns))
    for n, row in enumerate(rows := decided(rows)):
        if (base := first.get((row.model, row.collection))) is not None:
            rows[n] = row = replace(row, flags=other_compute((row.pairs, row.tokens or 0), (base.pairs, base.tokens or 0)))
        if row.collection in apart.get(row.name, {}):
            rows[n] = replace(row, collection=f"{row.collection} ({OTHER_TEST})")
    said = [f"{sentence}: no differences are given." for of_run in apart.values() for sentence in of_run.values()]
    return RunsComparison(f"Comparison of {', '.join(names)}", tuple(columns), tuple(rows), tuple(names), tuple(what_differs(by_name)), tuple(said))


def _run_names(runs: Sequence[RunData]) -> list[str]:
    """The runs' names, or their paths where two share a name."""
    names = [run.name for run in runs]
    paths = [str(run.path) for run in runs]
    if len(set(paths)) < len(paths):
        raise UserError(f"compare: {next(p for p in paths if paths.count(p) > 1)} was given twice")
    return [path if names.count(name) > 1 else name for name, path in zip(names, paths, strict=True)]


def _test_queries(rows: Sequence[Row], first: dict[tuple[str, str], Row], runs: dict[str, RunData], columns: Sequence[str]) -> None:
    """Put the paired differences to the first run into the cells of the first metric that has values per query."""

    def per_query(row: Row, metric: str) -> dict[str, float]:
        place = row.model, row.collection, metric
        there = row.model and metric in row.cells and runs[row.name].has_per_query(*place)
        return runs[row.name].per_query(*place) if there else {}

    for metric in columns:
        values = {id(row): per_query(row, metric) for row in rows}
        if not any(values.values()):
            continue
        pairs = []
        for row in rows:
            base = first.get((row.model, row.collection))
            ours, theirs = values[id(row)], values[id(base)] if base is not None else {}
            if base is not row and ours and ours.keys() == theirs.keys():
                pairs.append((row, [*ours.values()], [theirs[query] for query in ours]))
        for (row, _, _), d in zip(pairs, paired_tests([(ours, theirs) for _, ours, theirs in pairs]), strict=True):
            tested = Estimate(d.mean, d.low, d.high, d.p_value, query_noise=True)
            row.cells[metric] = replace(row.cells[metric], difference=tested)
        return
