"""Tables of stages that made pairs and of filters: sources and drops, overlap with test sets, injected mismatches, samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning_e5.report.tables.table import Column, Table, number, text
from lightning_e5.results.filters import FilterRanks, FilterSample
from lightning_e5.results.pools import DataFacts, ExactOverlap, SourceCounts


def source_table(facts: DataFacts, sources: Sequence[SourceCounts], last: Sequence[Column]) -> Table:
    """What became of the candidates of each of the sources, and of all sources together; ``last``: columns after the drops."""
    drops = [number(f"dropped: {rule}", _dropped(rule), ",") for rule in facts.rules]
    columns = [Column("source", lambda source: source.name), number("candidates", lambda source: source.candidates, ","), *drops, *last]
    return Table.of([*sources, SourceCounts.together("together", facts.sources)], columns)


def pairs_left(facts: DataFacts) -> Table:
    """A row per source, the largest first: drops by rule, pairs left, injected mismatches."""
    last = [number("pairs left", lambda source: source.pairs, ","), number("injected mismatches", lambda source: source.planted, ",")]
    return source_table(facts, sorted(facts.sources, key=lambda source: (-source.candidates, source.name)), last)


def exact_overlap_table(found: Sequence[ExactOverlap]) -> Table:
    """Test texts among the training pairs, per collection."""
    return Table.of(found, [
        Column("collection", lambda o: o.collection), number("test texts", lambda o: o.texts, ","), number("pairs looked at", lambda o: o.pairs, ","),
        number("query is a test text", lambda o: o.queries, ","), number("passage is one", lambda o: o.passages, ","),
    ])  # fmt: skip


def overlap_table(overlap: Mapping[str, Any]) -> Table:
    """``overlap.json``: per collection its texts, the pairs that share a run of words, the source with most of them."""

    def most(entry: Mapping[str, Any]) -> str | None:
        name, found = max(entry["sources"].items(), key=lambda item: (item[1]["pairs"], item[0]), default=(None, None))
        return None if found is None else f"{name} ({found['pairs']:,}, {found['share']:.2%} of it)"

    return Table.of([{**entry, "name": name} for name, entry in overlap["collections"].items()], [
        Column("collection", "name"), number("texts", "texts", ","), number("pairs with a match", "pairs", ","),
        number("share of all pairs", lambda entry: entry["share"] or 0, ".2%"), Column("most from", most),
    ])  # fmt: skip


def truth_table(ranks: FilterRanks) -> Table | None:
    """By source and in all: what the filter did to injected mismatches; None where none was planted."""
    if ranks.planted_N is None:
        return None
    truth, keep = ranks.planted_N, ranks.keep_N
    together = {
        "source": "together", "pairs": len(keep), "kept_share": keep.mean(), "planted": int(truth.sum()),
        "removed_mismatches": (~keep & truth).sum() / max(1, truth.sum()), "kept_pairs": (keep & ~truth).sum() / max(1, (~truth).sum()),
        "precision": (keep & ~truth).sum() / max(1, keep.sum()),
    }  # fmt: skip
    known = sorted((row for row in ranks.sources if "removed_mismatches" in row), key=lambda row: (-row["pairs"], row["source"]))
    return Table.of([*known, together], [
        Column("source", "source"), number("pairs", "pairs", ","), number("kept", "kept_share", ".1%"), number("injected mismatches", "planted", ","),
        number("of them removed", "removed_mismatches", ".1%"), number("other pairs kept", "kept_pairs", ".1%"),
        number("true among the kept", "precision", ".1%"),
    ])  # fmt: skip


def sample_table(samples: Sequence[FilterSample]) -> Table:
    """Kept and dropped pairs."""
    truth = {True: "injected mismatch", False: "true pair", None: None}
    return Table.of(samples, [
        Column("decision", lambda s: "kept" if s.keep else "dropped"), number("rank", lambda s: s.rank, ","),
        Column("truth", lambda s: truth[s.planted]), Column("source", lambda s: s.source or None),
        text("query", lambda s: s.query), text("passage", lambda s: s.passage),
    ])  # fmt: skip


def _dropped(rule: str) -> Callable[[SourceCounts], int]:
    return lambda source: source.dropped.get(rule, 0)
