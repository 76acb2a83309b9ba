"""Stages: a random part of a pool of pairs, to train on fewer of them, and of a test collection, to evaluate in less time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_modules.order import SHUFFLED_ROWS, Permutation
from data_modules.pair_rows import keep_masks
from data_modules.pair_store import BLOCK_ROWS, PairStore
from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError
from lightning_e5.files.beir_layout import either, read_judgements, stored_texts
from lightning_e5.files.parquet import parquet_writer
from lightning_e5.files.storage import write_text
from lightning_e5.pipeline.fingerprint import result_version
from lightning_e5.ranges import Count
from lightning_e5.rng import derive_seed, generator
from lightning_e5.types import Qrels


@configurable("stage")
@result_version(2)  # of over a million pairs a computed permutation draws
def draw_pairs(out: Path, *, pairs: Path, keep: Path | None = None, count: Count | None = None, seed: int) -> dict[str, float]:
    """Write ``keep.parquet``: a bool column ``keep``, a row per pair, true for the pairs drawn.

    Args:
        out: the stage's folder.
        pairs: folder of pairs (see `PairStore`).
        keep: the consistency filter's ``ranks.parquet``; only pairs that it keeps are drawn. None: any pair.
        count: pairs drawn; None for all that may be.
        seed: of the draw.

    Returns:
        ``of``, the pairs that could be drawn, and ``pairs``, those drawn.

    Raises:
        UserError: there are fewer pairs than ``count``, or ``keep`` belongs to other pairs.

    Source: paper table 7 (1 M pairs of all).
    """
    rows = PairStore(pairs).rows

    def masks() -> Iterator[NDArray[np.bool_]]:
        return _all_rows(rows) if keep is None else keep_masks(keep, rows, pairs)

    able = sum(int(mask.sum()) for mask in masks())
    if count is not None and not 1 <= count <= able:
        raise UserError(f"draw_pairs.count: {count} is not between 1 and the {able} pairs that there are")
    is_drawn = _draw(able, count, seed)
    seen = total = 0
    with parquet_writer(out / "keep.parquet") as write:
        for mask in masks():
            drawn = mask.copy()
            drawn[mask] = is_drawn(np.arange(seen, seen + int(mask.sum())))
            seen += int(mask.sum())
            total += int(drawn.sum())
            write({"keep": drawn})
    return {"of": able, "pairs": total}


def _draw(able: int, count: int | None, seed: int) -> Callable[[NDArray[np.int64]], NDArray[np.bool_]]:
    """Whether the n-th of ``able`` pairs is one of ``count`` drawn ones (None: all are), for an array of ``n``."""
    if count is None:
        return lambda numbers: np.ones(len(numbers), dtype=bool)
    if able <= SHUFFLED_ROWS:
        drawn = np.zeros(able, dtype=bool)
        drawn[generator(seed, "draw").choice(able, size=count, replace=False)] = True
        return lambda numbers: drawn[numbers]
    permutation = Permutation(able, derive_seed(seed, "draw"))
    return lambda numbers: permutation(numbers) < count


def _all_rows(rows: int) -> Iterator[NDArray[np.bool_]]:
    for first in range(0, rows, BLOCK_ROWS):
        yield np.ones(min(BLOCK_ROWS, rows - first), dtype=bool)


@configurable("stage")
def draw_collection(
    out: Path, *, collection: Path, split: str = "test", queries: Count, passages_per_relevant: Count = 1, seed: int
) -> dict[str, float]:
    """Write a smaller test collection in BEIR's layout: some of its queries, their judged passages and some others.

    Figures on it are higher than those on the whole collection, since there are fewer passages to confuse; they compare
    with each other alone.

    Args:
        out: the stage's folder, which becomes the collection.
        collection: folder in BEIR's layout.
        split: of its judgements; that of the drawn ones too.
        queries: drawn, of those with a relevant passage; all where there are fewer.
        passages_per_relevant: passages kept for each relevant one, itself among them (1: no others but those judged 0).
        seed: of the draw.

    Returns:
        Queries and passages, kept and of how many, and judgements kept.

    Raises:
        UserError: a malformed file, or no query with a relevant passage.
    """
    texts = {row.id: row for row in stored_texts(either(collection, "queries.jsonl")) if row.text.strip()}
    passages = {row.id: row for row in stored_texts(either(collection, "corpus.jsonl"))}
    judged = read_judgements(either(collection, f"qrels/{split}.tsv")).qrels
    able = sorted(q for q, grades in judged.items() if q in texts and any(g > 0 and p in passages for p, g in grades.items()))
    if not able:
        raise UserError(f"{collection}: no query of the split {split!r} has both a text and a relevant passage")
    draw = generator(seed, "draw")
    chosen = sorted(draw.choice(able, size=min(queries, len(able)), replace=False).tolist())
    qrels: Qrels = {query: judged[query] for query in chosen}
    kept = {p for grades in qrels.values() for p in grades if p in passages}
    relevant = {p for grades in qrels.values() for p, grade in grades.items() if grade > 0 and p in passages}
    others = sorted(passages.keys() - kept)
    extra = min(len(others), (passages_per_relevant - 1) * len(relevant))
    kept.update(draw.choice(others, size=extra, replace=False).tolist() if extra else ())
    write_text(out / "queries.jsonl", _json_lines({"_id": query, "text": texts[query].text} for query in chosen))
    write_text(out / "corpus.jsonl", _json_lines({"_id": p, "title": row.title, "text": row.text} for p, row in passages.items() if p in kept))
    lines = [f"{query}\t{passage}\t{grade}\n" for query, grades in qrels.items() for passage, grade in grades.items()]
    write_text(out / "qrels" / f"{split}.tsv", "query-id\tcorpus-id\tscore\n" + "".join(lines))
    return {
        "queries": len(chosen), "of_queries": len(able), "passages": len(kept), "of_passages": len(passages), "judgements": len(lines),
    }  # fmt: skip


def _json_lines(rows: Iterable[Mapping[str, str]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
