"""Which of many rows are kept: a bit a row in a memory-mapped file, from which the number of the n-th kept row is computed."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_e5.files.storage import naming_the_file

#: Bytes of bits between two counts: 512 rows.
_BYTES = 64
#: Bytes that are counted, and rows that are given, at once.
_AT_ONCE = 1 << 20
#: [byte, n] -> the place of its n-th bit, the most significant being 0.
_PLACES = np.argsort(~np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(bool), axis=1, kind="stable").astype(np.int64)


class KeptRows:
    """The kept ones of ``rows`` rows, by rising number.

    ``kept[n]`` are the rows of an array of ordinals, as an array of all kept rows would give them. That array would have eight bytes a row,
    and every data worker a copy of it; this is a bit a row in a file that workers map too, and a count for every 512 rows.

    Args:
        path: what `KeptRows.of` wrote.
        rows: of which some are kept.
    """

    def __init__(self, path: Path, rows: int) -> None:
        self.path, self.rows = path, rows
        self._bits = np.memmap(path, dtype=np.uint8, mode="r").reshape(-1, _BYTES)
        counts = np.empty(len(self._bits), dtype=np.int64)
        step = _AT_ONCE // _BYTES
        for first in range(0, len(counts), step):
            counts[first : first + step] = np.bitwise_count(self._bits[first : first + step]).sum(1, dtype=np.int64)
        self._before = np.concatenate([[0], np.cumsum(counts)])

    @classmethod
    def of(cls, masks: Iterable[NDArray[np.bool_]], rows: int) -> KeptRows:
        """From the decisions of all rows in order, as many at a time as the caller likes, but a multiple of 8 except for the last.

        The file lies in the folder for temporary files and is removed with the object, at the end of this process at the latest.
        """
        handle, name = tempfile.mkstemp(prefix="lightning_e5-kept-")
        try:
            with os.fdopen(handle, "wb") as file, naming_the_file(Path(name)):
                done = 0
                for mask in masks:
                    assert done % 8 == 0
                    file.write(np.packbits(mask).tobytes())
                    done += len(mask)
                assert done == rows
                file.write(bytes(-file.tell() % _BYTES))
                file.flush()
            found = cls(Path(name), rows)
        except BaseException:
            os.unlink(name)
            raise
        weakref.finalize(found, _remove, name, os.getpid())
        return found

    def __reduce__(self) -> tuple[type[KeptRows], tuple[Path, int]]:
        """Another process maps the file itself."""
        return KeptRows, (self.path, self.rows)

    def __len__(self) -> int:
        return int(self._before[-1])

    def __getitem__(self, ordinals: NDArray[np.int64]) -> NDArray[np.int64]:
        block = np.searchsorted(self._before, ordinals, side="right") - 1
        within = ordinals - self._before[block]
        bytes_NB = self._bits[block]
        counts_NB = np.cumsum(np.bitwise_count(bytes_NB), axis=1, dtype=np.int64)
        byte = (counts_NB <= within[:, None]).sum(1)
        own = np.arange(len(ordinals))
        found = bytes_NB[own, byte]
        place = _PLACES[found, within - (counts_NB[own, byte] - np.bitwise_count(found))]
        return (block * _BYTES + byte) * 8 + place

    def below(self, row: int) -> int:
        """How many kept rows have a lower number than ``row``."""
        block, rest = divmod(row, 8 * _BYTES)
        return int(self._before[block]) + (int(np.unpackbits(self._bits[block])[:rest].sum()) if rest else 0)

    def masks(self) -> Iterator[NDArray[np.bool_]]:
        """The decisions, block by block, as `KeptRows.of` takes them."""
        for first in range(0, self.rows, _AT_ONCE):
            bits = self._bits.reshape(-1)[first // 8 : (first + _AT_ONCE) // 8]
            yield np.unpackbits(bits)[: min(_AT_ONCE, self.rows - first)].astype(bool)


def _remove(name: str, process: int) -> None:
    if os.getpid() == process:  # a fork has the object, too
        Path(name).unlink(missing_ok=True)
