"""An ablation's pictures: bars with intervals, learning curves with the seeds' band, differences query by query."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray

from lightning_e5.report.figures.drawing import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    RED,
    SKY,
    STYLE,
    WIDTH,
    grid,
    points,
    running_mean,
    unique_legend,
)
from lightning_e5.report.tables.comparison import shown
from lightning_e5.results.comparison import AblationComparison, Cell, Row

GREEN = "#009E73"
#: Okabe and Ito's colours in the order in which variants take them; the baseline is drawn in ink.
_COLOURS = (BLUE, ORANGE, GREEN, RED, "#CC79A7", SKY)
_PER_PANEL = len(_COLOURS)
_GRID_POINTS = 200


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes, the same for the same figure."""
    buffer = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()


def metric_bars(comparison: AblationComparison, names: Sequence[str] | None = None) -> Figure | None:
    """Two panels per metric: every variant's mean with its 95% interval and, as dots, its seeds; its difference to the baseline.

    The means' intervals may overlap where a difference is shown: all variants share the queries' variance, and differences are
    paired over them. Bars start at 0 only where a metric's values do not all lie close together: else the panel shows dots on a cut axis.
    """
    panels = [(n, [r for r in comparison.rows if n in r.cells]) for n in names or comparison.metrics]
    panels = [(name, rows) for name, rows in panels if rows]
    if not panels:
        return None
    with rc_context(STYLE):
        heights = [len(rows) + 2.9 for _, rows in panels]
        figure = Figure(figsize=(WIDTH, 0.33 * sum(heights) + 0.4), layout="constrained")
        axes = figure.subplots(len(panels), 2, height_ratios=heights, width_ratios=(3, 2), squeeze=False)
        for (left, right), (name, rows) in zip(axes, panels, strict=True):
            _bars(left, comparison, name, rows)
            _differences(right, comparison, name, rows)
        figure.legend(*unique_legend(axes[:, 0]), loc="outside lower center", ncols=3)
    return figure


def learning_curves(comparison: AblationComparison) -> Figure | None:
    """The smoothed loss of each training stage over the pairs seen: a line per variant, a band from its lowest to highest seed."""
    curves = _curves(comparison)
    stages = list(dict.fromkeys(stage for by_stage in curves.values() for stage in by_stage))
    panels = []
    for stage in stages:
        having = [v for v in curves if stage in curves[v] and v != comparison.data.baseline]
        parts = [having[i : i + _PER_PANEL] for i in range(0, len(having), _PER_PANEL)] or [[]]
        panels += [(stage, part) for part in parts]
    if not panels:
        return None
    with rc_context(STYLE):
        figure, axes = grid(len(panels), height=3.4)
        for ax, (stage, variants) in zip(axes, panels, strict=True):
            base = curves.get(comparison.data.baseline, {})
            lines = {v: curves[v][stage] for v in variants} | ({comparison.data.baseline: base[stage]} if stage in base else {})
            units = {unit for _, _, unit in lines.values()}
            for colour, (variant, (x, losses, _)) in zip((*_COLOURS[: len(variants)], INK), lines.items(), strict=False):
                ax.fill_between(x, losses.min(0), losses.max(0), color=colour, alpha=0.15, linewidth=0)
                ax.plot(x, losses.mean(0), color=colour, linewidth=1.6, label=variant)
            ax.set_title(f"stage {stage}")
            ax.set_xlabel(" / ".join(sorted(units)))
            ax.set_ylabel("loss (nats), running mean")
            ax.xaxis.set_major_formatter(EngFormatter(sep=""))
            ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            ax.legend(loc="upper right", fontsize=8)
    return figure


def query_differences(comparison: AblationComparison) -> Figure | None:
    """The headline's differences to the baseline, query by query, sorted: is it all queries a little or a few by much?"""
    name = next((n for n in comparison.metrics if _queries(comparison.baseline, n) is not None), None)
    if name is None:
        return None
    base = _queries(comparison.baseline, name)
    assert base is not None
    rows = [(r.name, v - base) for r in comparison.rows if r is not comparison.baseline and (v := _queries(r, name)) is not None]
    if not rows:
        return None
    reach = max(1e-9, *(float(np.abs(d).max()) for _, d in rows)) * 1.05
    with rc_context(STYLE):
        figure, axes = grid(len(rows), height=2.3)
        for ax, (variant, difference) in zip(axes, rows, strict=True):
            ordered = np.sort(difference)[::-1]
            share = (np.arange(len(ordered)) + 0.5) / len(ordered) * 100
            ax.fill_between(share, ordered, 0, where=ordered >= 0, color=BLUE, alpha=0.7, linewidth=0, step="mid")
            ax.fill_between(share, ordered, 0, where=ordered <= 0, color=ORANGE, alpha=0.7, linewidth=0, step="mid")
            ax.axhline(0, color=INK, linewidth=0.8)
            ax.set_title(f"{variant}: {(difference > 0).mean():.0%} up, {(difference < 0).mean():.0%} down")
            ax.set_xlabel("queries, sorted (%)")
            ax.set_ylabel(f"difference in\n{name.rsplit('/', 1)[-1]}")
            ax.set_xlim(0, 100)
            ax.set_ylim(-reach, reach)
    return figure


