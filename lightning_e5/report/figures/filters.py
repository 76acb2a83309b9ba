"""Figures of a filter: where pairs rank among the pool, and how much of each source is kept."""

from __future__ import annotations

import itertools

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from lightning_e5.report.figures.drawing import BLUE, GREY, INK, RED, STYLE, WIDTH
from lightning_e5.results.filters import FilterRanks
from lightning_e5.results.run import RunData

#: Sources drawn; of more, the largest.
MOST_SOURCES = 40
_SHOWN_NAME = 40


def filter_ranks(run: RunData, stage: str) -> Figure | None:
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
        figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
        ax = figure.subplots()
        width = 0.8 / len(groups)
        for number, (label, chosen, colour) in enumerate(groups):
            counts, _ = np.histogram(chosen, bins=edges)
            places = np.arange(len(labels)) - 0.4 + width * (number + 0.5)
            ax.bar(places, 100 * counts / max(1, len(chosen)), width, color=colour, label=f"{label} ({len(chosen):,})")
        kept = edges.index(ranks.k + 1) - 0.5
        ax.axvline(kept, color=INK, linewidth=1.5, linestyle="--")
        top = ax.get_ylim()[1] * 1.15
        ax.set_ylim(0, top)
        ax.annotate("kept", (kept, top), (-8, 0), textcoords="offset points", ha="right", va="top", fontweight="bold")
        dropped = f"dropped: rank over {ranks.k}"
        ax.annotate(dropped, (kept, top), (8, 0), textcoords="offset points", ha="left", va="top", fontweight="bold")
        ax.set_xticks(range(len(labels)), labels)
        ax.set_xlim(-0.6, len(labels) - 0.4)
        ax.grid(visible=False, axis="x")
        pool = f" of {ranks.metrics['pool']:,.0f} random ones" if "pool" in ranks.metrics and ranks.pool == "global" else ""
        ax.set_xlabel(f"rank of the pair's own passage among {'its source’s' if ranks.pool == 'per_source' else 'a'} pool{pool}")
        ax.set_ylabel("share of its kind (%)")
        ax.set_title(f"{stage}: how high a pair's own passage ranks")
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def kept_per_source(run: RunData, stage: str) -> Figure | None:
    """The kept and dropped pairs of each source, the largest first; None where there are fewer than two sources."""
    rows = sorted(run.filter_ranks(stage).sources, key=lambda row: (-row["pairs"], row["source"]))
    if len(rows) < 2:
        return None
    shown = rows[:MOST_SOURCES]
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.28 * len(shown) + 1.3), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
        places = np.arange(len(shown))
        shares = np.array([100 * row["kept_share"] for row in shown])
        left.barh(places, shares, 0.7, color=BLUE, label="kept")
        left.barh(places, 100 - shares, 0.7, left=shares, color=GREY, alpha=0.5, label="dropped")
        for place, share in zip(places, shares, strict=True):
            inside = share > 12
            left.annotate(
                f"{share:.0f}%", (share, place), (-4 if inside else 4, 0), textcoords="offset points",
                ha="right" if inside else "left", va="center", fontsize=8, color="white" if inside else INK,
            )  # fmt: skip
        left.set_xlim(0, 100)
        left.set_xlabel("share of the source's pairs (%)")
        names = [row["source"] if len(row["source"]) <= _SHOWN_NAME else f"{row['source'][: _SHOWN_NAME - 1]}…" for row in shown]
        left.set_yticks(places, names)
        left.set_ylim(len(shown) - 0.5, -0.5)
        right.barh(places, [row["pairs"] for row in shown], 0.7, color=GREY, alpha=0.5)
        right.barh(places, [row["kept"] for row in shown], 0.7, color=BLUE)
        right.set_xscale("log")
        right.set_xlim(left=0.5 if min(row["kept"] for row in shown) < 10 else None)
        right.xaxis.set_major_locator(LogLocator(numticks=5))
        right.xaxis.set_major_formatter(EngFormatter(sep=""))
        right.xaxis.set_minor_formatter(NullFormatter())
        right.set_xlabel("pairs (log scale)")
        for ax in (left, right):
            ax.grid(visible=False, axis="y")
        rest = f" (the {len(shown)} largest of {len(rows)} sources)" if len(rows) > len(shown) else ""
        left.set_title(f"{stage}: kept of each source{rest}")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


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
