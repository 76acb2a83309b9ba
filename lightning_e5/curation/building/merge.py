"""Which pairs of the finished parts stay: one pass over their ids, in an order that no worker's timing changes.

The order that counts is: sources by their first pair, then parts, then rows. No text is read; what there is per pair lies in
files, mapped or read range by range, so that memory does not grow with the pairs.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_e5.curation.cleaning.duplicates import NearDuplicates, first_of_each
from lightning_e5.files.scratch import blocks, mapped, mapped_zeros
from lightning_e5.files.storage import atomic_path, sha256_file, sha256_text, to_json
from lightning_e5.progress import progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Of the pool's content; a change of the rules here or in `pair_shards` must raise it.
VERSION = 2
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
    """Drop exact duplicates, near duplicates, and what a source has above ``most`` pairs (drawn by its seed).

    Args:
        scratch: folder, made anew; the decisions are mapped from a file in it. Beside them it takes 16 bytes per pair for a while,
            and with near duplicates the signatures and what `NearDuplicates.find_copies` says.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    flat = [piece for of_source in pieces.values() for piece in of_source]
    keep_N = mapped_zeros(scratch / "keep", bool, sum(piece.rows for piece in flat))
    with progress(len(keep_N), "duplicates", "pair") as bar:
        first_of_each(_ids(flat, bar), scratch / "ids", keep_N)
    dropped = {name: Counter[str]() for name in pieces}

    def count(rule: str, before: Mapping[str, int]) -> None:
        for name, left in _left(pieces, keep_N).items():
            if before[name] > left:
                dropped[name][rule] += before[name] - left

    count(EXACT, {name: sum(p.rows for p in of_source) for name, of_source in pieces.items()})
    if near_duplicates is not None and keep_N.any():
        before = _left(pieces, keep_N)
        _drop_near_copies(flat, keep_N, near_duplicates, scratch / "near")
        count(NEAR, before)
    if most is not None:
        before = _left(pieces, keep_N)
        for name, span in _spans(pieces).items():
            if before[name] > most:
                _cap(keep_N, span, most, before[name], seeds[name])
        count(CAP, before)
    return Decisions(keep_N, dropped)


def _ids(flat: Sequence[Piece], bar: Callable[[int], object]) -> Iterator[NDArray[np.int64]]:
    for piece in flat:
        for column in _column(piece.path, "pair_id"):
            yield column.to_numpy()
            bar(len(column))


def _drop_near_copies(flat: Sequence[Piece], keep_N: NDArray[np.bool_], near: NearDuplicates, scratch: Path) -> None:
    """Drop the near copies among the pairs kept so far; their signatures and their rows lie in files meanwhile."""
    scratch.mkdir()
    signatures, rows = scratch / "signatures", scratch / "rows"
    with signatures.open("wb") as signatures_file, rows.open("wb") as rows_file:
        for piece in flat:
            first = piece.first
            for column in _column(piece.path, "signature"):
                chosen = np.flatnonzero(keep_N[first : first + len(column)])
                values = np.frombuffer(column.buffers()[1], dtype="<u4").reshape(-1, near.permutations)
                values[column.offset + chosen].tofile(signatures_file)
                (first + chosen).tofile(rows_file)
                first += len(column)
    signatures_NV = mapped(signatures, "<u4").reshape(-1, near.permutations)
    row_K = mapped(rows, "<i8")
    with progress(len(row_K), "near duplicates", "pair") as bar:
        for copy, _ in near.find_copies(signatures_NV, scratch / "buckets", progress=bar):
            keep_N[row_K[copy]] = False
    del signatures_NV, row_K
    shutil.rmtree(scratch)


def _cap(keep_N: NDArray[np.bool_], span: slice, most: int, left: int, seed: int) -> None:
    """Keep ``most`` of a source's ``left`` kept pairs, any choice of them as likely as any other.

    Block by block: how many of a block are kept has the hypergeometric distribution, which ones is a permutation's to say.
    """
    draw = np.random.default_rng(seed)
    for block in blocks(span.stop - span.start):
        rows = span.start + block.start + np.flatnonzero(keep_N[span][block])
        kept = most if len(rows) == left else int(draw.hypergeometric(len(rows), left - len(rows), most))
        keep_N[rows[draw.permutation(len(rows))[kept:]]] = False
        left, most = left - len(rows), most - kept


def _spans(pieces: Mapping[str, Sequence[Piece]]) -> dict[str, slice]:
    return {n: slice(ps[0].first, ps[-1].first + ps[-1].rows) if ps else slice(0, 0) for n, ps in pieces.items()}


def _left(pieces: Mapping[str, Sequence[Piece]], keep_N: NDArray[np.bool_]) -> dict[str, int]:
    return {name: int(np.count_nonzero(keep_N[span])) for name, span in _spans(pieces).items()}


def _column(path: Path, name: str) -> Iterator[Any]:
    """A column in the blocks in which it was written."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group, columns=[name])[name].chunks


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