def _bars(ax: Axes, comparison: AblationComparison, name: str, rows: Sequence[Row]) -> None:
    cells = [row.cells[name] for row in rows]
    ends = [v for c in cells for v in (c.mean.low, c.mean.high, c.mean.mean, *c.per_seed.values()) if v is not None]
    low, high = min(ends), max(ends)
    cut = low > 0 and (high - low) < 0.35 * high
    for place, (row, cell) in enumerate(zip(rows, cells, strict=True)):
        colour, label = _look(comparison, row, cell)
        if cut:
            ax.plot(cell.mean.mean, place, "D", color=colour, markersize=7, label=label)
        else:
            ax.barh(place, cell.mean.mean, 0.62, color=colour, alpha=0.55, label=label)
        if cell.mean.low is not None and cell.mean.high is not None:
            ax.plot([cell.mean.low, cell.mean.high], [place, place], color=colour, linewidth=1.8, marker="|", markersize=9)
        ax.plot([*cell.per_seed.values()], [place + 0.22] * len(cell.per_seed), ".", color="#4A535D", markersize=5, label="single seeds")
        ax.annotate(shown(cell.mean.mean), (max(v for v in (cell.mean.high, *cell.per_seed.values()) if v is not None), place),
                    (8, 0), textcoords="offset points", va="center")  # fmt: skip
    ax.set_yticks(range(len(rows)), [row.name for row in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    margin = 0.08 * (high - low if cut else high) or 0.05
    ax.set_xlim(low - margin if cut else min(0.0, low - margin), high + 2 * margin)
    ax.set_title(name)
    ax.set_xlabel(f"mean over seeds, 95% interval{'; axis does not start at 0' if cut else ''}", fontsize=9)
    ax.grid(visible=False, axis="y")


def _differences(ax: Axes, comparison: AblationComparison, name: str, rows: Sequence[Row]) -> None:
    for place, row in enumerate(rows):
        cell = row.cells[name]
        if cell.difference is None:
            continue
        colour, _ = _look(comparison, row, cell)
        ax.plot(cell.difference.mean, place, "D", color=colour, markersize=7)
        if cell.difference.low is not None and cell.difference.high is not None:
            ax.plot([cell.difference.low, cell.difference.high], [place, place], color=colour, linewidth=1.8, marker="|", markersize=9)
    ax.axvline(0, color=INK, linewidth=0.8)
    ax.set_yticks([])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlabel(f"difference to {comparison.data.baseline}, 95% interval", fontsize=9)
    ax.grid(visible=False, axis="y")
    ax.xaxis.set_major_locator(MaxNLocator(5))


def _look(comparison: AblationComparison, row: Row, cell: Cell) -> tuple[str, str]:
    """Colour and legend of a variant's figure."""
    if row is comparison.baseline:
        return INK, "baseline"
    if cell.decision in ("higher", "lower"):
        return (GREEN if cell.decision == "higher" else ORANGE), f"{cell.decision} than the baseline"
    if cell.difference is None or cell.difference.low is None:
        return GREY, "not tested"
    return BLUE, "no difference to the baseline shown"


def _queries(row: Row, name: str) -> NDArray[np.float64] | None:
    cell = row.cells.get(name)
    return None if cell is None or cell.per_query is None else cell.per_query.mean(0)


Curve = tuple[NDArray[np.float64], NDArray[np.float64], str]


def _curves(comparison: AblationComparison) -> dict[str, dict[str, Curve]]:
    """Variant -> training stage -> (pairs or steps ``[N]``, losses ``[S, N]`` on them, their unit)."""
    found: dict[str, dict[str, Curve]] = {}
    for row in comparison.rows:
        by_stage: dict[str, list[tuple[NDArray[np.float64], NDArray[np.float64], str]]] = {}
        for seed in row.seeds:
            for stage, rows in comparison.data.run(row.name, seed).learning_curves().items():
                if (read := points(rows)) is not None:
                    by_stage.setdefault(stage, []).append(read)
        found[row.name] = {stage: _on_one_axis(seeds) for stage, seeds in by_stage.items()}
    return found


def _on_one_axis(seeds: Sequence[Curve]) -> Curve:
    start, end = max(float(x[0]) for x, _, _ in seeds), min(float(x[-1]) for x, _, _ in seeds)
    axis = np.linspace(start, max(start, end), min(_GRID_POINTS, max(len(x) for x, _, _ in seeds)))
    smooth = [np.interp(axis, x, running_mean(loss, max(1, math.ceil(len(loss) / 15)))) for x, loss, _ in seeds]
    return axis, np.array(smooth), seeds[0][2]
