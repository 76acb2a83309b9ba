"""What a stage that made pairs counted and wrote: drops by rule and source, overlap with the test sets, lengths of texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_modules.pair_rows import source_codes, take_rows
from data_modules.pair_store import SHARDS, TABLE, PairStore
from lightning_e5.curation.cleaning.shingles import words
from lightning_e5.results import result_files as shapes
from lightning_e5.results.filters import FilterRanks, FilterSample
from lightning_e5.results.result_files import read_result
from lightning_e5.results.run import RunData
from lightning_e5.text import text_id

PACKAGES, OVERLAP = "packages.json", "overlap.json"
#: Pairs of which at most so many are read for lengths and overlaps.
SAMPLE = 20_000
HELD_OUT, LEFT_OUT = "held out for the test", "in the test, or above max_pairs"


@dataclass(frozen=True, slots=True)
class SourceCounts:
    """One source: its candidates, those dropped by each rule, the pairs left and the planted mismatches among them."""

    name: str
    candidates: int
    dropped: Mapping[str, int]
    pairs: int
    planted: int


@dataclass(frozen=True)
class DataFacts:
    """A stage that made pairs.

    ``before``: what its reader and rules counted that belongs to no source; ``overlap``: ``overlap.json`` where the
    stage looked for shared runs of words.
    """

    stage: str
    sources: tuple[SourceCounts, ...]
    before: Mapping[str, int] = field(default_factory=dict)
    overlap: Mapping[str, Any] | None = None

    @property
    def rules(self) -> list[str]:
        """The rules that dropped a pair, the strictest first."""
        total: Counter[str] = Counter()
        for source in self.sources:
            total.update(source.dropped)
        return [rule for rule, count in sorted(total.items(), key=lambda item: (-item[1], item[0])) if count]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and cells: a row per source, the largest first, and one of all together."""
        header = ["source", "candidates", *(f"dropped: {rule}" for rule in self.rules), "pairs left", "planted mismatches"]
        ordered = sorted(self.sources, key=lambda source: (-source.candidates, source.name))
        names = [*(s.name for s in ordered), "together"]
        counts = [[s.candidates, *(s.dropped.get(rule, 0) for rule in self.rules), s.pairs, s.planted] for s in ordered]
        counts.append([sum(row[c] for row in counts) for c in range(len(header) - 1)])
        return header, [[name, *(f"{value:,}" for value in row)] for name, row in zip(names, counts, strict=True)]


def data_facts(run: RunData) -> list[DataFacts]:
    """The facts of every stage that made pairs, in the order of the configuration; empty where the run made none."""
    found = []
    for stage in run.config["stages"]:
        folder = run.stage(stage)
        overlap = read_result(folder / OVERLAP, shapes.OVERLAP) if (folder / OVERLAP).is_file() else None
        if (folder / SHARDS).is_file():
            found.append(_of_shards(stage, read_result(folder / SHARDS, shapes.SHARDS), overlap))
        elif (folder / PACKAGES).is_file() and (folder / TABLE).is_file():
            metrics = read_result(folder / "metrics.json", shapes.METRICS) if (folder / "metrics.json").is_file() else {}
            found.append(_of_packages(stage, PairStore(folder), read_result(folder / PACKAGES, shapes.PACKAGES), metrics))
    return found


@dataclass(frozen=True)
class TextLengths:
    """Words of the texts of a sample of pairs, and what is known of each pair.

    ``keep_N``: the decision of the first filter of these pairs, None where there is none; ``of``: all pairs there are.
    """

    query_N: NDArray[np.int64]
    passage_N: NDArray[np.int64]
    source_N: NDArray[np.int32]
    sources: list[str]
    keep_N: NDArray[np.bool_] | None
    of: int


def text_lengths(run: RunData, stage: str) -> TextLengths:
    """The lengths in words of up to 20,000 random pairs (always the same) of a stage that made pairs."""
    store = PairStore(run.stage(stage))
    rows = sample_rows(store)
    query_N, passage_N = (
        np.array([len(words(text)) for text in take_rows(store, rows, [column])[column].to_pylist()], np.int64)
        for column in ("query", "passage")
    )
    names, code_N = source_codes(store)
    keep_N = next((run.filter_ranks(f).keep_N[rows] for f in run.filters() if _filters(run, f, stage)), None)
    return TextLengths(query_N, passage_N, code_N[rows], names, keep_N, store.rows)


@dataclass(frozen=True, slots=True)
class ExactOverlap:
    """Of ``pairs`` training pairs, how many have a query or a passage that is (case and spaces folded) a test text."""

    collection: str
    texts: int
    pairs: int
    queries: int
    passages: int


