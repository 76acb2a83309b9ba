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
from lightning_e5.results import result_files as shapes
from lightning_e5.results.result_files import read_result
from lightning_e5.results.run import RunData
from lightning_e5.text import text_id, words

PACKAGES, OVERLAP = "packages.json", "overlap.json"
#: Pairs of which at most so many are read for lengths and overlaps.
SAMPLE = 20_000
HELD_OUT, LEFT_OUT = "held out for the test", "in the test, or above max_pairs"


@dataclass(frozen=True, slots=True)
class SourceCounts:
    """One source: its candidates, those dropped by each rule, the pairs left and the injected mismatches among them."""

    name: str
    candidates: int
    dropped: Mapping[str, int]
    pairs: int
    planted: int

    @classmethod
    def together(cls, name: str, sources: Sequence[SourceCounts]) -> SourceCounts:
        """The sums over some sources, under a name."""
        dropped: Counter[str] = Counter()
        for source in sources:
            dropped.update(source.dropped)
        candidates, pairs, planted = (sum(getattr(source, key) for source in sources) for key in ("candidates", "pairs", "planted"))
        return cls(name, candidates, dropped, pairs, planted)


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
        total = SourceCounts.together("", self.sources).dropped
        return [rule for rule, count in sorted(total.items(), key=lambda item: (-item[1], item[0])) if count]


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
