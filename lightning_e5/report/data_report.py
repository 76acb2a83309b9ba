"""The report's section on a built pool: pairs by source, drops by rule, and what could not be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from data_modules.pair_store import SHARDS
from lightning_e5.report.html import heading, paragraph, table
from lightning_e5.results import result_files as shapes
from lightning_e5.results.result_files import read_result
from lightning_e5.results.run import RunData

#: Sources with a row of their own; the others, the smallest, share one.
SHOWN_SOURCES = 40
_SHOWN_BAD = 20


def data_sections(run: RunData) -> list[str]:
    """HTML fragments, one section per stage that built a pool of shards."""
    return [part for stage in run.stages_with(SHARDS) for part in _section(stage, read_result(run.stage(stage) / SHARDS, shapes.SHARDS))]


def _section(stage: str, facts: Mapping[str, Any]) -> list[str]:
    sources: Sequence[Mapping[str, Any]] = facts["sources"]
    candidates, pairs = (sum(source[name] for source in sources) for name in ("candidates", "pairs"))
    share = f" ({pairs / candidates:.1%})" if candidates else ""
    body = [heading(f"The pairs ({stage})"), paragraph(f"{pairs:,} pairs of {candidates:,} candidates{share} from {len(sources)} sources.")]
    drops = sum((Counter(source["dropped"]) for source in sources), Counter[str]())
    rules = [rule for rule, _ in sorted(drops.items(), key=lambda item: (-item[1], item[0]))]
    largest = sorted(sources, key=lambda source: -source["pairs"])[:SHOWN_SOURCES]
    shown = [_row(s["name"], [s], rules) for s in sources if s in largest]
    rest = [s for s in sources if s not in largest]
    shown += [_row(f"{len(rest)} smaller sources", rest, rules)] if rest else []
    header = ["source", "candidates", *(f"dropped: {rule}" for rule in rules), "pairs", "kept"]
    rows = [*shown, _row("together", sources, rules)]
    body.append(table(header, rows, numbers=range(1, len(header))))
    planted = sum(source["planted"] for source in sources)
    if planted:
        body.append(paragraph(f"{planted:,} pairs got another pair's passage on purpose, to judge the filter by."))
    return body + _reading(facts["read"])


def _row(name: str, sources: Sequence[Mapping[str, Any]], rules: Sequence[str]) -> list[str]:
    dropped: Counter[str] = Counter()
    for source in sources:
        dropped.update(source["dropped"])
    candidates, pairs = (sum(source[key] for source in sources) for key in ("candidates", "pairs"))
    share = f"{pairs / candidates:.1%}" if candidates else "–"
    return [name, f"{candidates:,}", *(f"{dropped[rule]:,}" for rule in rules), f"{pairs:,}", share]


def _reading(readers: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the readers counted, and the places of the first bad records."""
    rows = [[r["name"], f"{r['parts']:,}", what, f"{count:,}"] for r in readers for what, count in sorted(r["counts"].items())]
    body = [paragraph("What reading the raw files gave:"), table(["reader", "parts", "what", "count"], rows, numbers=[1, 3])] if rows else []
    bad = [[reader["name"], *[*entry, "", ""][:2]] for reader in readers for entry in reader["bad"]][:_SHOWN_BAD]
    if bad:
        body += [paragraph("The first records that could not be read:"), table(["reader", "place", "reason"], bad, texts=[1, 2])]
    return body
