"""The report's section on a filter: what it kept in all, where pairs rank; folded: what it kept of each source, samples."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from lightning_e5.report.figures.filters import filter_ranks, kept_per_source
from lightning_e5.report.html import Details, Folded, Paragraph, Part, Picture, Section
from lightning_e5.report.tables.escaping import shortened
from lightning_e5.report.tables.table import Column, Table, number, text
from lightning_e5.results.filters import FilterRanks, FilterSample
from lightning_e5.results.run import RunData

_SHOWN_LETTERS = 240
#: Sources in the open table; of more, the smaller ones are folded away.
OPEN_SOURCES = 40


def filter_section(run: RunData, stage: str) -> Section:
    """The section about one filter stage: what it kept and where pairs rank; sources and samples are folded."""
    ranks = run.filter_ranks(stage)
    parts: list[Part] = [
        Paragraph(filter_summary(run, stage)),
        Picture.of(lambda width: filter_ranks(run, stage, width), "The ranks of pairs among the pool"),
    ]
    if ranks.filtered_before is not None:
        parts.append(Paragraph(filtered_before(ranks.filtered_before), "note"))
    if ranks.cap is not None:
        parts.append(Paragraph(f"Ranks were counted up to {ranks.cap - 1:,}; those over it are one class.", "note"))
    if ranks.planted_N is not None:
        parts.append(Folded("Kept and dropped, by injected label noise", [_counts(ranks, ranks.planted_N)]))
    if len(ranks.sources) > 1:
        drawn = Picture.of(lambda width: kept_per_source(run, stage, width), "The kept share of each source")
        parts.append(Folded("Kept of each source", [*_sources(ranks), drawn]))
    if samples := run.filter_samples(stage):
        drawn_at = Paragraph("Pairs drawn at random from what was kept and from what was dropped, by rank:")
        parts.append(Folded("Samples of kept and dropped pairs", [drawn_at, _samples(samples)]))
    return Section(f"The filter ({stage})", parts)


def _counts(ranks: FilterRanks, planted_N: NDArray[np.bool_]) -> Table:
    columns = [Column(""), *(number(title, format=",") for title in ("kept", "dropped", "together"))]
    rows = []
    for name, chosen in (("true pairs", ~planted_N), ("injected mismatches", planted_N)):
        kept, total = int((ranks.keep_N & chosen).sum()), int(chosen.sum())
        rows.append([name, kept, total - kept, total])
    return Table(columns, rows)


def filter_summary(run: RunData, stage: str) -> str:
    """What the filter did, in words, against the injected label noise where there is one."""
    ranks = run.filter_ranks(stage)
    said = f"Kept {int(ranks.keep_N.sum()):,} of {len(ranks.keep_N):,} pairs: those whose passage ranks at most {ranks.k}."
    if missing := int((~ranks.ranked_N).sum()):
        said += f" {missing:,} pairs were not ranked: a round before this one had dropped them."
    truth = ranks.metrics
    if ranks.planted_N is None or not {"precision", "recall", "removed_mismatches"} <= truth.keys():
        return f"{said} The pairs carry no injected label noise, so the filter cannot be evaluated."
    return (
        f"{said} Precision {truth['precision']:.1%} (kept pairs that are true), recall {truth['recall']:.1%} (true "
        f"pairs that were kept); {truth['removed_mismatches']:.1%} of the injected mismatches were removed."
    )


def filtered_before(by: str) -> str:
    """What it means that another model filtered the pairs before this filter saw them."""
    return (
        f"These pairs were filtered before, by {by}. This filter drops but what that one let through, so a kept share near 100% is "
        "to be expected and is no sign of clean pairs: what both models take for a match stays, and what the first one dropped can "
        "not come back. The share does not compare with the paper's (about 270 million kept of 1.3 billion unfiltered pairs)."
    )


def _sources(ranks: FilterRanks) -> list[Part]:
    """What is kept of each source, the largest in an open table."""

    def median(row: dict[str, int]) -> int | str | None:
        value = row["median_rank"]
        capped = value is not None and ranks.cap is not None and value >= ranks.cap
        return f"over {value - 1:,}" if capped else value

    with_truth = all("precision" in row for row in ranks.sources)
    table = Table.of(sorted(ranks.sources, key=lambda row: (-row["pairs"], row["source"])), [
        Column("source", "source"), number("pairs", "pairs", ","), number("kept", "kept", ","), number("share", "kept_share", ".1%"),
        number("median rank", median, ","), number("pool", "pool", ","),
        *(number(name, name, ".1%") for name in ("precision", "recall") if with_truth),
    ])  # fmt: skip
    rest = Table(table.columns, table.rows[OPEN_SOURCES:])
    table.rows = table.rows[:OPEN_SOURCES]
    folded = Details(f"the other {len(rest.rows)} sources", "\n".join("\t".join(row) for row in (rest.header, *rest.cells)))
    return [table, *([folded] if rest.rows else [])]


def _samples(samples: list[FilterSample]) -> Table:
    """A table with kept pairs on the left and dropped ones on the right."""
    truth = {True: "injected mismatch", False: "true pair", None: ""}

    def cells(sample: FilterSample | None) -> list[str]:
        if sample is None:
            return ["", "", ""]
        about = " · ".join(word for word in (f"rank {sample.rank:,}", sample.source, truth[sample.planted]) if word)
        return [about, shortened(sample.query, _SHOWN_LETTERS), shortened(sample.passage, _SHOWN_LETTERS)]

    sides = [[sample for sample in samples if sample.keep == kept] for kept in (True, False)]
    columns = [column for side in ("kept", "dropped") for column in (Column(side), text("query"), text("passage"))]
    return Table(columns, [cells(kept) + cells(dropped) for kept, dropped in itertools.zip_longest(*sides)])
