"""Arrays and records in scratch files, for what has a value per row of a pool that is larger than memory.

An array is mapped from its file, and its pages are given back after each block (`release`): the system keeps what fits into
its cache, the process holds one block. Records go to files by ranges of a key (`RecordRanges`), so that all of one range are
sorted and compared in memory, range after range.
"""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_e5.files.storage import naming_the_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Rows that are looked at together.
BLOCK_ROWS = 1 << 18
#: Records that a range has on average, at most.
RANGE_ROWS = 1 << 18


def mapped_zeros(path: Path, dtype: Any, rows: int) -> NDArray[Any]:
    """A new array of zeros, mapped from a file; OSError where the disk has no room for it (a write to the map could only end the process)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming_the_file(path), path.open("wb") as handle:
        if rows:
            os.posix_fallocate(handle.fileno(), 0, rows * np.dtype(dtype).itemsize)
    # Nothing can be mapped of an empty file.
    return np.memmap(path, dtype=dtype, mode="r+", shape=(rows,)) if rows else np.zeros(0, dtype=dtype)


def mapped(path: Path, dtype: Any) -> NDArray[Any]:
    """The array of a file, mapped, read-only."""
    if not path.stat().st_size:
        return np.zeros(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")


def release(*arrays: NDArray[Any]) -> None:
    """Give back the pages of arrays that are mapped from files (others are left alone): they are read again where they are needed.

    Nothing that was written is lost, for the maps are shared ones (not copied on write).
    """
    for array in arrays:
        held: Any = array
        while held is not None and not isinstance(held, mmap.mmap):  # a view's base is the array, and that array's the map
            held = getattr(held, "base", None)
        if held is not None and hasattr(mmap, "MADV_DONTNEED"):
            held.madvise(mmap.MADV_DONTNEED)


def blocks(rows: int, size: int = BLOCK_ROWS) -> Iterator[slice]:
    """Slices of ``size`` rows, the last one shorter."""
    for first in range(0, rows, size):
        yield slice(first, min(rows, first + size))


class RecordRanges:
    """Records written in any order and read back range by range of a key, each range in the order in which it was written.

    Memory: `BLOCK_ROWS` records, and the records of the range that is read.

    Args:
        folder: of the files, which are removed as they are read; made anew.
        ranges: how many.
        dtype: of a record.
    """

    def __init__(self, folder: Path, ranges: int, dtype: Any) -> None:
        self.folder, self.ranges, self.dtype = folder, ranges, np.dtype(dtype)
        self._held: list[tuple[NDArray[np.int64], NDArray[Any]]] = []
        self._rows = 0
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def add(self, range_N: NDArray[np.int64], records_N: NDArray[Any]) -> None:
        """Take in records, each with the number of its range."""
        self._held.append((range_N, records_N))
        self._rows += len(records_N)
        if self._rows >= BLOCK_ROWS:
            self._write()

    def read(self, number: int) -> NDArray[Any]:
        """The records of a range; its file is gone after it."""
        self._write()
        path = self._path(number)
        if not path.exists():
            return np.zeros(0, dtype=self.dtype)
        found = np.fromfile(path, dtype=self.dtype)
        path.unlink()
        return found

    def _write(self) -> None:
        if not self._rows:
            return
        range_N = np.concatenate([ranges for ranges, _ in self._held])
        records_N = np.concatenate([records for _, records in self._held])
        self._held, self._rows = [], 0
        order = np.argsort(range_N, kind="stable")
        range_N, records_N = range_N[order], records_N[order]
        starts = np.flatnonzero(np.concatenate([[True], range_N[1:] != range_N[:-1]])).tolist()
        for first, stop in zip(starts, [*starts[1:], len(range_N)], strict=True):
            with self._path(int(range_N[first])).open("ab") as handle:
                records_N[first:stop].tofile(handle)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.records"


class HashRanges:
    """Rows by ranges of a 64-bit hash: all rows of equal hashes come together, ranges by rising hash, rows in their order.

    Args:
        folder: see `RecordRanges`.
        rows: how many are to come, at most; decides the number of ranges.
        **fields: type of what else a record holds, by name.
    """

    def __init__(self, folder: Path, rows: int, **fields: Any) -> None:
        self._bits = max(0, (max(1, rows) - 1) // RANGE_ROWS).bit_length()
        self._records = RecordRanges(folder, 1 << self._bits, [("hash", "<u8"), ("row", "<i8"), *fields.items()])

    def add(self, hash_N: NDArray[np.uint64], row_N: NDArray[np.int64], **fields: NDArray[Any]) -> None:
        """Take in rows; equal hashes mean equal things."""
        records = np.empty(len(hash_N), dtype=self._records.dtype)
        for name, values in {"hash": hash_N, "row": row_N, **fields}.items():
            records[name] = values
        ranges = (hash_N >> np.uint64(64 - self._bits)).astype(np.int64) if self._bits else np.zeros(len(hash_N), dtype=np.int64)
        self._records.add(ranges, records)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        for number in range(self._records.ranges):
            found = self._records.read(number)
            if len(found):
                yield found


def hash_of(identity_N: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The 63-bit ids of texts and pairs as hashes that begin at the highest bit."""
    return np.asarray(identity_N).astype(np.uint64) << np.uint64(1)
