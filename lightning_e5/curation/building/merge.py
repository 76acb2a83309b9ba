"""Which pairs of the finished parts stay: one pass over their ids, in an order that no worker's timing changes.

The order that counts is: sources by their first pair, then parts, then rows. It takes about 20 bytes of memory per pair;
no text is read.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_e5.curation.cleaning.duplicates import NearDuplicates, first_of_each
from lightning_e5.files.storage import atomic_path, sha256_file, sha256_text, to_json
from lightning_e5.progress import progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Of the pool's content; a change of the rules here or in `pair_shards` must raise it.
VERSION = 1
#: Equal ids are looked for in so many turns, each over its share of the ids.
_TURNS = 16
EXACT, NEAR, CAP = "exact duplicate", "near duplicate", "over max_pairs_per_source"


@dataclass(frozen=True)
class Piece:
    """A part's pairs of one source: the file, and the numbers of its rows among all candidates left by the parts."""

    path: Path
    first: int
    rows: int


@dataclass(frozen=True)
class Decisions:
    """Which pairs stay (bool ``[N]``), and per source what dropped the others."""

    keep_N: NDArray[np.bool_]
    dropped: Mapping[str, Counter[str]]


def pieces_by_source(parts: Sequence[tuple[Path, Mapping[str, Any]]]) -> dict[str, list[Piece]]:
    """Source -> its pieces, numbered in the order that counts, of (folder, record) of the parts in their order."""
    files: dict[str, list[tuple[Path, int]]] = {}
    for folder, record in parts:
        for source in record["sources"]:
            of_source = files.setdefault(source["name"], [])
            if source["rows"]:
                of_source.append((folder / source["file"], source["rows"]))
    first = 0
    pieces: dict[str, list[Piece]] = {}
    for name, found in files.items():
        pieces[name] = []
        for path, rows in found:
            pieces[name].append(Piece(path, first, rows))
            first += rows
    return pieces


def decide(
    pieces: Mapping[str, Sequence[Piece]],
    near_duplicates: NearDuplicates | None,
    most: int | None,
    seeds: Mapping[str, int],
    scratch: Path,
) -> Decisions:
    """Drop exact duplicates, near duplicates, and what a source has above ``most`` pairs (drawn by its seed)."""
    flat = [piece for of_source in pieces.values() for piece in of_source]
    total = sum(piece.rows for piece in flat)
    ids_N = np.empty(total, dtype=np.int64)
    with progress(total, "duplicates", "pair") as bar:
        for piece in flat:
            ids_N[piece.first : piece.first + piece.rows] = _column(piece.path, "pair_id").to_numpy()
            bar(piece.rows)
    keep_N = np.zeros(total, dtype=bool)
    for turn in range(_TURNS):
        rows = np.flatnonzero(ids_N % _TURNS == turn)
        keep_N[rows] = first_of_each(ids_N[rows])
    del ids_N
    dropped = {name: Counter[str]() for name in pieces}

    def count(rule: str, before: Mapping[str, int]) -> None:
        for name, left in _left(pieces, keep_N).items():
            if before[name] > left:
                dropped[name][rule] += before[name] - left

    count(EXACT, {name: sum(p.rows for p in of_source) for name, of_source in pieces.items()})
    if near_duplicates is not None and keep_N.any():
        before = _left(pieces, keep_N)
        rows = np.flatnonzero(keep_N)
        keep_N[rows[_near_copies(flat, keep_N, near_duplicates, scratch)]] = False
        count(NEAR, before)
    if most is not None:
        before = _left(pieces, keep_N)
        for name, span in _spans(pieces).items():
            if before[name] > most:
                rows = span.start + np.flatnonzero(keep_N[span])
                gone = np.random.default_rng(seeds[name]).permutation(len(rows))[most:]
                keep_N[rows[gone]] = False
        count(CAP, before)
    return Decisions(keep_N, dropped)


def _near_copies(flat: Sequence[Piece], keep_N: NDArray[np.bool_], near: NearDuplicates, scratch: Path) -> NDArray[np.bool_]:
    """Which of the pairs kept so far are near copies: bool, a row per kept pair. The signatures lie in a scratch file."""
    kept = int(keep_N.sum())
    signatures = np.memmap(scratch, dtype=np.uint32, mode="w+", shape=(kept, near.permutations))
    try:
        row = 0
        for piece in flat:
            chosen = keep_N[piece.first : piece.first + piece.rows]
            if chosen.any():
                column = _column(piece.path, "signature").combine_chunks()
                values = np.frombuffer(column.buffers()[1], dtype="<u4").reshape(-1, near.permutations)
                values = values[column.offset : column.offset + len(column)]
                signatures[row : row + int(chosen.sum())] = values[chosen]
                row += int(chosen.sum())
        with progress(kept, "near duplicates", "pair") as bar:
            copies: NDArray[np.bool_] = near.copies(signatures, progress=bar) >= 0
        return copies
    finally:
        del signatures
        scratch.unlink(missing_ok=True)


def _spans(pieces: Mapping[str, Sequence[Piece]]) -> dict[str, slice]:
    return {n: slice(ps[0].first, ps[-1].first + ps[-1].rows) if ps else slice(0, 0) for n, ps in pieces.items()}


def _left(pieces: Mapping[str, Sequence[Piece]], keep_N: NDArray[np.bool_]) -> dict[str, int]:
    return {name: int(np.count_nonzero(keep_N[span])) for name, span in _spans(pieces).items()}


def _column(path: Path, name: str) -> Any:
    import pyarrow.parquet as pq

    return pq.read_table(path, columns=[name])[name]


def save_decisions(path: Path, keep_N: NDArray[np.bool_]) -> str:
    """Write the decisions as ``.npy``, atomically; returns the file's sha256."""
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        np.save(handle, keep_N, allow_pickle=False)
        handle.flush()
        os.fsync(handle.fileno())
    return sha256_file(path)


def merge_key(parts: Sequence[str], **settings: Any) -> str:
    """Sha256 of everything that decides the final shards: the parts' keys in their order, and the merge's settings."""
    return sha256_text(to_json([VERSION, list(parts), settings]))
