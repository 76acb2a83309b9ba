"""An evaluation's picture: every model's paired difference to the reference with its interval."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure

from lightning_e5.report.figures.drawing import BLUE, GREY, INK, RED, STYLE
from lightning_e5.report.tables.model_differences import shown
from lightning_e5.result_row import ResultRow

#: Inches: narrow, so that letters stay readable where a page of 400 px scales the picture down.
_WIDTH = 5.6
_COLOURS = {"higher": BLUE, "lower": RED}


def model_differences(rows: Sequence[ResultRow], reference: str) -> Figure | None:
    """A line per model and set: the difference of the main metric and its 95% interval, grey where none is shown.

    Args:
        rows: of an evaluation with that reference.
        reference: its name.
    """
    compared = [(row, row.difference) for row in rows if row.difference is not None]
    if not compared:
        return None
    with rc_context({**STYLE, "font.size": 12}):
        figure = Figure(figsize=(_WIDTH, 0.62 * len(compared) + 1.3), layout="constrained")
        axes = figure.subplots()
        for place, (_, difference) in enumerate(compared):
            colour = _COLOURS.get(shown(difference), GREY)
            axes.plot([difference.low, difference.high], [place, place], color=colour, linewidth=2.5, solid_capstyle="butt")
            axes.plot(difference.difference, place, "o", color=colour, markersize=7)
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_yticks(range(len(compared)), [f"{row.model}\n{row.collection}, {row.metric}" for row, _ in compared], fontsize=11)
        axes.set_ylim(len(compared) - 0.5, -0.5)
        axes.set_xlabel(f"difference to {reference}, 95% interval")
        axes.grid(axis="y", visible=False)
    return figure
