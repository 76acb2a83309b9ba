"""The report's section on a filter: what it kept in all and of each source, where pairs rank, kept and dropped samples."""

from __future__ import annotations

import itertools

from matplotlib.figure import Figure

from lightning_e5.report.figures import drawing as figures
from lightning_e5.report.figures.filters import filter_ranks, kept_per_source
from lightning_e5.report.html import details, heading, paragraph, picture, table
from lightning_e5.results.filters import FilterRanks, FilterSample
from lightning_e5.results.run import RunData

_SHOWN_LETTERS = 240
_ABSENT = "–"
#: Sources in the open table; of more, the smaller ones are folded away.
OPEN_SOURCES = 40


def filter_section(run: RunData, stage: str) -> list[str]:
    """HTML fragments about one filter stage."""
    ranks = run.filter_ranks(stage)
    body = [heading(f"The filter ({stage})"), paragraph(filter_judgement(run, stage))]
    if ranks.planted_N is not None:
        rows = []
        for name, chosen in (("true pairs", ~ranks.planted_N), ("planted mismatches", ranks.planted_N)):
            kept, total = int((ranks.keep_N & chosen).sum()), int(chosen.sum())
            rows.append([name, f"{kept:,}", f"{total - kept:,}", f"{total:,}"])
        body.append(table(["", "kept", "dropped", "together"], rows, numbers=[1, 2, 3]))
    body += _pictures(filter_ranks(run, stage), "The ranks of pairs among the pool")
    if ranks.cap is not None:
        body.append(paragraph(f"Ranks were counted up to {ranks.cap - 1:,}; those over it are one class.", "note"))
    body += _sources(run, stage, ranks)
    if samples := run.filter_samples(stage):
        body.append(paragraph("Pairs drawn at random from what was kept and from what was dropped, by rank:"))
        body.append(_samples(samples))
    return body


def filter_judgement(run: RunData, stage: str) -> str:
    """What the filter did, in words, against the planted truth where there is one."""
    ranks = run.filter_ranks(stage)
    said = (
        f"Kept {int(ranks.keep_N.sum()):,} of {len(ranks.keep_N):,} pairs: those whose passage ranks at most {ranks.k}."
    )
    if missing := int((~ranks.ranked_N).sum()):
        said += f" {missing:,} pairs were not ranked: a round before this one had dropped them."
    truth = ranks.metrics
    if ranks.planted_N is None or not {"precision", "recall", "removed_mismatches"} <= truth.keys():
        return f"{said} The pairs carry no planted truth, so the filter cannot be judged."
    return (
        f"{said} Precision {truth['precision']:.1%} (kept pairs that are true), recall {truth['recall']:.1%} (true "
        f"pairs that were kept); {truth['removed_mismatches']:.1%} of the planted mismatches were removed."
    )


def _sources(run: RunData, stage: str, ranks: FilterRanks) -> list[str]:
    """The table and picture of what is kept of each source; nothing where there is one source."""
    if len(ranks.sources) < 2:
        return []
    judged = all("precision" in row for row in ranks.sources)
    header = ["source", "pairs", "kept", "share", "median rank", "pool", *(["precision", "recall"] if judged else [])]
    rows = []
    for row in sorted(ranks.sources, key=lambda r: (-r["pairs"], r["source"])):
        median = row["median_rank"]
        capped = median is not None and ranks.cap is not None and median >= ranks.cap
        shown = _ABSENT if median is None else f"over {median - 1:,}" if capped else f"{median:,}"
        cells = [row["source"], f"{row['pairs']:,}", f"{row['kept']:,}", f"{row['kept_share']:.1%}", shown, f"{row['pool']:,}"]
        rows.append(cells + ([f"{row['precision']:.1%}", f"{row['recall']:.1%}"] if judged else []))
    numbers = range(1, len(header))
    body = [paragraph("Kept of each source:"), table(header, rows[:OPEN_SOURCES], numbers=list(numbers))]
    if rest := rows[OPEN_SOURCES:]:
        lines = ["\t".join(header), *("\t".join(row) for row in rest)]
        body.append(details(f"the other {len(rest)} sources", "\n".join(lines)))
    return body + _pictures(kept_per_source(run, stage), "The kept share of each source")


def _samples(samples: list[FilterSample]) -> str:
    """A table with kept pairs on the left and dropped ones on the right."""
    truth = {True: "planted mismatch", False: "true pair", None: ""}

    def cells(sample: FilterSample | None) -> list[str]:
        if sample is None:
            return ["", "", ""]
        about = " · ".join(word for word in (f"rank {sample.rank:,}", sample.source, truth[sample.planted]) if word)
        return [about, _short(sample.query), _short(sample.passage)]

    sides = [[s for s in samples if s.keep == kept] for kept in (True, False)]
    rows = [cells(kept) + cells(dropped) for kept, dropped in itertools.zip_longest(*sides)]
    header = ["kept", "query", "passage", "dropped", "query", "passage"]
    return table(header, rows, texts=[1, 2, 4, 5])


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN_LETTERS else f"{text[:_SHOWN_LETTERS].rstrip()} …"


def _pictures(figure: Figure | None, description: str) -> list[str]:
    return [] if figure is None else [picture(figures.svg(figure), description)]
