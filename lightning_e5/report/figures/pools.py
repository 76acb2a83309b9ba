"""Figures of a stage that made pairs: what became of each source's candidates, and how long the texts are."""

from __future__ import annotations

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, NullLocator
from numpy.typing import NDArray

from lightning_e5.report.figures.drawing import BLUE, GREY, INK, ORANGE, RED, SKY, STYLE, WIDTH
from lightning_e5.results.pools import HELD_OUT, DataFacts, SourceCounts, TextLengths

#: Sources drawn, of more the largest; and rules with a colour of their own, of more the strictest.
MOST_SOURCES, MOST_RULES = 30, 6
_RULE_COLOURS = (ORANGE, RED, SKY, "#CC79A7", "#009E73", "#F0E442")
_SHOWN_NAME = 34


def fate_of_candidates(facts: DataFacts) -> Figure | None:
    """Every source's candidates: the share left as pairs, and the shares that each rule dropped; None without a source."""
    ordered = sorted((s for s in facts.sources if s.candidates), key=lambda s: (-s.candidates, s.name))
    shown, rules = ordered[:MOST_SOURCES], facts.rules
    if not shown:
        return None
    parts = [("left as pairs", BLUE, [s.pairs for s in shown])]
    parts += [(r if r == HELD_OUT else f"dropped: {r}", c, [s.dropped.get(r, 0) for s in shown]) for r, c in zip(rules[:MOST_RULES], _RULE_COLOURS, strict=False)]
    if len(rules) > MOST_RULES:
        parts.append((f"dropped: {len(rules) - MOST_RULES} other rules", GREY, [sum(s.dropped.get(r, 0) for r in rules[MOST_RULES:]) for s in shown]))
    totals = np.array([max(1, s.candidates) for s in shown])
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.3 * len(shown) + 1.5 + 0.22 * ((len(parts) + 2) // 3)), layout="constrained")
        ax = figure.subplots()
        left = np.zeros(len(shown))
        for label, colour, counts in parts:
            share = 100 * np.array(counts) / totals
            ax.barh(np.arange(len(shown)), share, 0.7, left=left, color=colour, label=label)
            left += share
        for place, source in enumerate(shown):
            text = f"{_short(source.pairs)} of {_short(source.candidates)}"
            ax.annotate(text, (100, place), (6, 0), textcoords="offset points", va="center", fontsize=9)
        ax.set_xlim(0, 100)
        ax.set_yticks(range(len(shown)), [_name(s) for s in shown])
        ax.set_ylim(len(shown) - 0.5, -0.5)
        ax.grid(visible=False, axis="y")
        ax.set_xlabel("share of the source's candidates (%)")
        rest = f" (the {len(shown)} largest of {len(ordered)} sources)" if len(ordered) > len(shown) else ""
        ax.set_title(f"{facts.stage}: what became of each source's candidates{rest}")
        figure.legend(loc="outside lower center", ncols=3)
    return figure


def length_histograms(lengths: TextLengths, stage: str) -> Figure:
    """How many words queries and passages have; kept and dropped pairs apart where a filter decided."""
    groups: list[tuple[str, NDArray[np.bool_], str]] = [("all pairs", np.ones(len(lengths.query_N), bool), BLUE)]
    if lengths.keep_N is not None:
        groups = [("kept by the filter", lengths.keep_N, BLUE), ("dropped by the filter", ~lengths.keep_N, ORANGE)]
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        axes = figure.subplots(1, 2)
        for ax, (what, values) in zip(axes, (("queries", lengths.query_N), ("passages", lengths.passage_N)), strict=True):
            edges = _edges(values)
            for label, chosen, colour in groups:
                own = np.maximum(1, values[chosen])
                if not len(own):
                    continue
                weights = np.full(len(own), 100 / len(own))
                name = f"{label}: median {np.median(own):.0f}"
                ax.hist(own, edges, weights=weights, color=colour, alpha=0.3)
                ax.hist(own, edges, weights=weights, color=colour, histtype="step", linewidth=1.5, label=name)
            _log_words(ax, values)
            ax.set_title(f"{stage}: words of {what}")
            ax.set_xlabel("words (log scale)")
            ax.set_ylabel("share of pairs (%)")
            ax.set_ylim(0, ax.get_ylim()[1] * 1.3)  # room for the legend
            ax.legend(loc="upper left")
    return figure


def lengths_by_source(lengths: TextLengths, stage: str) -> Figure | None:
    """The middle half and the median of the passages' words by source; None where there are fewer than two sources."""
    counts = np.bincount(lengths.source_N, minlength=len(lengths.sources))
    shown = [int(c) for c in np.argsort(-counts, kind="stable")[:MOST_SOURCES] if counts[c]]
    if len(shown) < 2:
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.28 * len(shown) + 1.4), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for ax, what, values in ((left, "queries", lengths.query_N), (right, "passages", lengths.passage_N)):
            for place, code in enumerate(shown):
                low, middle, high = np.maximum(1, np.percentile(values[lengths.source_N == code], [25, 50, 75]))
                ax.plot([low, high], [place, place], color=SKY, linewidth=7, solid_capstyle="butt", label="middle half" if not place else None)
                ax.plot([middle], [place], color=INK, marker="|", markersize=10, markeredgewidth=2, linestyle="", label="median" if not place else None)
            _log_words(ax, values)
            ax.set_title(f"{stage}: words of {what} by source")
            ax.set_xlabel("words (log scale)")
            ax.grid(visible=False, axis="y")
        left.set_yticks(range(len(shown)), [lengths.sources[c][:_SHOWN_NAME] for c in shown])
        left.set_ylim(len(shown) - 0.5, -0.5)
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _edges(values: NDArray[np.int64]) -> list[float]:
    """Edges of about 30 classes, even on a log scale and each between whole numbers, so that none is empty by rounding."""
    smallest, largest = max(1, int(values.min())), max(2, int(values.max()))
    whole = np.unique(np.round(np.geomspace(smallest, largest, 31)).astype(int))
    return [float(w) - 0.5 for w in whole] + [largest + 0.5]


def _log_words(ax: Axes, values: NDArray[np.int64]) -> None:
    ax.set_xscale("log")
    largest = max(2, int(values.max()))
    ax.set_xlim(max(0.5, 0.8 * int(values.min())), largest * 1.1)
    ax.xaxis.set_major_locator(FixedLocator([v for v in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000) if v <= largest * 1.1]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))


def _name(source: SourceCounts) -> str:
    return source.name if len(source.name) <= _SHOWN_NAME else f"{source.name[: _SHOWN_NAME - 1]}…"


def _short(count: int) -> str:
    return f"{count:,}" if count < 10_000 else EngFormatter(sep="", places=0)(count)
