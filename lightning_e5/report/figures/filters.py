"""Figures of a filter: where pairs rank among the pool, and how much of each source is kept."""

from __future__ import annotations

import itertools

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray

from lightning_e5.report.figures.drawing import BLUE, GREY, INK, RED, STYLE, WIDTH, wrapped
from lightning_e5.results.filters import FilterRanks
from lightning_e5.results.run import RunData

#: Sources drawn; of more, the largest.
MOST_SOURCES = 40
_SHOWN_NAME, _NARROW_NAME = 40, 16


def filter_ranks(run: RunData, stage: str, width: float = WIDTH) -> Figure | None:
    """Where true pairs and injected mismatches rank among the pool, in classes of rank; the line is what is kept."""
    ranks = run.filter_ranks(stage)
    if not ranks.ranked_N.any():
        return None
    edges = _rank_edges(ranks.k, int(ranks.rank_N.max()), ranks.cap)
    labels = [_rank_label(low, high) for low, high in itertools.pairwise(edges)]
    if ranks.cap is not None and edges[-2] == ranks.cap:
        labels[-1] = f"over {_number(ranks.cap - 1)}"
    groups = _rank_groups(ranks)
    with rc_context(STYLE):
        narrow = width < WIDTH
        figure = Figure(figsize=(width, 3.8), layout="constrained")
        ax = figure.subplots()
        bar = 0.8 / len(groups)
        for number, (label, chosen, colour) in enumerate(groups):
            counts, _ = np.histogram(chosen, bins=edges)
            places = np.arange(len(labels)) - 0.4 + bar * (number + 0.5)
            ax.bar(places, 100 * counts / max(1, len(chosen)), bar, color=colour, label=f"{label} ({len(chosen):,})")
        kept = edges.index(ranks.k + 1) - 0.5
        ax.axvline(kept, color=INK, linewidth=1.5, linestyle="--")
        top = ax.get_ylim()[1] * 1.15
        ax.set_ylim(0, top)
        ax.annotate("kept", (kept, top), (-8, 0), textcoords="offset points", ha="right", va="top", fontweight="bold")
        dropped = f"dropped: rank over {ranks.k}"
        ax.annotate(dropped, (kept, top), (8, 0), textcoords="offset points", ha="left", va="top", fontweight="bold")
        ax.set_xticks(range(len(labels)), labels, rotation=90 if narrow else 0)
        ax.set_xlim(-0.6, len(labels) - 0.4)
        ax.grid(visible=False, axis="x")
        pool = f" of {ranks.metrics['pool']:,.0f} random ones" if "pool" in ranks.metrics and ranks.pool == "global" else ""
        ax.set_xlabel(wrapped(f"rank of the pair's own passage among {'its source’s' if ranks.pool == 'per_source' else 'a'} pool{pool}", width))
        ax.set_ylabel("share of its kind (%)")
        ax.set_title(wrapped(f"{stage}: how high a pair's own passage ranks", width))
        figure.legend(loc="outside lower center", ncols=1 if narrow else 2)
    return figure


def kept_per_source(run: RunData, stage: str, width: float = WIDTH) -> Figure | None:
    """The kept and dropped pairs of each source, the largest first; None where there are fewer than two sources.

    Both panels stack lengths, so both axes are linear and start at 0; small sources are read off the left one and the counts.
    """
    rows = sorted(run.filter_ranks(stage).sources, key=lambda row: (-row["pairs"], row["source"]))
    if len(rows) < 2:
        return None
    shown = rows[:MOST_SOURCES]
    narrow = width < WIDTH
    with rc_context(STYLE):
        height = 0.28 * len(shown) + 0.6
        figure = Figure(figsize=(width, (2 * height if narrow else height) + 0.9), layout="constrained")
        left, right = figure.subplots(2, 1) if narrow else figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
        shares = np.array([100 * row["kept_share"] for row in shown])
        _stacked(left, shares, 100 - shares)
        for place, share in enumerate(shares):
            inside = share > 12
            left.annotate(
                f"{share:.0f}%", (share, place), (-4 if inside else 4, 0), textcoords="offset points",
                ha="right" if inside else "left", va="center", fontsize=8, color="white" if inside else INK,
            )  # fmt: skip
        left.set_xlim(0, 100)
        left.set_xlabel("share of the source's pairs (%)")
        kept, pairs = (np.array([row[key] for row in shown], np.float64) for key in ("kept", "pairs"))
        _stacked(right, kept, pairs - kept)
        for place, row in enumerate(shown):
            text = f"{row['kept']:,} of {row['pairs']:,}"
            right.annotate(text, (row["pairs"], place), (4, 0), textcoords="offset points", va="center", fontsize=8)
        right.set_xlim(0, (1.6 if narrow else 1.45) * max(1, pairs.max()))  # room for the counts
        right.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        right.xaxis.set_major_formatter(EngFormatter(sep=""))
        right.set_xlabel("pairs")
        names = [row["source"] if len(row["source"]) <= _SHOWN_NAME else f"{row['source'][: _SHOWN_NAME - 1]}…" for row in shown]
        for ax in (left, right) if narrow else (left,):
            ax.set_yticks(range(len(shown)), [name[:_NARROW_NAME] if narrow else name for name in names])
            ax.set_ylim(len(shown) - 0.5, -0.5)
        for ax in (left, right):
            ax.grid(visible=False, axis="y")
        rest = f" (the {len(shown)} largest of {len(rows)} sources)" if len(rows) > len(shown) else ""
        left.set_title(wrapped(f"{stage}: kept of each source{rest}", width))
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _stacked(ax: Axes, kept: NDArray[np.float64], dropped: NDArray[np.float64]) -> None:
    places = np.arange(len(kept))
    ax.barh(places, kept, 0.7, color=BLUE, label="kept")
    ax.barh(places, dropped, 0.7, left=kept, color=GREY, alpha=0.5, label="dropped")


def _rank_edges(k: int, largest: int, cap: int | None) -> list[int]:
    """First ranks of the classes 1, 2, 3-5, 6-10, 11-20, 21-50, ..., with a break after ``k`` and one before ``cap``, and
    one past the end."""
    edges = {1, 2, 3, k + 1} | (set() if cap is None else {cap})
    scale = 1
    while scale <= largest:
        edges |= {5 * scale + 1, 10 * scale + 1, 20 * scale + 1}
        scale *= 10
    inside = sorted(e for e in edges if e <= max(largest, k + 1))
    return [*inside, max(largest, k + 1) + 1]


def _rank_label(low: int, high: int) -> str:
    return _number(low) if high - low == 1 else f"{_number(low)}–{_number(high - 1)}"


def _number(value: int) -> str:
    return EngFormatter(sep="", places=0)(value) if value >= 1000 else f"{value}"


def _rank_groups(ranks: FilterRanks) -> list[tuple[str, NDArray[np.int64], str]]:
    ranked = ranks.ranked_N
    if ranks.planted_N is None:
        return [("pairs", ranks.rank_N[ranked], BLUE)]
    truth = ranks.planted_N
    return [("true pairs", ranks.rank_N[~truth & ranked], BLUE), ("injected mismatches", ranks.rank_N[truth & ranked], RED)]
