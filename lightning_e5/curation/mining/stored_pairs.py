"""What is mined for, of a folder of pairs that is larger than memory: texts and rows in scratch files, the same as `of_pairs` gives.

Three passes. The kept pairs' texts and text ids are written; hash buckets find for each passage its first row (a corpus holds
a text once) and for each query the passages of all pairs with its text; positives are numbered in the corpus.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from data_modules.pair_store import PairStore
from lightning_e5.curation.mining.collections import ROWS_AT_ONCE, MiningData, sampled_rows
from lightning_e5.files.scratch import HashRanges, blocks, hash_of, mapped, mapped_zeros, release
from lightning_e5.files.stored_texts import StoredTexts, TextWriter
from lightning_e5.progress import progress
from lightning_e5.text import text_id


class _Known(Sequence[set[int]]):
    """The known answers of some rows, read from the file of all answers when asked for: row -> text ids of its query's passages."""

    def __init__(self, span_N: NDArray[Any], answers_M: NDArray[np.int64], rows: NDArray[np.int64] | range) -> None:
        self._span_N, self._answers_M, self._rows = span_N, answers_M, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> set[int]: ...
    @overload
    def __getitem__(self, place: slice) -> _Known: ...
    def __getitem__(self, place: int | slice) -> set[int] | _Known:
        if isinstance(place, slice):
            return _Known(self._span_N, self._answers_M, self._rows[place])
        first, stop = self._span_N[int(self._rows[place])].tolist()
        return set(self._answers_M[first:stop].tolist())

    def most(self) -> int:
        """The most answers that a query has."""
        return max((int((self._span_N[part]["stop"] - self._span_N[part]["first"]).max()) for part in blocks(len(self._span_N))), default=0)


class _Named(Sequence[str]):
    """One of a few names for each row."""

    def __init__(self, names: Sequence[str], code_N: NDArray[np.int32]) -> None:
        self._names, self._code_N = names, code_N

    def __len__(self) -> int:
        return len(self._code_N)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> _Named: ...
    def __getitem__(self, place: int | slice) -> str | _Named:
        return _Named(self._names, self._code_N[place]) if isinstance(place, slice) else self._names[int(self._code_N[place])]


def of_stored_pairs(store: PairStore, keep_N: NDArray[np.bool_], folder: Path, *, max_queries: int | None, seed: int) -> MiningData:
    """As `of_pairs` of the kept rows of a folder, in memory that does not grow with them but for the rows drawn by ``max_queries``.

    Args:
        store: the pairs.
        keep_N: which of them count, at least one.
        folder: of the scratch files: the texts, and about 100 bytes per pair.
        max_queries, seed: as `of_pairs`.
    """
    kept = int(np.count_nonzero(keep_N))
    queries_path, passages_path = folder / "queries", folder / "passages"
    query_N, passage_N, code_N = (mapped_zeros(folder / name, kind, kept) for name, kind in (("query-ids", "<i8"), ("passage-ids", "<i8"), ("sources", "<i4")))
    names: dict[str, int] = {}
    with TextWriter(queries_path) as queries, TextWriter(passages_path) as passages, progress(kept, "texts to mine", "pair") as bar:
        done = 0
        for own_queries, own_passages, sources in _kept(store, keep_N):
            rows = slice(done, done + len(sources))
            queries.extend(own_queries)
            passages.extend(own_passages)
            query_N[rows], passage_N[rows] = [text_id(q) for q in own_queries], [text_id(p) for p in own_passages]
            code_N[rows] = [names.setdefault(source, len(names)) for source in sources]
            done = rows.stop
            bar(len(sources))
            release(query_N, passage_N, code_N)
    corpus_rows, place_N = _distinct(passage_N, folder)
    known = _known_answers(query_N, passage_N, folder)
    rows_Q = range(kept) if max_queries is None or max_queries >= kept else sampled_rows(kept, max_queries, seed)
    chosen: Any = slice(None) if isinstance(rows_Q, range) else rows_Q
    corpus_text = mapped_zeros(folder / "corpus-ids", "<i8", len(corpus_rows))
    for part in blocks(len(corpus_rows), ROWS_AT_ONCE):
        corpus_text[part] = passage_N[corpus_rows[part]]
        release(corpus_text, passage_N, corpus_rows)
    all_queries, all_passages = StoredTexts(queries_path), StoredTexts(passages_path)
    return MiningData(
        queries=all_queries[:] if isinstance(rows_Q, range) else all_queries.of(rows_Q),
        sources=_Named(list(names), code_N[chosen]),
        positives=place_N[chosen],
        positive_texts=all_passages[:] if isinstance(rows_Q, range) else all_passages.of(rows_Q),
        known=_Known(known[0], known[1], rows_Q),
        corpus=all_passages.of(corpus_rows),
        corpus_text=corpus_text,
        distinct=len(corpus_rows),
    )


