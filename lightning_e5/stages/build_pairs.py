"""Stage: a pool of raw training pairs with injected label noise, and a test collection of held-out packages.

It is the small form of `build_ccpairs`: one source that fits in memory, one file of pairs, drawn and exchanged as one pool.
Its draws are over all pairs where those of `build_ccpairs` are per source or shard, so that neither can stand for the other.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lightning_e5.configurable import configurable
from lightning_e5.curation.building.label_noise import inject_label_noise
from lightning_e5.curation.cleaning.decontaminate import Contamination
from lightning_e5.errors import UserError, suggestion
from lightning_e5.files.parquet import write_parquet
from lightning_e5.files.storage import write_json, write_text
from lightning_e5.ranges import Count, CountOrZero, Share
from lightning_e5.text import text_id
from lightning_e5.types import PairSource, Qrels, TextPair


@configurable("stage")
def build_pairs(
    out: Path,
    *,
    source: PairSource,
    held_out: Sequence[str],
    test_name: str = "python-docs",
    planted_mismatches: Share = 0.3,
    max_pairs: Count | None = None,
    max_test_queries: Count | None = None,
    passages_per_judged: CountOrZero = 4,
    seed: int = 0,
) -> dict[str, float]:
    """Write ``pairs.parquet``, the test collection ``test/`` (BEIR layout) and ``packages.json`` into ``out``.

    Args:
        out: an empty directory.
        source: where the pairs come from.
        held_out: values of ``TextPair.source`` whose pairs are the test collection and are not trained on; a pair of another source
            with one of their queries or passages, on either side, is dropped as well, and counted.
        test_name: the test collection's name, written to ``packages.json``.
        planted_mismatches: share of the training pairs with injected label noise (their passages are exchanged), 0 to 1.
        max_pairs: at most this many training pairs, drawn by ``seed``; None for all.
        max_test_queries: at most this many test queries; None for all.
        passages_per_judged: with fewer test queries, passages kept per judged one (1: no others); the more queries for the time
            that an evaluation takes, the narrower its intervals.
        seed: seed of every draw.

    Returns:
        Counts by name, what was dropped among them.

    Raises:
        UserError: a held-out package gives no pair, nothing is left to train on, or a number is out of range.

    Source: paper section 3.1; the removal of test texts is that of its appendix A.
    """
    for key, value in (("max_pairs", max_pairs), ("max_test_queries", max_test_queries)):
        if value is not None and value < 1:
            raise UserError(f"{key}={value} must be at least 1, or null for all")
    if passages_per_judged < 1:
        raise UserError(f"passages_per_judged={passages_per_judged} must be at least 1, the judged passage itself")
    seeds = [int(s) for s in np.random.SeedSequence(seed).generate_state(3)]
    counts: Counter[str] = Counter()
    unique = _unique_pairs(source, counts)
    per_source = Counter(pair.source for pair in unique)
    for name in held_out:
        if not per_source[name]:
            raise UserError(f"held_out: {name!r} gives no pair{suggestion(name, per_source)}")

    test = [pair for pair in unique if pair.source in held_out]
    evaluation = Contamination.of(text for pair in test for text in (pair.query, pair.passage))
    pool = [(pair, evaluation.drops(pair.query, pair.passage)) for pair in unique if pair.source not in held_out]
    removed = Counter(side for _, side in pool)
    train = _sample([pair for pair, side in pool if side is None], max_pairs, seeds[0])
    if not train:
        raise UserError(f"held_out={list(held_out)} leaves no pair to train on")
    planting = inject_label_noise(train, planted_mismatches, seeds[1])
    _write_pool(out / "pairs.parquet", planting.pairs, planting.planted)
    test_queries, test_passages, judgements = _write_test(out / "test", test, max_test_queries, passages_per_judged, seeds[2])

    versions: dict[str, str] = getattr(source, "versions", dict)()
    packages = {
        name: {"version": versions.get(name, ""), "pairs": pairs, "held_out": name in held_out}
        for name, pairs in per_source.items()
    }
    write_json(out / "packages.json", {"source": source.name, "test": test_name, "packages": packages})
    counts.update(
        {
            "unique_pairs": len(unique),
            "train_pairs": len(train),
            "test_queries": test_queries,
            "test_passages": test_passages,
            "test_judgements": judgements,
            "removed_query_in_test": removed["query"],
            "removed_passage_in_test": removed["passage"],
            "planted": sum(planting.planted),
        }
    )
    of_source: Mapping[str, int] = getattr(source, "counts", {})
    return {key: float(value) for key, value in counts.items()} | {
        f"source_{key.replace(': ', '_').replace(' ', '_')}": float(value) for key, value in of_source.items()
    }


def _unique_pairs(source: PairSource, counts: Counter[str]) -> list[TextPair]:
    counts.update({"duplicates_dropped": 0, "dropped_query_is_passage": 0})
    seen: set[tuple[int, int]] = set()
    unique: list[TextPair] = []
    for pair in source:
        key = (text_id(pair.query), text_id(pair.passage))
        if key[0] == key[1]:
            counts["dropped_query_is_passage"] += 1
        elif key in seen:
            counts["duplicates_dropped"] += 1
        else:
            seen.add(key)
            unique.append(pair)
    return unique


def _sample(pairs: list[TextPair], most: int | None, seed: int) -> list[TextPair]:
    """At most ``most`` of the pairs, in their order."""
    if most is None or most >= len(pairs):
        return pairs
    rows = np.random.default_rng(seed).choice(len(pairs), size=most, replace=False)
    return [pairs[row] for row in sorted(rows.tolist())]


def _write_pool(path: Path, pairs: Sequence[TextPair], planted: Sequence[bool]) -> None:
    import pyarrow as pa

    fields = ("query", "passage", "source", "passage_kind")
    columns = {name: pa.array([getattr(pair, name) for pair in pairs], pa.string()) for name in fields}
    write_parquet(path, {**columns, "planted": pa.array(planted, pa.bool_())})


def _write_test(directory: Path, pairs: list[TextPair], most: int | None, per_judged: int, seed: int) -> tuple[int, int, int]:
    """Write a BEIR directory; equal texts are merged. Returns the number of queries, passages and judgements."""
    queries, passages, qrels = _collection(pairs)
    if most is not None and most < len(queries):
        generator = np.random.default_rng(seed)
        names = list(queries)
        kept = sorted(generator.choice(len(names), size=most, replace=False).tolist())
        queries = {names[i]: queries[names[i]] for i in kept}
        qrels = {name: qrels[name] for name in queries}
        judged = {passage for relevant in qrels.values() for passage in relevant}
        others = [name for name in passages if name not in judged]
        extra = min(len(others), (per_judged - 1) * len(judged))
        judged.update(others[i] for i in generator.choice(len(others), size=extra, replace=False).tolist())
        passages = {name: text for name, text in passages.items() if name in judged}
    rows = [{"_id": name, "title": "", "text": text} for name, text in passages.items()]
    write_text(directory / "corpus.jsonl", _json_lines(rows))
    write_text(directory / "queries.jsonl", _json_lines([{"_id": n, "text": text} for n, text in queries.items()]))
    lines = [f"{query}\t{passage}\t{score}" for query, found in qrels.items() for passage, score in found.items()]
    write_text(directory / "qrels" / "test.tsv", "\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    return len(queries), len(passages), len(lines)


def _collection(pairs: list[TextPair]) -> tuple[dict[str, str], dict[str, str], Qrels]:
    queries: dict[str, str] = {}
    passages: dict[str, str] = {}
    qrels: Qrels = {}
    names: dict[tuple[str, int], str] = {}
    for pair in pairs:
        query = names.setdefault(("q", text_id(pair.query)), f"q{len(queries)}")
        queries.setdefault(query, pair.query)
        passage = names.setdefault(("d", text_id(pair.passage)), f"d{len(passages)}")
        passages.setdefault(passage, pair.passage)
        qrels.setdefault(query, {})[passage] = 1
    return queries, passages, qrels


def _json_lines(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
