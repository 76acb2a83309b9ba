"""Figures of embedding spaces: alignment against uniformity, and a flat map of texts."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure

from lightning_e5.evaluation.embedding_space import FlatMap, SpaceMeasures
from lightning_e5.report.figures.drawing import BLUE, GREY, INK, ORANGE, RED, SKY, STYLE, WIDTH

_COLOURS = (BLUE, ORANGE, "#009E73", RED, SKY, "#CC79A7", "#8B6D00", "#6A51A3", GREY)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")


def alignment_and_uniformity(found: Sequence[SpaceMeasures]) -> Figure | None:
    """Every encoder as a point, one panel per collection: left is more uniform, down is better aligned."""
    collections = list(dict.fromkeys(m.collection for m in found))
    models = list(dict.fromkeys(m.model for m in found))
    if not found:
        return None
    columns = min(3, len(collections))
    rows = -(-len(collections) // columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH if columns > 1 else WIDTH * 0.62, 3.4 * rows + 0.5), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax, collection in zip(axes, collections, strict=False):
            for m in [m for m in found if m.collection == collection]:
                number = models.index(m.model)
                colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
                ax.plot(m.uniformity, m.alignment, marker, color=colour, markersize=10, label=m.model)
            ax.margins(0.25)
            ax.set_title(f"{collection}: lower left is better")
            ax.set_xlabel("uniformity of passages")
            ax.set_ylabel("alignment (squared distance)")
        for unused in axes[len(collections) :]:
            unused.remove()
        handles = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(6, len(models)))
    return figure


def map_of_texts(flat: FlatMap | None, model: str) -> Figure | None:
    """The map with a colour and a mark for each source; test passages are crosses in dark colours."""
    if flat is None:
        return None
    with rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(WIDTH, 6.2), layout="constrained")
        ax = figure.subplots()
        for number, (name, is_test) in enumerate(zip(flat.kinds, flat.is_test, strict=True)):
            x, y = flat.xy_N2[flat.kind_N == number].T
            if is_test:
                marker, colour = ("x", "+", "1")[sum(flat.is_test[:number]) % 3], (INK, "#6A51A3", "#A50F15")[sum(flat.is_test[:number]) % 3]
                ax.scatter(x, y, s=38, marker=marker, color=colour, linewidths=1.3, label=f"{name} ({len(x)})")
            else:
                colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
                ax.scatter(x, y, s=26, marker=marker, color=colour, alpha=0.75, linewidths=0, label=f"{name} ({len(x)})")
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_xlabel("t-SNE, first axis (no unit)")
        ax.set_ylabel("t-SNE, second axis (no unit)")
        ax.set_title(f"{len(flat.kind_N)} passages as {model} sees them (PCA keeps {flat.variance:.0%} of the variance, then t-SNE)")
        figure.legend(loc="outside right upper", title="passages of", alignment="left")
    return figure
