"""An ablation's comparison as tables: blocks of cells for the terminal and the page, CSV, and LaTeX (booktabs)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_e5.evaluation.statistics.seed_significance import Estimate
from lightning_e5.report.tables.table import Column, Table
from lightning_e5.results.comparison import IS_BASELINE, Cell, Comparison, Row
from lightning_e5.results.durations import duration

ABSENT = "–"
_ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "–": "--", "−": "$-$",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Block:
    """One table of text: ``title``, column titles, cells, and how many columns at the left are words, not numbers."""

    title: str
    header: list[str]
    rows: list[list[str]]
    words: int = 1

    @property
    def table(self) -> Table:
        """Its cells as a table."""
        columns = [Column(title, kind="words" if place < self.words else "number") for place, title in enumerate(self.header)]
        return Table(columns, [list(row) for row in self.rows])


def blocks(comparison: Comparison) -> list[Block]:
    """One table per metric, the paper's headline beside the first; all of the paper's figures; what the variants cost."""
    found = [_metric_block(comparison, name, with_paper=name == comparison.metrics[0]) for name in comparison.metrics]
    columns = paper_columns(comparison)
    if len(columns) > 1:
        rows = [[row.variant, *(_paper(comparison, row, c) for c in columns)] for row in comparison.rows]
        found.append(Block("The paper's own figures (and their difference to its baseline)", ["variant", *columns], rows))
    return [*found, _cost_block(comparison)]


def paper_columns(comparison: Comparison) -> list[str]:
    """The titles of the paper's figures, in the order of the YAML, as far as a variant has one."""
    there = {column for row in comparison.rows for column in row.paper}
    return [column for column in map(str, (comparison.data.paper or {}).get("figures") or {}) if column in there]


def notes(comparison: Comparison) -> list[str]:
    """How the figures are to be read, as sentences; what is missing first."""
    found = [f"{row.variant}: {row.seeds_shown} finished; {row.trouble}." for row in comparison.rows if row.unfinished]
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
    if any(row.flags for row in comparison.rows):
        found.append("Unequal compute: pairs or tokens differ from the baseline's by more than 5%, so the row shows more than its variant.")
    if comparison.data.paper:
        paper = comparison.data.paper
        found.append(f"Paper: {paper.get('source') or 'its figures'}{'; ' + str(paper['note']) if paper.get('note') else ''}.")
    return found


def as_text(comparison: Comparison) -> str:
    """All of it for a terminal."""
    data = comparison.data
    lines = [f"{data.name} ({data.scale}): {data.question}"]
    if data.held_constant:
        lines.append(f"held constant: {', '.join(data.held_constant)}")
    for block in blocks(comparison):
        lines += ["", block.title, *block.table.lines()]
    return "\n".join([*lines, "", *notes(comparison)])


def as_csv(comparison: Comparison) -> str:
    """One line per variant and metric, every value in full; an absent one is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    seeds = sorted({seed for row in comparison.rows for seed in (*row.seeds, *row.unfinished)})
    columns = paper_columns(comparison)
    spread = ["mean", "low", "high", "difference", "difference_low", "difference_high", "p", "p_holm", "verdict"]
    costs = ["pairs_seen", "tokens_seen", "optimizer_steps", "seconds", "unequal_compute"]
    writer.writerow(
        ["variant", "metric", "seeds_finished", "seeds_planned", "unfinished", *spread, *(f"seed_{s}" for s in seeds), *costs,
         *(f"paper: {column}" for column in columns)]
    )  # fmt: skip
    for row in comparison.rows:
        for name in comparison.metrics:
            cell = row.cells.get(name)
            figures = _csv_figures(cell) if cell else [None] * len(spread)
            values = [cell.per_seed.get(s) if cell else None for s in seeds]
            spent = [row.pairs, row.tokens, row.steps, row.seconds, "; ".join(row.flags)]
            counts = [len(row.seeds), len(row.seeds) + len(row.unfinished), row.trouble]
            writer.writerow([row.variant, name, *counts, *figures, *values, *spent, *(row.paper.get(c) for c in columns)])
    return text.getvalue()


def as_latex(comparison: Comparison) -> str:
    """A booktabs table: mean ± half the interval's width, a star where a difference to the baseline is claimed."""
    columns = paper_columns(comparison)
    header = ["variant", "seeds", *comparison.metrics, *(f"paper: {column}" for column in columns)]
    lines = [
        f"% {_comment(comparison.data.name)}, scale {_comment(comparison.data.scale)}; needs \\usepackage{{booktabs}}",
        f"\\begin{{tabular}}{{ll{'r' * (len(header) - 2)}}}",
        "\\toprule",
        " & ".join(latex(title) for title in header) + r" \\",
        "\\midrule",
    ]
    for row in comparison.rows:
        seeds = str(len(row.seeds)) if not row.unfinished else row.seeds_shown.removesuffix(" seeds")
        cells = [_latex_cell(row.cells.get(name)) for name in comparison.metrics]
        paper = [f"{row.paper[c]:g}" if c in row.paper else "--" for c in columns]
        flag = r"$^\dagger$" if row.flags else ""
        lines.append(" & ".join([latex(row.variant) + flag, latex(seeds), *cells, *paper]) + r" \\")
    lines += ["\\bottomrule", "\\end{tabular}"]
    lines.append("% *: differs from the baseline (Holm's p over the table at most 0.05); ±: half the 95% interval of seeds and queries")
    lines += ["% dagger: unequal compute"] if any(row.flags for row in comparison.rows) else []
    return "\n".join(lines) + "\n"


