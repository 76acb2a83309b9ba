"""What lies in scratch files is what was given, in the order that is promised, whatever the sizes of blocks and ranges."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from lightning_e5.files import scratch
from lightning_e5.files.scratch import HashRanges, RecordRanges, mapped, mapped_zeros, release


def test_released_pages_keep_what_was_written(tmp_path: Path) -> None:
    array = mapped_zeros(tmp_path / "folder" / "a", "<i8", 5000)
    array[::2] = 7
    view = np.asarray(array)[100:]
    release(array, view, np.zeros(3))
    assert array.tolist() == [7, 0] * 2500 and mapped(tmp_path / "folder" / "a", "<i8").tolist() == [7, 0] * 2500
    assert len(mapped_zeros(tmp_path / "none", bool, 0)) == len(mapped(tmp_path / "none", bool)) == 0


@pytest.mark.parametrize("held", [1, 7, 10**6])
def test_ranges_come_in_order_each_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    monkeypatch.setattr(scratch, "BLOCK_ROWS", held)
    found = RecordRanges(tmp_path / "r", 4, "<i8")
    values = np.random.default_rng(0).integers(0, 1000, 200)
    for part in np.array_split(values, 13):
        found.add(part % 4, part)
    assert [found.read(number).tolist() for number in range(4)] == [values[values % 4 == number].tolist() for number in range(4)]
    assert len(found.read(2)) == 0 and list((tmp_path / "r").iterdir()) == [], "a range is gone after it was read"


@pytest.mark.parametrize("rows_of_a_range", [1, 16, 10**6])
def test_equal_hashes_come_together_and_ranges_rise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_of_a_range: int) -> None:
    monkeypatch.setattr(scratch, "RANGE_ROWS", rows_of_a_range)
    hashes = np.random.default_rng(1).integers(0, 2**64, 100, dtype=np.uint64)[np.random.default_rng(2).integers(0, 100, 300)]
    ranges = HashRanges(tmp_path / "h", 300, more="<i4")
    for part in np.array_split(np.arange(300), 4):
        ranges.add(hashes[part], part, more=part * 2)
    read = list(ranges)
    assert (len(read) == 1) == (rows_of_a_range == 10**6)
    for before, after in itertools.pairwise(read):
        assert before["hash"].max() < after["hash"].min()
    together = np.concatenate(read)
    assert (hashes[together["row"]] == together["hash"]).all() and (together["more"] == 2 * together["row"]).all()
    assert sorted(together["row"].tolist()) == list(range(300))
    for own in np.unique(hashes):
        rows = together["row"][together["hash"] == own]
        assert (np.diff(rows) > 0).all()
