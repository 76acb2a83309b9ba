"""The report's section on a built pool: pairs by source, drops by rule, and what could not be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_modules.pair_store import SHARDS
from lightning_e5.report.html import Folded, Paragraph, Part
from lightning_e5.report.tables.pools import source_table
from lightning_e5.report.tables.table import Column, Table, number, text
from lightning_e5.results import result_files as shapes
from lightning_e5.results.pools import DataFacts, SourceCounts, data_facts
from lightning_e5.results.result_files import read_result
from lightning_e5.results.run import RunData

#: Sources with a row of their own; the others, the smallest, share one.
SHOWN_SOURCES = 40
_SHOWN_BAD = 20


def data_sections(run: RunData) -> list[Part]:
    """One folded section per stage that built a pool of shards."""
    stages = run.stages_with(SHARDS)
    built = [facts for facts in data_facts(run) if facts.stage in stages]
    return [_section(facts, read_result(run.stage(facts.stage) / SHARDS, shapes.SHARDS)["read"]) for facts in built]


def _section(facts: DataFacts, readers: Sequence[Mapping[str, Any]]) -> Folded:
    total = SourceCounts.together("", facts.sources)
    share = f" ({total.pairs / total.candidates:.1%})" if total.candidates else ""
    largest = sorted(facts.sources, key=lambda source: -source.pairs)[:SHOWN_SOURCES]
    shown = [source for source in facts.sources if source in largest]
    if rest := [source for source in facts.sources if source not in largest]:
        shown.append(SourceCounts.together(f"{len(rest)} smaller sources", rest))
    kept = number("kept", lambda source: source.pairs / source.candidates if source.candidates else None, ".1%")
    parts: list[Part] = [
        Paragraph(f"{total.pairs:,} pairs of {total.candidates:,} candidates{share} from {len(facts.sources)} sources."),
        source_table(facts, shown, [number("pairs", lambda source: source.pairs, ","), kept]),
    ]
    if total.planted:
        parts.append(Paragraph(f"{total.planted:,} pairs got another pair's passage on purpose, to evaluate the filter by."))
    return Folded(f"The pairs ({facts.stage})", [*parts, *_reading(readers)])


def _reading(readers: Sequence[Mapping[str, Any]]) -> list[Part]:
    """What the readers counted, and the places of the first bad records."""
    rows = [[reader["name"], reader["parts"], what, count] for reader in readers for what, count in sorted(reader["counts"].items())]
    columns = [Column("reader"), number("parts", format=","), Column("what"), number("count", format=",")]
    parts: list[Part] = [Paragraph("What reading the raw files gave:"), Table(columns, rows)] if rows else []
    bad = [[reader["name"], *[*entry, "", ""][:2]] for reader in readers for entry in reader["bad"]][:_SHOWN_BAD]
    if bad:
        parts += [Paragraph("The first records that could not be read:"), Table([Column("reader"), text("place"), text("reason")], bad)]
    return parts
