"""A run's figures: losses, nDCG with intervals, cosines.

Each function takes a `RunData` and returns a matplotlib ``Figure`` of its own (no pyplot, no global state), or None
where the run has nothing to draw. The colours are Okabe and Ito's, which colour-blind readers tell apart.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray

from lightning_e5.results.run import MAIN_METRIC, Result, RunData

BLUE, SKY, ORANGE, RED, GREY, INK = "#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#9AA2AB", "#1B1F24"
WIDTH = 11.0  # inches; at the 100 px per inch of a page this is the report's text width
NARROW = 4.4  # on a screen of 400 px its letters keep 12 px, where a figure of the full width would have 5
_SMOOTHING = 15  # a loss is smoothed over about 1/15 of its steps
#: Matplotlib's settings for every picture.
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # a "$" in a name is no formula
    "axes.labelcolor": INK,
    "axes.edgecolor": "#8C959F",
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E8EC",
    "xtick.color": "#4A535D",
    "ytick.color": "#4A535D",
    "legend.frameon": False,
    "svg.hashsalt": "lightning_e5",
}


def svg(figure: Figure) -> str:
    """The figure as SVG text, the same for the same figure; letters are outlines, so no font is needed to show it."""
    buffer = io.StringIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def loss_curves(run: RunData, width: float = WIDTH) -> Figure | None:
    """The loss of every training stage over the pairs seen: each step faint, its running mean dark."""
    curves = {name: read for name, rows in run.learning_curves().items() if (read := points(rows)) is not None}
    if not curves:
        return None
    with rc_context(STYLE):
        figure, axes = grid(len(curves), height=2.7, width=width)
        for ax, (name, (x, loss, unit)) in zip(axes, curves.items(), strict=True):
            mean = running_mean(loss, max(1, len(loss) // _SMOOTHING))
            ax.plot(x, loss, color=SKY, linewidth=1, alpha=0.7, label="each step")
            ax.plot(x, mean, color=BLUE, linewidth=2, label="running mean")
            ax.set_title(f"{name}: {mean[0]:.2f} to {mean[-1]:.2f}")
            ax.set_xlabel(unit)
            ax.xaxis.set_major_formatter(EngFormatter(sep=""))
            ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            ax.set_ylabel("loss (nats)")
        axes[0].legend(loc="best")
    return figure


def ndcg_intervals(run: RunData, width: float = WIDTH) -> Figure | None:
    """nDCG@10 of every model with its 95% interval over queries, one panel per collection."""
    results = [r for r in run.results() if MAIN_METRIC in r.metrics]
    collections = list(dict.fromkeys(r.collection for r in results))
    if not results:
        return None
    panels = [[r for r in results if r.collection == c] for c in collections]
    with rc_context(STYLE):
        rows = [len(p) + 1.6 for p in panels]
        narrow = width < WIDTH
        figure = Figure(figsize=(width, 0.38 * sum(rows) + (1.2 if narrow else 0.7)), layout="constrained")
        axes = np.atleast_1d(figure.subplots(len(panels), 1, sharex=True, height_ratios=rows))
        for ax, panel in zip(axes, panels, strict=True):
            _bars(ax, panel)
            ax.set_title(panel[0].collection if narrow else f"{panel[0].collection}: nDCG@10 with its 95% interval over queries")
        right = max(max(float(r.row.get("high", 0)), r.metrics[MAIN_METRIC]) for r in results)
        axes[-1].set_xlim(0, max((1.3 if narrow else 1.12) * right, 0.05))  # room for the figures
        axes[-1].set_xlabel("nDCG@10 (0 to 1, higher is better)")
        handles, labels = unique_legend(axes)
        figure.legend(handles, labels, loc="outside lower center", ncols=1 if narrow else 3)
    return figure


def cosine_distributions(run: RunData) -> Figure | None:
    """For every encoder the cosines of judged (query, passage) pairs and of random ones, on one scale."""
    found = [(r, c) for r in run.results() if (c := run.cosines(r.model, r.collection)) is not None]
    if not found:
        return None
    values = np.concatenate([np.concatenate(c) for _, c in found])
    bins = np.linspace(float(values.min()) - 1e-6, float(values.max()) + 1e-6, 41).tolist()
    several = len({r.collection for r, _ in found}) > 1
    with rc_context(STYLE):
        figure, axes = grid(len(found), height=2.5, share=True)
        for ax, (result, (positive, random)) in zip(axes, found, strict=True):
            for cosines, colour, label in ((random, ORANGE, "random pairs"), (positive, BLUE, "judged pairs")):
                weights = np.full(len(cosines), 100 / len(cosines))
                ax.hist(cosines, bins=bins, weights=weights, color=colour, alpha=0.35)
                ax.hist(cosines, bins=bins, weights=weights, color=colour, histtype="step", linewidth=1.5, label=label)
            name = f"{result.model} on {result.collection}" if several else result.model
            ax.set_title(f"{name}: judged above random in {_above(positive, random):.0%}")
            ax.set_xlabel("cosine")
            ax.set_ylabel("share of pairs (%)")
            ax.tick_params(labelbottom=True)
        axes[0].legend(loc="best")
    return figure


def grid(count: int, height: float, share: bool = False, width: float = WIDTH) -> tuple[Figure, list[Axes]]:
    """``count`` panels in rows of two, or of three from five on; below each other where the figure is narrow."""
    columns = min(count, 2 if count <= 4 else 3) if width == WIDTH else 1
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns, sharex=share, sharey=share)).ravel()
    for unused in axes[count:]:
        unused.remove()
    return figure, list(axes[:count])


def wrapped(text: str, width: float) -> str:
    """A title or label in lines that fit a figure of that width, in inches."""
    return textwrap.fill(text, int(10 * width))


def points(rows: Sequence[dict[str, float]]) -> tuple[NDArray[np.float64], NDArray[np.float64], str] | None:
    """A training log's pairs seen (or steps), its finite losses, and what the first are; None where there is no loss."""
    kept = [r for r in rows if isinstance(r.get("loss"), float | int) and math.isfinite(r["loss"])]
    if not kept:
        return None
    key, unit = ("pairs", "pairs seen") if all("pairs" in r for r in kept) else ("step", "optimizer step")
    return np.array([float(r[key]) for r in kept]), np.array([float(r["loss"]) for r in kept]), unit


