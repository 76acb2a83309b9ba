"""Several runs side by side: their metrics, what they cost, and the paired difference of each to the first.

No row says more than its data: runs judged on other test sets are refused, other compute is flagged, and a difference
is claimed only where its interval leaves out 0 and its p-value holds after Holm's correction over the table.
"""

from __future__ import annotations

import csv as csv_module
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightning_e5.errors import UserError, suggestion
from lightning_e5.evaluation.statistics.paired_rows import paired_differences
from lightning_e5.evaluation.statistics.significance import NO_DIFFERENCE, Difference, holm
from lightning_e5.files.storage import write_text
from lightning_e5.report import html as markup
from lightning_e5.results.durations import duration
from lightning_e5.results.run import MAIN_METRIC, Result, RunData
from lightning_e5.results.same_tests import check_same_tests

#: A row's pairs or tokens may differ by this share from the first run's before the row is flagged.
TOLERANCE = 0.05
_LEVEL = 0.05
_ABSENT = "–"
_NOTES = (
    "Difference: to the first run's same model, paired over the same queries, with its 95% interval; claimed only "
    "where Holm's correction over this table leaves p at most 0.05. It is about the queries, not the training seed.",
    "Pairs, tokens, steps, time: of the stages that the model's weights went through.",
)


@dataclass
class _Row:
    """One line of the table; ``result`` is None in the line of a run's own metrics."""

    run: str
    result: Result | None
    values: dict[str, float]
    seconds: float | None
    difference: Difference | None = None
    verdict: str = ""
    flags: list[str] = field(default_factory=list)


def compare(
    runs: Sequence[Path], *, metrics: Sequence[str] | None = None, csv: str | None = None, html: str | None = None
) -> str:
    """The table of several finished runs as text for a terminal.

    Args:
        runs: run directories; the first is what the others are compared with.
        metrics: full names (``e5/python-docs/ndcg@10``, ``filter/recall``) or their ends (``ndcg@10``); the first
            run's headline by default.
        csv: file that receives the table as CSV.
        html: file that receives the table as a page of its own.

    Raises:
        UserError: an unfinished run, runs judged on different test sets, a metric that no run has, or a ``csv`` or
            ``html`` that is a directory.
    """
    for option, file in (("--csv", csv), ("--html", html)):
        if file is not None and Path(file).is_dir():
            raise UserError(f"{option} {file}: is a directory, not a file")
    loaded = [RunData(path) for path in runs]
    if not loaded:
        raise UserError("compare: no run was given")
    names = _labels(loaded)
    for name, run in zip(names[1:], loaded[1:], strict=True):
        check_same_tests(names[0], loaded[0], name, run)
    wanted = list(metrics or loaded[0].config.get("headline") or [MAIN_METRIC])
    rows, columns = _rows(names, loaded, wanted, strict=metrics is not None)
    measured = _judge(rows, dict(zip(names, loaded, strict=True)), columns)
    _flag(rows, names[0])
    header, cells = _shown(rows, columns, measured)
    if csv is not None:
        write_text(Path(csv), _as_csv(rows, columns))
    if html is not None:
        body = [
            markup.table(
                header,
                cells,
                numbers=_number_columns(header),
                texts=[c for c, t in enumerate(header) if t == "compute"],
            ),
            *(markup.paragraph(n, "note") for n in _NOTES),
        ]
        write_text(Path(html), markup.page(f"Comparison of {', '.join(names)}", body))
    return "\n".join([*_aligned(header, cells), "", *_NOTES])


def _labels(runs: Sequence[RunData]) -> list[str]:
    """The runs' names, or their paths where two share a name."""
    names = [run.name for run in runs]
    paths = [str(run.path) for run in runs]
    if len(set(paths)) < len(paths):
        raise UserError(f"compare: {next(p for p in paths if paths.count(p) > 1)} was given twice")
    return [path if names.count(name) > 1 else name for name, path in zip(names, paths, strict=True)]


def _rows(
    names: Sequence[str], runs: Sequence[RunData], wanted: Sequence[str], *, strict: bool
) -> tuple[list[_Row], list[str]]:
    """The rows with the wanted metrics, and the metrics' names as columns."""
    every: list[tuple[_Row, dict[str, tuple[str, float]]]] = []  # a row still without values, and full names -> column and value
    for name, run in zip(names, runs, strict=True):
        for result in run.results():
            full = {f"{result.model}/{result.collection}/{metric}": (metric, value) for metric, value in result.metrics.items()}
            every.append((_Row(name, result, {}, result.seconds), full))
        own = {k: (k, v) for k, v in run.metrics.items() if k not in run.figures}
        every.append((_Row(name, None, {}, sum(t["seconds"] for t in run.times().values())), own))
    columns: list[str] = []
    for metric in wanted:
        found = False
        for row, full in every:
            for key in [k for k in full if k == metric or k.endswith(f"/{metric}")]:
                column, value = full[key]
                row.values[column] = value
                found = True
                if column not in columns:
                    columns.append(column)
        if strict and not found:
            raise UserError(f"--metric {metric}: no run has it{suggestion(metric, _known(full for _, full in every))}")
    rows = [row for row, _ in every if row.values]
    order = list(dict.fromkeys(_key(row) for row in rows))
    rows.sort(key=lambda row: (row.result is None, order.index(_key(row))))  # a model's runs one below the other
    if not rows:
        raise UserError(f"no run has any of the metrics {', '.join(wanted)}; name others with --metric")
    return rows, columns


def _known(metrics: Iterable[Iterable[str]]) -> set[str]:
    """Every metric's full name and its last part."""
    names = {name for full in metrics for name in full}
    return names | {name.rsplit("/", 1)[-1] for name in names}


