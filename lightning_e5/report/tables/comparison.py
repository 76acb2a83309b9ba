"""A comparison as tables: of single runs one, of an ablation one per metric; as text, CSV, and LaTeX (booktabs)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any, get_args

from lightning_e5.evaluation.statistics.seed_significance import Estimate
from lightning_e5.report.tables.escaping import latex_comment
from lightning_e5.report.tables.table import Column, Table, number, text
from lightning_e5.report.tables.what_differs import differing_text
from lightning_e5.results.agreement import Agreement, agreement, agreements, column_beside
from lightning_e5.results.comparison import AblationComparison, Cell, Comparison, Row
from lightning_e5.results.durations import duration
from lightning_e5.results.single_runs import RunsComparison

IS_BASELINE = "the baseline"
PAPERS_DIRECTION = "the paper's direction"
_RUN_NOTES = [
    "Difference: to the first run's same model, paired over the same queries, with its 95% interval; claimed only "
    "where Holm's correction over this table leaves p at most 0.05. It is about the queries, not the training seed.",
    "Pairs, tokens, steps, time: of the stages that the model's weights went through.",
]


def tables(comparison: Comparison) -> list[Table]:
    """Of runs: one table. Of an ablation: one per metric, beside the paper's column that it answers; all of the paper's figures; the cost."""
    if not isinstance(comparison, AblationComparison):
        return [_runs_table(comparison)]
    found = [_metric_table(comparison, name) for name in comparison.metrics]
    if comparison.further:
        found.append(_further_table(comparison))
    papers = paper_columns(comparison)
    if set(papers) - {column_beside(comparison, name) for name in comparison.metrics[:1]}:  # more than stands beside the headline
        columns = [Column("variant", attrgetter("name")), *(number(paper, _paper(comparison, paper)) for paper in papers)]
        found.append(Table.of(comparison.rows, columns, "The paper's own figures (and their difference to its baseline)"))
    columns = [Column("variant", attrgetter("name"))]
    if _any_flag(comparison):
        columns.append(text("compute", lambda row: _flagged(row) or ("equal" if row.seeds else None)))
    columns += [number("seeds", attrgetter("seeds_shown")), *_costs()]
    return [*found, Table.of(comparison.rows, columns, "What a variant's model cost (means over seeds)")]


def notes(comparison: Comparison) -> list[str]:
    """How the figures are to be read, as sentences; what is missing first."""
    if not isinstance(comparison, AblationComparison):
        return [*(comparison.apart if isinstance(comparison, RunsComparison) else ()), *_RUN_NOTES]
    found = [f"{row.name}: {row.seeds_shown} finished; {row.unfinished_shown}." for row in comparison.rows if row.unfinished]
    found += [f"{variant}: not run at the scale {comparison.data.scale}: {why}." for variant, why in comparison.data.skipped.items()]
    cells = [cell for row in comparison.rows for cell in row.cells.values()]
    intervals = [cell.mean for cell in cells if cell.mean.low is not None]
    if intervals and not any(e.seed_noise for e in intervals):
        found.append(
            "The noise of the training seed is not in the intervals: no variant has several seeds that differ, so a difference "
            "is about the queries alone."
        )
    elif intervals:
        found.append(
            "Intervals (95%) hold the noise of the training seed, whose variance is pooled over the variants, and that of the "
            "queries, over which differences are paired. A difference is claimed where Holm's p over all differences of the "
            "table is at most 0.05."
        )
    if any(not e.query_noise for e in intervals):
        found.append("Metrics without values per query: the interval is over the seeds alone.")
    if any(cell.mean.low is None for cell in cells):
        found.append("No interval: a single value, or seeds that share one result, so nothing is known of its noise.")
    if _any_flag(comparison):
        found.append("Unequal compute: pairs or tokens differ from the baseline's by more than 5%, so the row shows more than its variant.")
    if paper := comparison.data.paper:
        found.append(f"Paper: {paper.get('source') or 'its figures'}{'; ' + str(paper['note']).rstrip('.') if paper.get('note') else ''}.")
    if said := _beside_the_paper(comparison):
        found.append(said)
    return found


def as_text(comparison: Comparison) -> str:
    """All of it for a terminal; of runs what differs between them first."""
    parts = [*(table.text() for table in tables(comparison)), "\n".join(notes(comparison))]
    if isinstance(comparison, AblationComparison):
        data = comparison.data
        held = [f"held constant: {', '.join(data.held_constant)}"] if data.held_constant else []
        parts.insert(0, "\n".join([f"{comparison.title}: {data.question}", *held]))
    if isinstance(comparison, RunsComparison) and (differing := differing_text(comparison)):
        parts.insert(0, differing)
    return "\n\n".join(parts)


def as_csv(comparison: Comparison) -> str:
    """Every value in full, an absent one an empty cell: a line per row of runs, or per variant and metric."""
    difference = ["difference", "difference_low", "difference_high"]
    costs = ["pairs_seen", "tokens_seen", "optimizer_steps", "seconds", "unequal_compute"]
    rows: list[list[Any]] = []
    if not isinstance(comparison, AblationComparison):
        header = ["run", "model", "collection", *comparison.metrics, *difference, "verdict", *costs]
        for row in comparison.rows:
            values = [_value(name, row) for name in comparison.metrics]
            cell = _tested(row)
            rows.append([row.name, row.model, row.collection, *values, *_difference_ends(cell), cell.decision if cell else "", *_spent(row)])
        return Table([Column(title) for title in header], rows).csv()
    seeds = sorted({seed for row in comparison.rows for seed in (*row.seeds, *row.unfinished)})
    columns = paper_columns(comparison)
    header = ["variant", "metric", "seeds_finished", "seeds_planned", "unfinished", "mean", "low", "high", *difference, "p", "p_holm", "verdict"]
    header += [*(f"seed_{seed}" for seed in seeds), *costs, *(f"paper: {column}" for column in columns), "papers_direction"]
    for row in comparison.rows:
        counts = [len(row.seeds), len(row.seeds) + len(row.unfinished), row.unfinished_shown]
        for name in comparison.metrics:
            cell = row.cells.get(name)
            figures: list[Any] = [None] * 9
            if cell is not None:
                p_value = cell.difference.p_value if cell.difference else None
                mean = cell.mean
                figures = [mean.mean, mean.low, mean.high, *_difference_ends(cell), p_value, cell.p_holm, cell.decision]
            values = [cell.per_seed.get(seed) if cell else None for seed in seeds]
            papers = [*(row.paper.get(column) for column in columns), agreement(comparison, row, name)]
            rows.append([row.name, name, *counts, *figures, *values, *_spent(row), *papers])
    return Table([Column(title) for title in header], rows).csv()


def as_latex(comparison: AblationComparison) -> str:
    """A booktabs table: mean ± half the interval's width, a star where a difference to the baseline is claimed."""

    def figure(name: str, row: Row) -> str | None:
        if (cell := row.cells.get(name)) is None:
            return None
        mean = cell.mean
        half = "" if mean.low is None or mean.high is None else f" ± {shown((mean.high - mean.low) / 2)}"
        return f"{shown(mean.mean)}{half}{'∗' if cell.decision in ('higher', 'lower') else ''}"

    table = Table.of(comparison.rows, [
        Column("variant", lambda row: row.name + "†" * bool(row.flags)),
        Column("seeds", lambda row: row.seeds_shown.removesuffix(" seeds") if row.unfinished else str(len(row.seeds))),
        *(number(name, partial(figure, name)) for name in comparison.metrics),
        *(number(f"paper: {c}", partial(_paper_value, c), "g") for c in paper_columns(comparison)),
    ])  # fmt: skip
    data = comparison.data
    lines = [f"% {latex_comment(data.name)}, scale {latex_comment(data.scale)}; needs \\usepackage{{booktabs}}", table.latex()]
    lines.append("% *: differs from the baseline (Holm's p over the table at most 0.05); ±: half the 95% interval of seeds and queries")
    lines += ["% dagger: unequal compute"] if _any_flag(comparison) else []
    return "\n".join(lines) + "\n"