def _kept(store: PairStore, keep_N: NDArray[np.bool_]) -> Iterator[tuple[list[str], list[str], list[str]]]:
    """Queries, passages and sources of the kept pairs, block by block."""
    first = 0
    for table in store.iter_batches(["query", "passage", "source"], ROWS_AT_ONCE):
        own = table.filter(np.asarray(keep_N[first : first + len(table)]))
        first += len(table)
        if len(own):
            yield own["query"].to_pylist(), own["passage"].to_pylist(), own["source"].to_pylist()


def _distinct(passage_N: NDArray[np.int64], folder: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first row of each passage, rising; and of each row the place of its passage among those."""
    rows = len(passage_N)
    ranges = HashRanges(folder / "by-passage", rows)
    for part in blocks(rows):
        ranges.add(hash_of(passage_N[part]), np.arange(part.start, part.stop))
    first_N = mapped_zeros(folder / "first-rows", "<i8", rows)
    for records in ranges:  # rows are rising within a hash, so the first of each is its lowest
        _, first, inverse = np.unique(records["hash"], return_index=True, return_inverse=True)
        first_N[records["row"]] = records["row"][first][inverse]
        release(first_N)
    rank_N = mapped_zeros(folder / "ranks", "<i8", rows)
    found = 0
    with (folder / "corpus-rows").open("wb") as corpus:
        for part in blocks(rows):
            own = np.arange(part.start, part.stop)
            is_first = first_N[part] == own
            own[is_first].tofile(corpus)
            rank_N[part] = found + np.cumsum(is_first) - 1
            found += int(is_first.sum())
            release(first_N, rank_N)
    place_N = mapped_zeros(folder / "positives", "<i8", rows)
    for part in blocks(rows, ROWS_AT_ONCE):
        place_N[part] = rank_N[first_N[part]]
        release(first_N, rank_N, place_N)
    return mapped(folder / "corpus-rows", "<i8"), place_N


def _known_answers(query_N: NDArray[np.int64], passage_N: NDArray[np.int64], folder: Path) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Where in the file of all answers those of each row's query lie, ``first`` to ``stop``; and that file."""
    rows = len(query_N)
    ranges = HashRanges(folder / "by-query", rows, passage="<i8")
    for part in blocks(rows):
        ranges.add(hash_of(query_N[part]), np.arange(part.start, part.stop), passage=passage_N[part])
    span_N = mapped_zeros(folder / "known-of", [("first", "<i8"), ("stop", "<i8")], rows)
    written = 0
    with (folder / "known").open("wb") as answers:
        for records in ranges:
            records = records[np.lexsort((records["passage"], records["hash"]))]
            fresh = np.ones(len(records), dtype=bool)  # the first of each (query, passage)
            same_query = records["hash"][1:] == records["hash"][:-1]
            fresh[1:] = ~(same_query & (records["passage"][1:] == records["passage"][:-1]))
            records["passage"][fresh].tofile(answers)
            starts = np.flatnonzero(np.concatenate([[True], ~same_query]))
            stops = np.concatenate([starts[1:], [len(records)]])
            ends = np.concatenate([[0], np.cumsum(fresh)])
            own = np.empty(len(records), dtype=span_N.dtype)
            own["first"] = written + np.repeat(ends[starts], stops - starts)
            own["stop"] = written + np.repeat(ends[stops], stops - starts)
            span_N[records["row"]] = own
            written += int(ends[-1])
            release(span_N)
    return span_N, mapped(folder / "known", "<i8")