def _judge(rows: Sequence[_Row], runs: dict[str, RunData], columns: Sequence[str]) -> str | None:
    """Give rows their paired difference to the first run, on the first column that has values per query: its name."""
    values = {c: [_per_query(runs[row.run], row, c) for row in rows] for c in columns}
    measured = next((c for c in columns if any(values[c])), None)
    if measured is None:
        return None
    first = {_key(row): v for row, v in zip(rows, values[measured], strict=True) if row.run == next(iter(runs))}
    compared: list[tuple[_Row, list[float], list[float]]] = []
    for row, ours in zip(rows, values[measured], strict=True):
        theirs = first.get(_key(row))
        if not ours or not theirs or row.run == next(iter(runs)) or ours.keys() != theirs.keys():
            continue
        compared.append((row, [*ours.values()], [theirs[q] for q in ours]))
    tested: list[tuple[_Row, Difference]] = []
    differences = paired_differences([(ours, theirs) for _, ours, theirs in compared])
    for (row, left, right), difference in zip(compared, differences, strict=True):
        row.difference, row.verdict = difference, NO_DIFFERENCE
        if left != right:  # the same BM25 in both runs is not one more question that the table asks
            tested.append((row, difference))
    adjusted = holm([difference.p_value for _, difference in tested]) if tested else []
    for (row, difference), p_value in zip(tested, adjusted, strict=True):
        if difference.verdict != NO_DIFFERENCE and p_value <= _LEVEL:
            row.verdict = "higher" if difference.mean > 0 else "lower"
    return measured


def _per_query(run: RunData, row: _Row, metric: str) -> dict[str, float]:
    """Query id -> value; empty for a metric that is not one of single queries, such as an interval's end."""
    if row.result is None or metric not in row.values:
        return {}
    place = row.result.model, row.result.collection, metric
    return run.per_query(*place) if run.has_per_query(*place) else {}


def _flag(rows: Sequence[_Row], first_run: str) -> None:
    """Flag what was trained on other amounts than the first run's same model."""
    first = {_key(row): row.result for row in rows if row.run == first_run}
    for row in rows:
        base = first.get(_key(row))
        if row.result is None or base is None:
            continue
        for what, ours, theirs in (
            ("pairs", row.result.pairs, base.pairs),
            ("tokens", row.result.tokens or 0, base.tokens or 0),
        ):
            if abs(ours - theirs) > TOLERANCE * theirs:
                row.flags.append(f"{what} {ours / theirs - 1:+.0%}" if theirs else f"{what} from 0")


def _key(row: _Row) -> tuple[str, str]:
    return (row.result.model, row.result.collection) if row.result else ("", "")


def _shown(rows: Sequence[_Row], columns: Sequence[str], measured: str | None) -> tuple[list[str], list[list[str]]]:
    compared = any(row.difference for row in rows)
    header = ["run", "model", "collection", *columns]
    header += [f"difference in {measured}", "verdict"] if compared else []
    header += ["pairs seen", "tokens", "optimizer steps", "wall time"]
    flagged = any(row.flags for row in rows)
    header += ["compute"] if flagged else []
    cells = []
    for row in rows:
        line = [row.run, *(part or _ABSENT for part in _key(row)), *(_number(row.values.get(c)) for c in columns)]
        if compared:
            d = row.difference
            line += [f"{d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]" if d else _ABSENT, row.verdict]
        costs = (row.result.pairs, row.result.tokens, row.result.steps) if row.result else (None, None, None)
        line += [_ABSENT if c is None else f"{c:,}" for c in costs] + [duration(row.seconds)]
        cells.append([*line, f"unequal compute ({', '.join(row.flags)})" if row.flags else ""] if flagged else line)
    return header, cells


def _number(value: float | None) -> str:
    if value is None:
        return _ABSENT
    return (
        f"{value:,.0f}"
        if float(value).is_integer() and abs(value) > 1
        else f"{value:.4g}"
        if abs(value) > 1
        else f"{value:.3f}"
    )


def _number_columns(header: Sequence[str]) -> list[int]:
    return [c for c, title in enumerate(header) if c > 2 and title not in ("verdict", "compute")]


def _aligned(header: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    right = set(_number_columns(header))
    widths = [max(len(line[c]) for line in (header, *cells)) for c in range(len(header))]
    lines = [
        "  ".join(t.rjust(w) if c in right else t.ljust(w) for c, (t, w) in enumerate(zip(line, widths, strict=True)))
        for line in (header, *cells)
    ]
    return [lines[0].rstrip(), "-" * len(lines[0]), *(line.rstrip() for line in lines[1:])]


def _as_csv(rows: Sequence[_Row], columns: Sequence[str]) -> str:
    """Every value in full; an absent one is an empty cell."""
    text = io.StringIO()
    writer = csv_module.writer(text, lineterminator="\n")
    costs = ["pairs_seen", "tokens_seen", "optimizer_steps", "seconds"]
    writer.writerow(
        [
            "run",
            "model",
            "collection",
            *columns,
            "difference",
            "difference_low",
            "difference_high",
            "verdict",
            *costs,
            "unequal_compute",
        ]
    )
    for row in rows:
        d, r = row.difference, row.result
        spread = [d.mean, d.low, d.high] if d else [None] * 3
        spent = [r.pairs, r.tokens, r.steps] if r else [None] * 3
        values = [row.values.get(c) for c in columns]
        writer.writerow([row.run, *_key(row), *values, *spread, row.verdict, *spent, row.seconds, "; ".join(row.flags)])
    return text.getvalue()
