"""An adaptation to own texts as a section of the run's page."""

from __future__ import annotations

from lightning_e5.report.html import Folded, Paragraph, Part, Section
from lightning_e5.report.tables.adaptation import adaptation_table, changed_tables, decision_lines
from lightning_e5.results.adaptation import adaptation
from lightning_e5.results.run import RunData


def adaptation_sections(run: RunData) -> list[Part]:
    """What an adapted encoder changed, for the page; nothing for another run."""
    found = adaptation(run)
    if found is None:
        return []
    first, *others = [Paragraph(line) for line in decision_lines(found)]
    changed = [Folded(title, [table]) for title, table in changed_tables(found.changed_queries()).items()]
    return [Section("Your texts", [first, adaptation_table(found), *others, *changed])]
