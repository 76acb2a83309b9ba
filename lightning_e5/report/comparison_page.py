"""An ablation on one page that needs nothing else: question, table, pictures, and what made the figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from lightning_e5.report.figures import comparison as comparison_figures
from lightning_e5.report.html import Part, Picture, heading, page, paragraph, table
from lightning_e5.report.tables import provenance
from lightning_e5.report.tables.comparison import ABSENT, blocks, notes, number
from lightning_e5.results.comparison import IS_BASELINE, Comparison, Row

#: Of ``environment.json``: what is shown as the machine.
MACHINE = ("processor", "cpus", "threads", "gpus", "python")


def comparison_page(comparison: Comparison) -> str:
    """The page as HTML."""
    data = comparison.data
    body: list[Part] = [paragraph(data.question, "lead")]
    if data.held_constant:
        body.append(paragraph(f"Held constant: {', '.join(data.held_constant)}."))
    body.append(paragraph(f"Scale: {data.scale}. Seeds: {', '.join(map(str, data.seeds))}. Baseline: {data.baseline}."))
    body += [heading("Variants"), _variants(comparison)]
    *metrics, cost = blocks(comparison)
    body.append(heading("Results"))
    if len(comparison.metrics) > 1:
        body.append(_overview(comparison))
    for block in [*metrics, cost]:
        body.append(paragraph(block.title))
        body.append(table(block.header, block.rows, numbers=range(block.words, len(block.header)), texts=[1] if block.words > 1 else []))
    body += [paragraph(note, "note") for note in notes(comparison)]
    body += _picture("Means with intervals", comparison_figures.metric_bars(comparison), "Every variant's mean with its 95% interval")
    body.append(paragraph(
        "Intervals of two means may overlap where a difference is shown: all variants share the luck of the queries, and the "
        "differences are paired over them.", "note",
    ))  # fmt: skip
    if curves := _picture("Learning curves", comparison_figures.learning_curves(comparison), "The loss of each variant over the pairs seen"):
        body += [*curves, paragraph(
            "The line is the mean over seeds, the band reaches from the lowest to the highest seed. Losses over different numbers of "
            "negatives or at different temperatures are not on one scale.", "note",
        )]  # fmt: skip
    body += _picture(
        "Differences to the baseline, query by query", comparison_figures.query_differences(comparison),
        "The sorted differences of single queries to the baseline, averaged over seeds",
    )  # fmt: skip
    body += [heading("What made these figures"), _environment(comparison)]
    return page(f"{data.name} ({data.scale})", body)


def environment_facts(environments: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Commit, machine and versions of all runs; where runs differ, every value that occurred."""
    facts: dict[str, list[str]] = {}
    for environment in environments:
        for key, value in provenance.environment_facts(environment, MACHINE).items():
            if value not in facts.setdefault(key, []):
                facts[key].append(value)
    return {key: "; ".join(values) for key, values in facts.items()}


def _variants(comparison: Comparison) -> Part:
    rows = []
    for row in comparison.rows:
        name = f"{row.variant} (baseline)" if row is comparison.baseline else row.variant
        state = row.seeds_shown + (f" ({row.trouble})" if row.unfinished else "")
        rows.append([name, row.description or ABSENT, state])
    return table(["variant", "what it is", "finished"], rows, numbers=[], texts=[1, 2])


def _overview(comparison: Comparison) -> Part:
    """Variants by metrics: the mean and what may be said of the difference to the baseline."""
    rows = [[row.variant, *(_glance(comparison, row, name) for name in comparison.metrics)] for row in comparison.rows]
    return table(["variant", *comparison.metrics], rows, numbers=range(1, len(comparison.metrics) + 1))


def _glance(comparison: Comparison, row: Row, name: str) -> str:
    cell = row.cells.get(name)
    if cell is None:
        return ABSENT
    said = IS_BASELINE if row is comparison.baseline else cell.verdict
    return f"{number(cell.mean.mean)} ({said})" if said else number(cell.mean.mean)


def _environment(comparison: Comparison) -> Part:
    facts = environment_facts(comparison.environments)
    rows = [["ablation file", str(comparison.data.plan.get("file") or ABSENT)], *([key, value] for key, value in facts.items())]
    return table(["what", "value"], rows, texts=[1])


def _picture(title: str, figure: Figure | None, description: str) -> list[Part]:
    return [] if figure is None else [heading(title), Picture(figure, description)]