def paper_columns(comparison: AblationComparison) -> list[str]:
    """The titles of the paper's figures, in the order of the YAML, as far as a variant has one."""
    there = {column for row in comparison.rows for column in row.paper}
    return [column for column in map(str, (comparison.data.paper or {}).get("figures") or {}) if column in there]


def shown(value: float) -> str:
    """Four digits after the point up to 10 in size, four significant ones above."""
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def _runs_table(comparison: Comparison) -> Table:
    tested = next((m for row in comparison.rows for m, cell in row.cells.items() if cell.difference), None)
    columns = [Column("run", attrgetter("name")), Column("model", lambda row: row.model or None), Column("collection", lambda row: row.collection or None)]
    columns += [number(m, partial(_value, m), _short) for m in comparison.metrics]
    if tested is not None:
        columns.append(number(f"difference in {tested}", lambda row: _difference(cell.difference, 3) if (cell := _tested(row)) else None))
        columns.append(text("decision", lambda row: cell.decision if (cell := _tested(row)) else ""))
    return Table.of(comparison.rows, [*columns, *_costs(), *([text("compute", _flagged)] if _any_flag(comparison) else [])])


def _metric_table(comparison: AblationComparison, name: str) -> Table:
    def decision(row: Row) -> str:
        if name not in row.cells:
            return "not measured" if row.seeds else "no run is finished"
        return IS_BASELINE if row is comparison.baseline else row.cells[name].decision

    def seeds(row: Row) -> str:
        measured = len(row.cells[name].per_seed) if name in row.cells else len(row.seeds)
        return row.seeds_shown if measured == len(row.seeds) else f"{measured} of {len(row.seeds)} measured it"

    def interval(row: Row) -> str | None:
        mean = row.cells[name].mean if name in row.cells else Estimate(0.0)
        return None if mean.low is None or mean.high is None else f"[{shown(mean.low)}, {shown(mean.high)}]"

    base = comparison.baseline.cells.get(name)
    over = [] if base is None or base.mean.low is None else [
        kind for kind, there in (("seeds", base.mean.seed_noise), ("queries", base.mean.query_noise)) if there
    ]  # fmt: skip
    columns = [
        Column("variant", attrgetter("name")),
        text("decision", decision),
        number("seeds", seeds),
        number("mean", partial(_value, name), shown),
        number("95% interval", interval),
        number(f"difference to {comparison.data.baseline}", lambda row: _difference(row.cells[name].difference, 4) if name in row.cells else None),
        number("p (Holm)", lambda row: _p_value(row.cells.get(name))),
    ]
    column = column_beside(comparison, name)
    if column is not None and column in paper_columns(comparison):
        columns.append(number(f"paper: {column}", _paper(comparison, column)))
        columns.append(text(PAPERS_DIRECTION, lambda row: agreement(comparison, row, name)))
    said = f"intervals over {' and '.join(over)}" if over else "no interval"
    return Table.of(comparison.rows, columns, f"{name} ({said})")


