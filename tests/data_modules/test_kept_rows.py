"""The n-th kept row, computed from bits, is the n-th of an array of all kept rows."""

from __future__ import annotations

import gc
import pickle

import numpy as np
import pytest

from data_modules.kept_rows import KeptRows


def kept(mask: np.ndarray, step: int = 64) -> KeptRows:
    return KeptRows.of((mask[first : first + step] for first in range(0, len(mask), step)), len(mask))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("rows", [1, 7, 512, 513, 5000])
def test_they_are_those_of_an_array(rows: int, share: float) -> None:
    draw = np.random.default_rng(rows)
    mask = draw.random(rows) < share
    expected, found = np.flatnonzero(mask), kept(mask)
    assert len(found) == len(expected)
    ordinals = np.concatenate([np.arange(len(expected)), draw.integers(0, max(1, len(expected)), 50 if len(expected) else 0)])
    assert found[ordinals].dtype == np.int64 and np.array_equal(found[ordinals], expected[ordinals])
    assert [found.below(row) for row in range(rows + 1)] == np.searchsorted(expected, np.arange(rows + 1)).tolist()
    assert np.array_equal(np.concatenate(list(found.masks())), mask)
    mask[rows // 2] ^= True  # negative control: one row more or less is seen
    assert not np.array_equal(np.concatenate(list(found.masks())), mask)


def test_many_rows_take_a_bit_each_and_another_process_maps_the_file() -> None:
    rows = 3_000_000
    draw = np.random.default_rng(0)
    mask = draw.random(rows) < 0.3
    found = kept(mask, 1 << 16)
    expected = np.flatnonzero(mask)
    ordinals = draw.integers(0, len(expected), 20_000)
    assert np.array_equal(found[ordinals], expected[ordinals])
    assert found.path.stat().st_size < rows / 8 + 100
    sent = pickle.dumps(found)
    assert len(sent) < 1000 and np.array_equal(pickle.loads(sent)[ordinals[:9]], expected[ordinals[:9]])


def test_the_file_goes_with_the_object() -> None:
    found = kept(np.ones(100, dtype=bool))
    path, copy = found.path, pickle.loads(pickle.dumps(found))
    del copy
    gc.collect()
    assert path.is_file()
    del found
    gc.collect()
    assert not path.exists()
