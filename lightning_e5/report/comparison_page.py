"""A comparison on one page that needs nothing else; of an ablation: question, tables, figures, and what made them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from lightning_e5.report.figures import comparison as comparison_figures
from lightning_e5.report.html import Paragraph, Part, Picture, Section, page
from lightning_e5.report.tables import provenance
from lightning_e5.report.tables.comparison import IS_BASELINE, notes, shown, tables
from lightning_e5.report.tables.table import Column, Table, key_values, number, text
from lightning_e5.report.tables.what_differs import NOTHING, differing_table
from lightning_e5.results.comparison import AblationComparison, Comparison, Row
from lightning_e5.results.single_runs import RunsComparison

#: Of ``environment.json``: what is shown as the machine.
MACHINE = ("processor", "cpus", "threads", "gpus", "python")


def comparison_page(comparison: Comparison) -> str:
    """The page as HTML."""
    results: list[Part] = [*tables(comparison), *(Paragraph(note, "note") for note in notes(comparison))]
    if isinstance(comparison, RunsComparison) and len(comparison.names) > 1:
        differing: Part = differing_table(comparison) if comparison.differing else Paragraph(NOTHING)
        return page(comparison.title, [Section("What differs", [differing]), Section("Results", results)])
    if not isinstance(comparison, AblationComparison):
        return page(comparison.title, results)
    data = comparison.data
    body: list[Part] = [Paragraph(data.question, "lead")]
    if data.held_constant:
        body.append(Paragraph(f"Held constant: {', '.join(data.held_constant)}."))
    body.append(Paragraph(f"Scale: {data.scale}. Seeds: {', '.join(map(str, data.seeds))}. Baseline: {data.baseline}."))
    body.append(Section("Variants", [_variants(comparison)]))
    body.append(Section("Results", [_overview(comparison), *results] if len(comparison.metrics) > 1 else results))
    body += _figure(
        "Means with intervals", comparison_figures.metric_bars(comparison), "Every variant's mean with its 95% interval",
        "Intervals of two means may overlap where a difference is shown: all variants share the variance of the queries, and the "
        "differences are paired over them.",
    )  # fmt: skip
    body += _figure(
        "Learning curves", comparison_figures.learning_curves(comparison), "The loss of each variant over the pairs seen",
        "The line is the mean over seeds, the band reaches from the lowest to the highest seed. Losses over different numbers of "
        "negatives or at different temperatures are not on one scale.",
    )  # fmt: skip
    body += _figure(
        "Differences to the baseline, query by query", comparison_figures.query_differences(comparison),
        "The sorted differences of single queries to the baseline, averaged over seeds",
    )  # fmt: skip
    facts = {"ablation file": data.plan.get("file") or None, **environment_facts(comparison.environments)}
    made_with = key_values(facts)
    made_with.columns[1] = text(made_with.columns[1].title)
    return page(comparison.title, [*body, Section("What made these figures", [made_with])])


def environment_facts(environments: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Commit, machine and versions of all runs; where runs differ, every value that occurred."""
    facts: dict[str, list[str]] = {}
    for environment in environments:
        for key, value in provenance.environment_facts(environment, MACHINE).items():
            if value not in facts.setdefault(key, []):
                facts[key].append(value)
    return {key: "; ".join(values) for key, values in facts.items()}


def _variants(comparison: AblationComparison) -> Table:
    return Table.of(comparison.rows, [
        Column("variant", lambda row: f"{row.name} (baseline)" if row is comparison.baseline else row.name),
        text("what it is", lambda row: row.description or None),
        text("finished", lambda row: row.seeds_shown + (f" ({row.unfinished_shown})" if row.unfinished else "")),
    ])  # fmt: skip


def _overview(comparison: AblationComparison) -> Table:
    """Variants by metrics: the mean and what the difference to the baseline shows."""

    def glance(name: str, row: Row) -> str | None:
        if (cell := row.cells.get(name)) is None:
            return None
        said = IS_BASELINE if row is comparison.baseline else cell.decision
        return f"{shown(cell.mean.mean)} ({said})" if said else shown(cell.mean.mean)

    metrics = [number(name, partial(glance, name)) for name in comparison.metrics]
    return Table.of(comparison.rows, [Column("variant", lambda row: row.name), *metrics])


def _figure(title: str, figure: Figure | None, description: str, note: str = "") -> list[Part]:
    """A section with a figure; none where there is nothing to draw."""
    below = [Paragraph(note, "note")] if note else []
    return [] if figure is None else [Section(title, [Picture(figure, description), *below])]
