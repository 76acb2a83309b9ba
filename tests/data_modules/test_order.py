"""The order of rows: every row once per epoch, shares as asked, at any size and without a table."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_modules.order import BatchOrder, Permutation
from lightning_e5.errors import UserError


@given(size=st.integers(1, 3000), key=st.integers(0, 2**63 - 1))
@settings(max_examples=60, deadline=None)
def test_a_permutation_meets_every_number_once(size: int, key: int) -> None:
    images = Permutation(size, key)(np.arange(size))
    assert images.dtype == np.int64
    assert np.array_equal(np.sort(images), np.arange(size))


@given(size=st.one_of(st.integers(2**30, 2**62), st.sampled_from([2**k + d for k in range(31, 62) for d in (-1, 0, 1)])))
@settings(max_examples=150, deadline=None)
def test_large_permutations_stay_in_range_without_collisions(size: int) -> None:
    ends = np.concatenate([np.arange(200), size - 1 - np.arange(200)])
    images = Permutation(size, 5)(ends)
    assert images.min() >= 0 and images.max() < size
    assert len(np.unique(images)) == len(ends)


@pytest.mark.parametrize("size", [0, -1, 2**62 + 1])
def test_sizes_out_of_range(size: int) -> None:
    with pytest.raises(ValueError, match=f"size: {size}"):
        Permutation(size, 1)


def test_keys_and_seeds_give_other_orders() -> None:
    orders = [Permutation(10_000, key)(np.arange(10_000)) for key in range(4)]
    for i, one in enumerate(orders):
        assert np.array_equal(one, Permutation(10_000, i)(np.arange(10_000)))
        for other in orders[:i]:
            assert (one == other).sum() < 30  # about 1 is expected of independent ones
    neighbours = np.abs(np.diff(orders[0]))
    assert (neighbours < 10).mean() < 0.01 and abs(np.corrcoef(orders[0], np.arange(10_000))[0, 1]) < 0.05


def test_the_order_of_1_3_billion_rows() -> None:
    order = BatchOrder([1_300_000_000], 32_768, seed=3)
    tracemalloc.start()
    started = time.perf_counter()
    steps = [0, 1, 19_999, 39_671, 39_672]
    batches = [order.rows(step) for step in steps]
    seconds = time.perf_counter() - started
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    rows = np.concatenate(batches)
    assert rows.min() >= 0 and rows.max() < 1_300_000_000
    assert len(np.unique(np.concatenate(batches[:4]))) == 4 * 32_768, "all of the first epoch: no row twice"
    assert 0.45 < (rows < 650_000_000).mean() < 0.55
    assert seconds / len(steps) < 5 and peak < 50e6, f"{seconds} s, {peak / 1e6} MB"
    assert np.array_equal(BatchOrder([1_300_000_000], 32_768, seed=3).rows(19_999), batches[2])


@pytest.mark.parametrize(
    ("sizes", "settings"),
    [
        ([1_300_000_000], {}),
        ([400_000_000, 899_000_000, 1_000_000], {"alpha": 0.5}),
        ([400_000_000, 899_000_000, 1_000_000], {"one_source_per_batch": True}),
        ([1_000_000] * 1300, {"weights": [1.0] * 1299 + [700.0]}),
    ],
)
def test_step_1_000_000_of_1_3_billion_rows_needs_no_table(sizes: list[int], settings: dict) -> None:  # type: ignore[type-arg]
    tracemalloc.start()
    order = BatchOrder(sizes, 1024, seed=3, **settings)
    rows = order.rows(1_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6, f"{peak / 1e6} MB: a table of the rows would be 10,400 MB, one of the steps so far 8 MB"
    assert rows.min() >= 0 and rows.max() < 1_300_000_000 and len(np.unique(rows)) == 1024
    again = BatchOrder(sizes, 1024, seed=3, **settings)
    again.rows(17)  # what was asked before changes nothing
    assert np.array_equal(again.rows(1_000_000), rows)
    for other in (order.rows(999_999), BatchOrder(sizes, 1024, seed=4, **settings).rows(1_000_000)):
        assert len(np.intersect1d(rows, other)) < 10


@pytest.mark.parametrize("one_source", [False, True])
@pytest.mark.parametrize("sources", [3, 1000, 1024, 1025, 3000])
def test_shares_are_as_asked_for_any_number_of_sources(sources: int, one_source: bool) -> None:
    """Most of the weight on one source, and others far below a slot in a thousand."""
    sizes = [64 + i % 7 for i in range(sources)]
    weights = np.ones(sources)
    weights[0], weights[sources // 2] = 0.0, 4.0 * sources
    expected = weights / weights.sum()
    slots = 1024 if one_source else 20_480
    order = BatchOrder(sizes, 64, seed=5, weights=weights.tolist(), one_source_per_batch=one_source)
    steps = range(slots if one_source else slots // 64)
    drawn = np.concatenate([order.rows(step)[: 1 if one_source else 64] for step in steps])
    found = np.bincount(np.searchsorted(np.cumsum(sizes), drawn, side="right"), minlength=sources)
    assert found[0] == 0 and np.abs(found - slots * expected).max() <= np.log2(sources) + 2


def test_with_more_sources_than_a_block_has_slots_every_row_still_comes_once_per_epoch() -> None:
    sizes = [1 + i % 3 for i in range(2500)]
    order = BatchOrder(sizes, 100, seed=6, alpha=0.0)
    stream = np.concatenate([order.rows(step) for step in range(200)])
    starts = np.cumsum([0, *sizes[:-1]])
    source = np.searchsorted(np.cumsum(sizes), stream, side="right")
    for index in (0, 1, 2, 1023, 1024, 2499):
        own = stream[source == index] - starts[index]
        assert len(own) >= 7
        for first in range(0, len(own) - sizes[index] + 1, sizes[index]):
            assert sorted(own[first : first + sizes[index]].tolist()) == list(range(sizes[index]))


def test_the_order_of_the_sources_is_no_fixed_turn() -> None:
    order = BatchOrder([100] * 4, 4, seed=7, alpha=0.0, one_source_per_batch=True)
    sources = np.array([order.rows(step)[0] // 100 for step in range(2048)])
    assert np.bincount(sources[:1024]).tolist() == [256] * 4
    for lag in (1, 2, 4, 8, 1024):
        assert 0.15 < (sources[lag:] == sources[:-lag]).mean() < 0.35


def test_a_batch_may_straddle_two_epochs() -> None:
    order = BatchOrder([10], 4, seed=1)
    stream = np.concatenate([order.rows(step) for step in range(10)])
    for epoch in range(4):
        assert sorted(stream[10 * epoch : 10 * (epoch + 1)].tolist()) == list(range(10))
    assert len({tuple(stream[10 * e : 10 * (e + 1)].tolist()) for e in range(4)}) == 4


def shares(order: BatchOrder, sizes: list[int], steps: int) -> np.ndarray:
    rows = np.concatenate([order.rows(step) for step in range(steps)])
    sources = np.searchsorted(np.cumsum(sizes), rows, side="right")
    return np.bincount(sources, minlength=len(sizes)) / len(rows)


@pytest.mark.parametrize("one_source", [False, True])
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"weights": [1, 1, 2]}, [0.25, 0.25, 0.5]),
        ({"weights": [3, 0, 1]}, [0.75, 0.0, 0.25]),
        ({"alpha": 0.0}, [1 / 3, 1 / 3, 1 / 3]),
        ({"alpha": 0.5}, np.sqrt([400, 900, 2500]) / np.sqrt([400, 900, 2500]).sum()),
        ({"alpha": 1.0}, np.array([400, 900, 2500]) / 3800),
    ],
)
def test_shares_are_as_asked(settings: dict, expected: list[float], one_source: bool) -> None:  # type: ignore[type-arg]
    sizes = [400, 900, 2500]
    order = BatchOrder(sizes, 16, seed=2, one_source_per_batch=one_source, **settings)
    assert np.abs(shares(order, sizes, 1024 if one_source else 128) - np.asarray(expected)).max() < 0.02
    ends = np.cumsum(sizes)
    sources = [set(np.searchsorted(ends, order.rows(step), side="right").tolist()) for step in range(100)]
    assert (max(map(len, sources)) == 1) == one_source


@pytest.mark.parametrize("one_source", [False, True])
def test_within_a_source_no_row_comes_twice_before_all_have_come(one_source: bool) -> None:
    sizes = [48, 96]
    order = BatchOrder(sizes, 16, seed=4, weights=[1, 1], one_source_per_batch=one_source)
    stream = np.concatenate([order.rows(step) for step in range(200)])
    for first, size in ((0, 48), (48, 96)):
        own = stream[(stream >= first) & (stream < first + size)]
        for epoch in range(len(own) // size):
            assert sorted(own[size * epoch : size * (epoch + 1)].tolist()) == list(range(first, first + size))


@pytest.mark.parametrize(
    ("sizes", "batch_size", "settings", "message"),
    [
        ([], 1, {}, "every source needs rows"),
        ([5, 0], 1, {}, "every source needs rows"),
        ([10], 11, {}, "batch_size: 11 is not in 1 .. 10"),
        ([10], 0, {}, "batch_size: 0"),
        ([10, 20], 11, {"one_source_per_batch": True}, "batch_size: 11 is not in 1 .. 10"),
        ([10, 20], 4, {"weights": [1]}, "must be 2 finite numbers"),
        ([10, 20], 4, {"weights": [1, -1]}, "must be 2 finite numbers"),
        ([10, 20], 4, {"weights": [1, float("inf")]}, "must be 2 finite numbers"),
        ([10, 20], 4, {"weights": [1, float("nan")]}, "must be 2 finite numbers"),
        ([10, 20], 4, {"weights": [0, 0]}, "not all 0"),
    ],
)
def test_mistakes_are_named(sizes: list[int], batch_size: int, settings: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(UserError, match=message):
        BatchOrder(sizes, batch_size, 1, **settings)