def exact_overlaps(run: RunData, stage: str) -> list[ExactOverlap]:
    """A recount, from the files, of test texts among up to 20,000 random pairs; one row per collection of the run."""
    store = PairStore(run.stage(stage))
    rows = sample_rows(store)
    ids = {
        column: [text_id(text) for text in take_rows(store, rows, [column])[column].to_pylist()] for column in ("query", "passage")
    }
    found = []
    for collection in dict.fromkeys(result.collection for result in run.results()):
        texts = {text_id(text) for text in _test_texts(run, collection)}
        queries, passages = (sum(i in texts for i in ids[column]) for column in ("query", "passage"))
        found.append(ExactOverlap(collection, len(texts), len(rows), queries, passages))
    return found


def overlap_table(overlap: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of ``overlap.json``: per collection its texts, the pairs that share a run of words, their sources."""
    header = ["collection", "texts", "pairs with a match", "share of all pairs", "most from"]
    rows = []
    for name, entry in overlap["collections"].items():
        most = max(entry["sources"].items(), key=lambda item: (item[1]["pairs"], item[0]), default=None)
        shown = "–" if most is None else f"{most[0]} ({most[1]['pairs']:,}, {most[1]['share']:.2%} of it)"
        rows.append([name, f"{entry['texts']:,}", f"{entry['pairs']:,}", f"{entry['share'] or 0:.2%}", shown])
    return header, rows


def truth_table(ranks: FilterRanks) -> tuple[list[str], list[list[str]]] | None:
    """Header and cells, by source and in all: what the filter did to planted mismatches; None where none was planted."""
    if ranks.planted_N is None:
        return None
    header = ["source", "pairs", "kept", "planted mismatches", "of them removed", "other pairs kept", "true among the kept"]
    rows = [
        [s["source"], f"{s['pairs']:,}", f"{s['kept_share']:.1%}", f"{s['planted']:,}",
         *(f"{s[key]:.1%}" for key in ("removed_mismatches", "kept_pairs", "precision"))]
        for s in sorted(ranks.sources, key=lambda s: (-s["pairs"], s["source"]))
        if "removed_mismatches" in s
    ]  # fmt: skip
    truth, keep = ranks.planted_N, ranks.keep_N
    shares = [(~keep & truth).sum() / max(1, truth.sum()), (keep & ~truth).sum() / max(1, (~truth).sum()), (keep & ~truth).sum() / max(1, keep.sum())]
    rows.append(["together", f"{len(keep):,}", f"{keep.mean():.1%}", f"{truth.sum():,}", *(f"{share:.1%}" for share in shares)])
    return header, rows


def sample_table(samples: Sequence[FilterSample]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of kept and dropped pairs."""
    truth = {True: "planted mismatch", False: "true pair", None: "–"}
    rows = [["kept" if s.keep else "dropped", f"{s.rank:,}", truth[s.planted], s.source or "–", s.query, s.passage] for s in samples]
    return ["decision", "rank", "truth", "source", "query", "passage"], rows


def sample_rows(store: PairStore, most: int = SAMPLE) -> NDArray[np.int64]:
    """Up to ``most`` random row numbers, rising, always the same for the same store."""
    if store.rows <= most:
        return np.arange(store.rows)
    return np.sort(np.random.default_rng(0).choice(store.rows, most, replace=False))


def _of_shards(stage: str, facts: Mapping[str, Any], overlap: Mapping[str, Any] | None) -> DataFacts:
    sources = tuple(
        SourceCounts(s["name"], s["candidates"], dict(s["dropped"]), s["pairs"], s["planted"]) for s in facts["sources"]
    )
    before: Counter[str] = Counter()
    for reader in facts["read"]:
        before.update({f"{reader['name']}: {what}": count for what, count in sorted(reader["counts"].items())})
    return DataFacts(stage, sources, dict(before), overlap)


def _of_packages(stage: str, store: PairStore, facts: Mapping[str, Any], metrics: Mapping[str, float]) -> DataFacts:
    """Of the stage that reads packages: which pairs of a package were left out for which reason is known only in all."""
    names, code_N = source_codes(store)
    planted_N = store.read(["planted"])["planted"].to_numpy(zero_copy_only=False)
    pairs, planted = np.bincount(code_N, minlength=len(names)), np.bincount(code_N[planted_N], minlength=len(names))
    left = {name: (int(p), int(m)) for name, p, m in zip(names, pairs, planted, strict=True)}
    sources = []
    for name, entry in facts["packages"].items():
        own, mismatches = left.get(name, (0, 0))
        rule = HELD_OUT if entry["held_out"] else LEFT_OUT
        dropped = {rule: entry["pairs"] - own} if entry["pairs"] > own else {}
        sources.append(SourceCounts(name, entry["pairs"], dropped, own, mismatches))
    before = {
        key.removeprefix("source_").replace("_", " "): int(value)
        for key, value in metrics.items()
        if key.startswith(("source_", "dropped_", "duplicates_", "removed_"))
    }
    return DataFacts(stage, tuple(sources), before)


def _filters(run: RunData, filter_stage: str, stage: str) -> bool:
    return (run.config["stages"][filter_stage].get("inputs") or {}).get("pairs") == stage


def _test_texts(run: RunData, collection: str) -> Iterator[str]:
    yield from run.queries(collection).values()
    yield from run.passages(collection).values()