def _further_table(comparison: AblationComparison) -> Table:
    """The differences between variants that the ablation's file asks for, of every metric."""
    records = [(row, name, row.cells[name]) for name in comparison.metrics for row in comparison.further if name in row.cells]
    columns = [
        Column("variant", lambda r: r[0].variant),
        Column("compared with", lambda r: r[0].reference),
        Column("metric", lambda r: r[1]),
        text("decision", lambda r: r[2].decision),
        number("difference", lambda r: _difference(r[2].difference, 4)),
        number("p (Holm)", lambda r: _p_value(r[2])),
        text(PAPERS_DIRECTION, lambda r: agreement(comparison, r[0], r[1])),
    ]
    return Table.of(records, columns, "Further differences")


def _p_value(cell: Cell | None) -> str | None:
    if cell is None or cell.p_holm is None:
        return None
    return "< 0.001" if cell.p_holm < 0.001 else f"{cell.p_holm:.3f}"


def _beside_the_paper(comparison: AblationComparison) -> str:
    """``Beside the paper ...: agrees for a, b; cannot be told for c.``; empty where nothing stands beside its figures."""
    by_answer: dict[str, list[str]] = {}
    metrics = {metric for _, metric, _ in agreements(comparison)}
    for variant, metric, answer in agreements(comparison):
        by_answer.setdefault(answer, []).append(f"{variant} in {metric}" if len(metrics) > 1 else variant)
    if not by_answer:
        return ""
    answers = "; ".join(f"{answer} for {', '.join(by_answer[answer])}" for answer in get_args(Agreement) if answer in by_answer)
    return (
        f"Beside the paper, the direction of the difference to {comparison.data.baseline}: {answers}. It can be told where ours is "
        "shown; the paper's figures have no intervals and are taken as they stand. Sizes are not compared."
    )


def _tested(row: Row) -> Cell | None:
    """A single run's cell with a difference."""
    return next((cell for cell in row.cells.values() if cell.difference), None)


def _difference(difference: Estimate | None, digits: int) -> str | None:
    if difference is None:
        return None
    mean = f"{difference.mean:+.{digits}f}"
    if difference.low is None or difference.high is None:
        return mean
    return f"{mean} [{difference.low:+.{digits}f}, {difference.high:+.{digits}f}]"


def _difference_ends(cell: Cell | None) -> list[float | None]:
    found = cell.difference if cell else None
    return [found.mean, found.low, found.high] if found else [None] * 3


def _costs() -> list[Column]:
    counts = (("pairs seen", "pairs"), ("tokens", "tokens"), ("optimizer steps", "steps"))
    columns = [number(title, attrgetter(key), ",.0f") for title, key in counts]
    return [*columns, number("wall time", lambda row: duration(row.seconds))]


def _spent(row: Row) -> list[Any]:
    return [row.pairs, row.tokens, row.steps, row.seconds, "; ".join(row.flags)]


def _any_flag(comparison: Comparison) -> bool:
    return any(row.flags for row in comparison.rows)


def _flagged(row: Row) -> str:
    return f"unequal compute ({', '.join(row.flags)})" if row.flags else ""


def _paper(comparison: AblationComparison, column: str) -> Callable[[Row], str | None]:
    """The paper's figure of a row, with its difference to that of the baseline."""
    base = comparison.baseline.paper.get(column)

    def figure(row: Row) -> str | None:
        value = row.paper.get(column)
        if value is None:
            return None
        return f"{value:g}" if base is None or row is comparison.baseline else f"{value:g} ({value - base:+.4g})"

    return figure


def _paper_value(column: str, row: Row) -> float | None:
    return row.paper.get(column)


def _value(name: str, row: Row) -> float | None:
    return row.cells[name].mean.mean if name in row.cells else None


def _short(value: float) -> str:
    if abs(value) <= 1:
        return f"{value:.3f}"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"
