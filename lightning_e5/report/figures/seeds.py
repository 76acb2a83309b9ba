"""One experiment with several seeds: each model's figure with its interval, and what it is above the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_e5.evaluation.statistics.decision import NO_DIFFERENCE
from lightning_e5.report.figures.drawing import BLUE, GREY, INK, SKY, STYLE
from lightning_e5.results.run import MAIN_METRIC

#: Drawn at 9 in and shown at about 880 px, so letters of 12.5 pt are the size of the text around the picture.
_SIZE, _LETTERS = (9.0, 3.6), 12.5
_SPREAD = 0.22  # of a row: the seeds of a model lie below each other


def seeds_figure(rows: Mapping[str, Sequence[Mapping[str, Any]]], names: Mapping[str, str], reference: str) -> Figure:
    """Left nDCG@10 of every model, right its paired difference to the reference; a mark and a 95% interval for each seed.

    Args:
        rows: seed -> one row per model, with ``model``, ``ndcg@10``, ``low``, ``high`` and, but for the reference, ``difference``,
            ``difference_low``, ``difference_high`` and ``verdict``.
        names: model -> what it is called in the picture; drawn in this order, from top to bottom.
        reference: the model that the differences are to.
    """
    with rc_context({**STYLE, "font.size": _LETTERS, "axes.titlesize": _LETTERS}):
        figure = Figure(figsize=_SIZE, layout="constrained", facecolor="white")
        left, right = figure.subplots(1, 2, sharey=True)
        for place, model in enumerate(names):
            of_seeds = [next(row for row in found if row["model"] == model) for found in rows.values()]
            colour = GREY if model == reference else SKY if place == 1 else BLUE
            _figures(left, place, of_seeds, colour)
            if model != reference:
                _differences(right, place, of_seeds, colour)
        right.axvline(0, color=INK, linewidth=1)
        right.annotate("the reference", (0, [*names].index(reference)), (6, 0), textcoords="offset points", va="center", color="#4A535D")
        left.set_yticks(range(len(names)), list(names.values()))
        left.set_ylim(len(names) - 0.5, -0.6)
        left.set_xlim(right=left.get_xlim()[1] + 0.2 * np.ptp(left.get_xlim()))  # room for the last mean
        left.set_title("nDCG@10, mean of the seeds in bold")
        left.set_xlabel("axis does not start at 0", fontsize=11)
        right.set_xlabel("paired over the queries", fontsize=11)
        right.set_title(f"difference to {names[reference]}")
        seeds = ", ".join(rows)
        right.plot([], [], "o", color=BLUE, label="difference shown")
        right.plot([], [], "o", markerfacecolor="white", color=BLUE, label=NO_DIFFERENCE)
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=2, title=f"seeds {seeds}, each with its 95% interval over queries")
        for ax in (left, right):
            ax.grid(visible=False, axis="y")
            ax.tick_params(axis="y", length=0)
            ax.xaxis.set_major_locator(MaxNLocator(4))
    return figure


def _figures(ax: Axes, place: int, rows: Sequence[Mapping[str, Any]], colour: str) -> None:
    for y, row in zip(_places(place, len(rows)), rows, strict=True):
        ax.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=2)
        ax.plot(row[MAIN_METRIC], y, "o", color=colour, markersize=7)
    mean = float(np.mean([row[MAIN_METRIC] for row in rows]))
    ax.annotate(f"{mean:.3f}", (max(row["high"] for row in rows), place), (6, 0), textcoords="offset points", va="center", fontweight="bold")


def _differences(ax: Axes, place: int, rows: Sequence[Mapping[str, Any]], colour: str) -> None:
    for y, row in zip(_places(place, len(rows)), rows, strict=True):
        ax.plot([row["difference_low"], row["difference_high"]], [y, y], color=colour, linewidth=2)
        ax.plot(row["difference"], y, "o", color=colour, markersize=7, markerfacecolor="white" if row["verdict"] == NO_DIFFERENCE else colour)


def _places(place: int, count: int) -> list[float]:
    return [place + _SPREAD * (number - (count - 1) / 2) for number in range(count)]