def latex(text: str) -> str:
    """Plain text with LaTeX's special characters escaped, on one line."""
    return "".join(_ESCAPES.get(character, character) for character in _comment(text))


def _comment(text: str) -> str:
    return re.sub(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff]+", " ", text)


def _latex_cell(cell: Cell | None) -> str:
    if cell is None:
        return "--"
    star = r"$^{*}$" if cell.verdict in ("higher", "lower") else ""
    half = "" if cell.mean.low is None or cell.mean.high is None else rf" $\pm$ {number((cell.mean.high - cell.mean.low) / 2)}"
    return f"{number(cell.mean.mean)}{half}{star}"


def _metric_block(comparison: Comparison, name: str, with_paper: bool) -> Block:
    columns = paper_columns(comparison)[:1] if with_paper else []
    title = f"{name} ({'; '.join(_noises(comparison, name))})"
    header = ["variant", "verdict", "seeds", "mean", "95% interval", f"difference to {comparison.data.baseline}", "p (Holm)"]
    header += [f"paper: {column}" for column in columns]
    rows = [[*_figures(row, name, row is comparison.baseline), *(_paper(comparison, row, c) for c in columns)] for row in comparison.rows]
    return Block(title, header, rows, words=2)


def _noises(comparison: Comparison, name: str) -> list[str]:
    cell = comparison.baseline.cells.get(name)
    if cell is None or cell.mean.low is None:
        return ["no interval"]
    kinds = [kind for kind, there in (("seeds", cell.mean.seed_noise), ("queries", cell.mean.query_noise)) if there]
    return [f"intervals over {' and '.join(kinds)}"]


def _figures(row: Row, name: str, is_baseline: bool) -> list[str]:
    cell = row.cells.get(name)
    if cell is None:
        state = "not measured" if row.seeds else "no run is finished"
        return [row.variant, state, row.seeds_shown, *[ABSENT] * 4]
    seeds = row.seeds_shown if len(cell.per_seed) == len(row.seeds) else f"{len(cell.per_seed)} of {len(row.seeds)} measured it"
    verdict = IS_BASELINE if is_baseline else cell.verdict
    p_value = ABSENT if cell.p_holm is None else "< 0.001" if cell.p_holm < 0.001 else f"{cell.p_holm:.3f}"
    return [row.variant, verdict, seeds, number(cell.mean.mean), _interval(cell.mean), _difference(cell.difference), p_value]


def _cost_block(comparison: Comparison) -> Block:
    flagged = any(row.flags for row in comparison.rows)
    header = ["variant", *(["compute"] if flagged else []), "seeds", "pairs seen", "tokens", "optimizer steps", "wall time"]
    rows = []
    for row in comparison.rows:
        counts = [ABSENT if c is None else f"{c:,.0f}" for c in (row.pairs, row.tokens, row.steps)]
        flag = [f"unequal compute ({', '.join(row.flags)})" if row.flags else "equal" if row.seeds else ABSENT] if flagged else []
        rows.append([row.variant, *flag, row.seeds_shown, *counts, duration(row.seconds)])
    return Block("What a variant's model cost (means over seeds)", header, rows, words=2 if flagged else 1)


def _paper(comparison: Comparison, row: Row, column: str) -> str:
    value, base = row.paper.get(column), comparison.baseline.paper.get(column)
    if value is None:
        return ABSENT
    beside = "" if base is None or row.variant == comparison.data.baseline else f" ({value - base:+.4g})"
    return f"{value:g}{beside}"


def _difference(difference: Estimate | None) -> str:
    if difference is None:
        return ABSENT
    if difference.low is None or difference.high is None:
        return f"{difference.mean:+.4f}"
    return f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"


def _interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return ABSENT
    return f"[{number(estimate.low)}, {number(estimate.high)}]"


def number(value: float) -> str:
    """Four digits after the point up to 10 in size, four significant ones above."""
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def _csv_figures(cell: Cell) -> Sequence[object]:
    mean, difference = cell.mean, cell.difference
    apart = [difference.mean, difference.low, difference.high, difference.p_value] if difference else [None] * 4
    return [mean.mean, mean.low, mean.high, *apart, cell.p_holm, cell.verdict]
