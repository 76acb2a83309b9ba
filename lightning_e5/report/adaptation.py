"""An adaptation to own texts as a section of the run's page."""

from __future__ import annotations

from lightning_e5.report.html import Folded, Paragraph, Part, Section
from lightning_e5.report.tables.adaptation import adaptation_table, changed_tables, decision_lines
from lightning_e5.report.tables.table import Column, Table, number, text
from lightning_e5.results.adaptation import adaptation, read_texts
from lightning_e5.results.run import RunData


def adaptation_sections(run: RunData, drawn: Part) -> list[Part]:
    """What an adapted encoder changed, for the page, with the figure of all models; nothing for another run."""
    found = adaptation(run)
    if found is None:
        return []
    first, *others = [Paragraph(line) for line in decision_lines(found)]
    changed = [Folded(title, [table]) for title, table in changed_tables(found.changed_queries()).items()]
    return [Section("Your texts", [first, adaptation_table(found), *others, drawn, *changed, *_read(run)])]


def _read(run: RunData) -> list[Part]:
    """What the texts were taken for, what was left out and why, and examples of the training pairs."""
    parts: list[Part] = []
    for found in read_texts(run):
        inside: list[Part] = [Paragraph(line) for line in found.lines]
        if found.dropped:
            inside.append(Table([Column("left out"), number("count", format=","), text("first")], [list(row) for row in found.dropped]))
        columns = [text(key, key) for key in ("query", "passage", "source", "id")]
        inside += [Paragraph("Some of the training pairs:"), Table.of(found.examples, columns)]
        parts.append(Folded("What was read", inside))
    return parts
