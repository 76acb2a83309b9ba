"""Pictures of an ablation: bars with intervals beside the paper's figures, differences, and learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from lightning_e5.ablation.figures import BLUE, GREY, INK, ORANGE, RED, SKY, STYLE, WIDTH
from lightning_e5.ablation.variant_results import VariantResults, VariantRow, variant_rows

_COLOURS = (BLUE, ORANGE, "#009E73", RED, SKY, "#CC79A7", "#8B6D00", "#6A51A3", "#1B9E9E", GREY)
_LINES = ("-", "--", "-.", ":")
#: Variants with a curve of their own; more would not be told apart.
MOST_CURVES = 12
_SMOOTHING = 25


def variant_bars(results: VariantResults, metric: str) -> Figure | None:
    """Each variant's mean with its 95% interval and a dot per seed; the paper's figures in panels of their own beside."""
    rows = variant_rows(results, metric)
    paper: Mapping[str, Mapping[str, float]] = (results.paper or {}).get("figures") or {}
    columns = {title: f for title, f in list(paper.items())[:2] if any(row.variant in f for row in rows)}
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.42 * len(rows) + 1.7), layout="constrained")
        panels = np.atleast_1d(figure.subplots(1, 1 + len(columns), sharey=True, width_ratios=[2.2, *[1.0] * len(columns)]))
        ax = panels[0]
        for place, row in enumerate(rows):
            colour = GREY if row.variant == results.baseline else BLUE
            ax.barh(place, row.estimate.mean, 0.6, color=colour, alpha=0.75, label="baseline" if colour == GREY else "other variants")
            _interval(ax, place, row.estimate.low, row.estimate.high)
            if len(row.values) > 1:
                ax.plot(row.values, [place] * len(row.values), "o", color=ORANGE, markersize=4.5, label="one seed")
            _value(ax, place, row)
        _limits(ax, rows)
        ax.set_yticks(range(len(rows)), [row.variant for row in rows])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_xlabel(f"{metric.rsplit('/', 1)[-1]} (mean over seeds)")
        ax.set_title(f"Ours: {metric}")
        for ax, (title, figures) in zip(panels[1:], columns.items(), strict=True):
            for place, row in enumerate(rows):
                if row.variant in figures:
                    ax.barh(place, figures[row.variant], 0.6, color=GREY if row.variant == results.baseline else SKY)
                    ax.annotate(f"{figures[row.variant]:g}", (figures[row.variant], place), (6, 0), textcoords="offset points", va="center")
            shown = [figures[row.variant] for row in rows if row.variant in figures]
            ax.set_xlim(min(0, *shown) if len(shown) > 1 else min(0, shown[0]), 1.25 * max(*shown, 0) if len(shown) > 1 else 1.25 * shown[0])
            ax.xaxis.set_major_locator(MaxNLocator(4))
            ax.set_xlabel(title)
            ax.set_title(f"Paper{', ' + str(results.paper['source']) if results.paper and results.paper.get('source') else ''}")
        for ax in panels:
            ax.grid(visible=False, axis="y")
        handles, labels = panels[0].get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=3)
    return figure


def differences(results: VariantResults, metric: str) -> Figure | None:
    """Each variant's paired difference to the baseline with its 95% interval; None where there is no other variant."""
    rows = [row for row in variant_rows(results, metric) if row.difference is not None]
    if not rows:
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.42 * len(rows) + 1.6), layout="constrained")
        ax = figure.subplots()
        for place, row in enumerate(rows):
            assert row.difference is not None
            sure = row.verdict in ("higher", "lower")
            colour, label = (BLUE, "difference shown (p ≤ 0.05 after Holm)") if sure else (GREY, "no difference shown")
            _interval(ax, place, row.difference.low, row.difference.high, colour)
            ax.plot(row.difference.mean, place, "o", color=colour, markersize=8, label=label)
            text = f"{row.difference.mean:+.3f}" + ("" if row.p_value is None else f" (p = {row.p_value:.3f})")
            ax.annotate(text, (1, place), xycoords=("axes fraction", "data"), xytext=(8, 0), textcoords="offset points", va="center")
        ax.axvline(0, color=INK, linewidth=1)
        ax.margins(x=0.1)
        ax.set_yticks(range(len(rows)), [row.variant for row in rows])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_xlabel(f"{metric.rsplit('/', 1)[-1]} less that of {results.baseline} (95% interval)")
        ax.set_title(f"{metric}: difference to the baseline {results.baseline}")
        ax.grid(visible=False, axis="y")
        handles, labels = ax.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=2)
    return figure


def learning_curves(results: VariantResults) -> Figure | None:
    """The smoothed loss over the pairs seen, one panel per training stage, a line per run, a colour per variant."""
    stages = list(dict.fromkeys(stage for curves in results.curves.values() for stage in curves))
    variants = [v for v in results.variants if any(results.curves.get((v, s)) for s in results.seeds(v))][:MOST_CURVES]
    panels = [(s, drawn) for s in stages if (drawn := _curves(results, variants, s))]
    if not panels:
        return None
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.0 * rows + 0.6), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        handles: dict[str, object] = {}
        for ax, (stage, drawn) in zip(axes, panels, strict=False):
            for variant, x, y in drawn:
                number = variants.index(variant)
                (line,) = ax.plot(x, y, color=_COLOURS[number % len(_COLOURS)], linestyle=_LINES[number // len(_COLOURS)], linewidth=1.6, alpha=0.85)
                handles.setdefault(variant, line)
            ax.set_title(f"{stage}: loss, one line per seed")
            ax.set_xlabel("pairs seen")
            ax.xaxis.set_major_formatter(EngFormatter(sep=""))
            ax.set_ylabel("loss (nats, running mean)")
        for unused in axes[len(panels) :]:
            unused.remove()
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=min(5, len(handles)))
    return figure


def _curves(results: VariantResults, variants: Sequence[str], stage: str) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(variant, pairs seen, smoothed loss) of each run that trained in this stage."""
    found = []
    for variant in variants:
        for seed in results.seeds(variant):
            rows = [r for r in results.curves.get((variant, seed), {}).get(stage, ()) if np.isfinite(r.get("loss", np.nan)) and "pairs" in r]
            if len(rows) > 1:
                loss = np.array([r["loss"] for r in rows], np.float64)
                window = max(1, len(loss) // _SMOOTHING)
                smooth = np.convolve(loss, np.ones(window) / window, mode="valid")
                found.append((variant, np.array([r["pairs"] for r in rows], np.float64)[window - 1 :], smooth))
    return found


def _interval(ax: Axes, place: int, low: float | None, high: float | None, colour: str = INK) -> None:
    if low is not None and high is not None:
        ax.plot([low, high], [place, place], color=colour, linewidth=1.7, marker="|", markersize=9)


def _value(ax: Axes, place: int, row: VariantRow) -> None:
    end = max(row.estimate.mean, *(row.values), row.estimate.high if row.estimate.high is not None else row.estimate.mean)
    ax.annotate(f"{row.estimate.mean:.3f}", (end, place), (8, 0), textcoords="offset points", va="center")


def _limits(ax: Axes, rows: Sequence[VariantRow]) -> None:
    """From 0 for what is 0 or more; room for the figures at the ends."""
    ends = [v for row in rows for v in (row.estimate.mean, row.estimate.low, row.estimate.high, *row.values) if v is not None]
    low, high = min(0.0, *ends), max(*ends, 1e-9)
    ax.set_xlim(low * 1.12, high + 0.16 * (high - low))