def running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """The mean of each value and those up to ``window`` before it."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window - 1)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _bars(ax: Axes, panel: Sequence[Result]) -> None:
    for place, result in enumerate(panel):
        value = result.metrics[MAIN_METRIC]
        low, high = (float(result.row.get(key, value)) for key in ("low", "high"))
        colour, label = (GREY, "baseline without an encoder")
        if result.is_encoder:
            colour, label = (
                (BLUE, "encoder, trained in this run") if result.trained_by else (SKY, "encoder, not trained in this run")
            )
        ax.barh(place, value, 0.62, color=colour, label=label)
        ax.plot([low, high], [place, place], color=INK, linewidth=1.5, marker="|", markersize=8)
        ax.annotate(f"{value:.3f}", (max(high, value), place), (8, 0), textcoords="offset points", va="center")
    ax.set_yticks(range(len(panel)), [r.model for r in panel])
    ax.set_ylim(len(panel) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")


def unique_legend(axes: Iterable[Axes]) -> tuple[list[Any], list[str]]:
    """The handles and labels of several panels, each label once."""
    found: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)


def _above(positive: NDArray[np.float32], random: NDArray[np.float32]) -> float:
    """The share of (judged, random) pairs in which the judged one has the higher cosine; a tie counts half."""
    ordered = np.sort(random)
    lower = np.searchsorted(ordered, positive, "left") + np.searchsorted(ordered, positive, "right")
    return float(lower.mean() / 2 / len(random))
