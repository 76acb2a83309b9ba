"""The figure that lays an ablation's own figures beside the paper's."""

from __future__ import annotations

from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_e5.report.figures.drawing import BLUE, GREY, INK, SKY, STYLE, WIDTH
from lightning_e5.report.tables.comparison import paper_columns
from lightning_e5.results.comparison import AblationComparison

#: Columns of the paper's table that are drawn; of more, the first.
MOST_COLUMNS = 2


def paper_beside(comparison: AblationComparison) -> Figure | None:
    """The headline of every variant, and beside it the paper's figures; None where the ablation quotes none.

    The axes differ: other data, other sizes. What can be compared is the order of the variants, not the height of a bar.
    """
    name = comparison.metrics[0]
    columns = paper_columns(comparison)[:MOST_COLUMNS]
    rows = [row for row in comparison.rows if name in row.cells or row.paper]
    if not columns:
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.4 * len(rows) + 1.9), layout="constrained")
        panels = figure.subplots(1, 1 + len(columns), sharey=True, width_ratios=[1.6, *[1.0] * len(columns)])
        ours = [row.cells[name].mean if name in row.cells else None for row in rows]
        is_baseline = [row is comparison.baseline for row in rows]
        _bars(panels[0], [None if m is None else m.mean for m in ours], is_baseline, BLUE, "{:.3f}", [None if m is None else m.high for m in ours])
        for place, mean in enumerate(ours):
            if mean is not None and mean.low is not None and mean.high is not None:
                panels[0].plot([mean.low, mean.high], [place, place], color=INK, linewidth=1.6, marker="|", markersize=9, label="95% interval")
        panels[0].set_title(f"ours: {name}")
        panels[0].set_xlabel(f"{name.rsplit('/', 1)[-1]}, mean over seeds")
        source = (comparison.data.paper or {}).get("source")
        for ax, column in zip(panels[1:], columns, strict=True):
            _bars(ax, [row.paper.get(column) for row in rows], is_baseline, SKY, "{:g}", [None] * len(rows))
            ax.set_title(f"paper{f', {source}' if source else ''}")
            ax.set_xlabel(column)
        panels[0].set_yticks(range(len(rows)), [row.name for row in rows])
        panels[0].set_ylim(len(rows) - 0.5, -0.5)
        handles: dict[str, Any] = {}
        for ax in panels:
            handles.update(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4)
    return figure


def _bars(
    ax: Axes, values: list[float | None], is_baseline: list[bool], colour: str, form: str, ends: list[float | None]
) -> None:
    known = [v for v in values if v is not None]
    for place, (value, baseline, end) in enumerate(zip(values, is_baseline, ends, strict=True)):
        if value is None:
            ax.annotate("not given", (0, place), (6, 0), textcoords="offset points", va="center", color="#59636e", fontsize=9)
            continue
        label = "baseline" if baseline else ("ours" if colour == BLUE else "the paper's")
        ax.barh(place, value, 0.6, color=GREY if baseline else colour, label=label)
        reach = max(value, end if end is not None else value)
        ax.annotate(form.format(value), (max(reach, 0), place), (8, 0), textcoords="offset points", va="center")
    high = max([*known, *(e for e in ends if e is not None), 1e-9])
    low = min([0.0, *known])
    ax.set_xlim(1.1 * low, high + 0.28 * (high - low))
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.grid(visible=False, axis="y")
