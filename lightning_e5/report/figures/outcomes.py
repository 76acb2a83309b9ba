"""Figures of where one model beats another: query by query, and by kinds of queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_e5.report.figures.drawing import BLUE, GREY, INK, ORANGE, STYLE, WIDTH
from lightning_e5.results.outcomes import Group, Outcomes, by_length, by_overlap

_JITTER = 0.012  # of the metric: points with the same two values lie beside each other
_CONFIRMED, _OPEN = "interval leaves out 0", "interval holds 0, or too few queries"


def query_by_query(found: Outcomes) -> Figure | None:
    """Left a point for each query, above the diagonal where the model wins; right how large the differences are."""
    if not found.rows:
        return None
    ours, theirs = (np.array([getattr(row, side) for row in found.rows]) for side in ("ours", "theirs"))
    difference = ours - theirs
    draw = np.random.default_rng(0)
    tied = len(found.rows) - found.won - found.lost
    parts = [
        (f"{found.model} higher ({found.won:,})", difference > 0, BLUE),
        (f"equal ({tied:,})", difference == 0, GREY),
        (f"{found.reference} higher ({found.lost:,})", difference < 0, ORANGE),
    ]
    size, alpha = (22, 0.6) if len(ours) <= 1000 else (8, 0.3)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        for label, chosen, colour in parts:
            x, y = (v[chosen] + draw.uniform(-_JITTER, _JITTER, int(chosen.sum())) for v in (theirs, ours))
            left.scatter(x, y, s=size, color=colour, alpha=alpha, linewidths=0, label=label, rasterized=len(ours) > 2000)
        left.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle="--")
        left.set_aspect("equal")
        left.set_xlabel(f"{found.metric} of {found.reference} (0 to 1, points spread by ±{_JITTER})")
        left.set_ylabel(f"{found.metric} of {found.model} (0 to 1)")
        left.set_title(f"{found.collection}: each point is a query")
        edges = np.linspace(-1.05, 1.05, 22)
        drawn = [difference[chosen] for _, chosen, _ in parts]
        right.hist(drawn, edges, color=[colour for _, _, colour in parts], stacked=True, rwidth=1.0)
        right.axvline(float(difference.mean()), color=INK, linewidth=1.5, linestyle="--")
        right.set_ylim(0, right.get_ylim()[1] * 1.12)
        right.annotate(
            f"mean {difference.mean():+.3f}", (float(difference.mean()), right.get_ylim()[1]), (6, -4), textcoords="offset points",
            va="top", fontweight="bold",
        )  # fmt: skip
        right.set_xlabel(f"{found.metric} of {found.model} less that of {found.reference}")
        right.set_ylabel("queries")
        right.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        right.set_title(f"{found.collection}: size of the differences")
        handles, labels = left.get_legend_handles_labels()
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=3)
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set_alpha(1)
                handle.set_sizes([30])  # type: ignore[attr-defined]
    return figure


def by_kind_of_query(found: Outcomes) -> Figure | None:
    """The mean difference by the query's length and by the words it shares with its passage, with 95% intervals."""
    if not found.rows:
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        length, shared = ("length", "words of the query", by_length(found)), ("shared words", "share of the query's words in its relevant passage", by_overlap(found))
        for ax, (by, what, groups) in zip(axes, (length, shared), strict=True):
            _differences(ax, groups)
            ax.set_xlabel(f"{what} (n queries)")
            ax.set_title(f"{found.collection}: by {by}")
        axes[0].set_ylabel(f"mean {found.metric} of {found.model}\nless that of {found.reference}")
        handles: dict[str, Any] = {}
        for ax in axes:
            handles.update(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=2)
    return figure


def _differences(ax: Axes, groups: Sequence[Group]) -> None:
    for place, group in enumerate(groups):
        low, high = group.interval or (group.difference, group.difference)
        sure = group.interval is not None and not low <= 0 <= high
        colour = BLUE if sure else GREY
        ax.bar(place, group.difference, 0.6, color=colour, label=_CONFIRMED if sure else _OPEN)
        ax.plot([place, place], [low, high], color=INK, linewidth=1.5, marker="_", markersize=9)
    ax.axhline(0, color=INK, linewidth=1)
    ax.set_xticks(range(len(groups)), [f"{g.label}\nn = {g.queries:,}" for g in groups])
    ax.set_xlim(-0.6, max(len(groups), 1) - 0.4)
    ax.grid(visible=False, axis="x")
