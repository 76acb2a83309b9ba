"""Which signatures have all values of a band in common: by hash buckets on disk, band after band.

A bucket of two or more gets places in one file, as many as it has rows, in which the rows that are kept are listed later on.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_e5.files.scratch import RANGE_ROWS, HashRanges, RecordRanges, blocks, mapped, release

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MIXER = np.uint64(0x9E3779B97F4A7C15)
#: Signatures whose bands are hashed together.
_ROWS = 1 << 15


class SharedBuckets:
    """The buckets of some signatures that hold two rows or more.

    Values of a band that differ may fall into one bucket with a chance of 2**-64; whoever uses this compares all values.
    Memory: some blocks of rows. On disk: 8 bytes per signature and band, and 24 per row of a shared bucket.

    Args:
        signatures_NV: uint32 ``[N, V]``, which may be mapped.
        bands: that the V values are cut into.
        empty: what all values of a row are that is in no bucket.
        folder: of the files.
    """

    def __init__(self, signatures_NV: NDArray[np.uint32], bands: int, empty: int, folder: Path) -> None:
        rows = len(signatures_NV)
        self._rows = rows
        _write_keys(signatures_NV, bands, empty, folder)
        ranges = -(-rows // RANGE_ROWS)
        self._of_rows = RecordRanges(folder / "of-rows", ranges, [("row", "<i8"), ("start", "<i8"), ("size", "<i8")])
        #: Places of all shared buckets in one array: before a bucket's own the place of its count.
        self.places = 0
        for band in range(bands):
            self._add(folder / f"band-{band:03d}.keys", folder / f"band-{band:03d}.rows", folder / "buckets")

    def _add(self, keys: Path, rows: Path, scratch: Path) -> None:
        key_N, row_N = mapped(keys, "<u8"), mapped(rows, "<i8")
        found = HashRanges(scratch, len(key_N))
        for part in blocks(len(key_N)):
            found.add(np.array(key_N[part]), np.array(row_N[part]))
            release(key_N, row_N)
        del key_N, row_N
        keys.unlink()
        rows.unlink()
        for records in found:
            _, inverse_M, counts_B = np.unique(records["hash"], return_inverse=True, return_counts=True)
            places_B = np.where(counts_B > 1, counts_B + 1, 0)
            start_B = self.places + np.cumsum(places_B) - places_B
            self.places += int(places_B.sum())
            shared_M = counts_B[inverse_M] > 1
            inverse_M = inverse_M[shared_M]
            own = np.empty(len(inverse_M), dtype=self._of_rows.dtype)
            own["row"], own["start"], own["size"] = records["row"][shared_M], start_B[inverse_M], counts_B[inverse_M]
            self._of_rows.add(own["row"] // RANGE_ROWS, own)

    def of_rows(self) -> Iterator[tuple[int, list[int]]]:
        """(row, the starts of its shared buckets, the smallest bucket first), rows rising; once."""
        for number in range(self._of_rows.ranges):
            found = self._of_rows.read(number)
            if not len(found):
                continue
            found = found[np.lexsort((found["start"], found["size"], found["row"]))]
            rows, firsts = np.unique(found["row"], return_index=True)
            starts = found["start"].tolist()
            yield from zip(rows.tolist(), (starts[a:b] for a, b in zip(firsts.tolist(), [*firsts.tolist()[1:], len(starts)], strict=True)), strict=True)


def _write_keys(signatures_NV: NDArray[np.uint32], bands: int, empty: int, folder: Path) -> None:
    """For each band two files: a 64-bit hash of each row's values, and the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    width = signatures_NV.shape[1] // bands
    files: list[Any] = [[(folder / f"band-{band:03d}.{what}").open("wb") for what in ("keys", "rows")] for band in range(bands)]
    try:
        for part in blocks(len(signatures_NV), _ROWS):
            values_RBW = np.asarray(signatures_NV[part]).reshape(-1, bands, width)
            there_R = (values_RBW != empty).any((1, 2))
            keys_RB = np.zeros((len(values_RBW), bands), dtype=np.uint64)
            for column in range(width):
                keys_RB ^= values_RBW[:, :, column]
                keys_RB *= _MIXER
                keys_RB ^= keys_RB >> np.uint64(29)
            row_R = np.flatnonzero(there_R) + part.start
            for band, (keys, rows) in enumerate(files):
                keys_RB[there_R, band].tofile(keys)
                row_R.tofile(rows)
            del values_RBW
            release(signatures_NV)
    finally:
        for file in (file for both in files for file in both):
            file.close()
