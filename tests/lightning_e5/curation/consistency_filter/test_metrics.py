"""Counts of decisions that come block by block are those of all decisions at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data_modules.order import Permutation
from lightning_e5.curation.consistency_filter import pool
from lightning_e5.curation.consistency_filter.metrics import Decisions
from lightning_e5.rng import derive_seed, generator


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("block", [1, 37, 500])
def test_counts_and_medians(noise: bool, block: int) -> None:
    draw = np.random.default_rng(0)
    code = np.array([0] * 100 + [2] * 250 + [1] * 149 + [0], np.int32)
    rank = draw.integers(0, 9, 500)
    rank[350:499] = 0  # nothing of one source is ranked
    keep, noisy = (rank <= 2) & (rank > 0), draw.random(500) < 0.3
    found = Decisions(["a", "b", "c"], np.array([7, 8, 9]), noise)
    for first in range(0, 500, block):
        part = slice(first, first + block)
        found.add(code[part], rank[part], keep[part], noisy[part] if noise else None)
    for number, row in enumerate(found.by_source()):
        own = code == number
        ranked = rank[own & (rank > 0)]
        median = int(torch.from_numpy(ranked).median()) if len(ranked) else None
        expected = {"pairs": own.sum(), "ranked": len(ranked), "kept": keep[own].sum(), "kept_share": keep[own].mean(), "median_rank": median}
        assert {key: row[key] for key in expected} == expected and row["pool"] == 7 + number
        assert ("planted" in row) == noise and (not noise or row["planted"] == noisy[own].sum())
    overall = found.overall(ranked=True)
    assert overall["ranked"] == (rank > 0).sum() and overall["kept_share"] == keep.mean()
    if noise:
        assert overall["precision"] == pytest.approx((keep & ~noisy).sum() / keep.sum())
        assert overall["recall"] == overall["kept_pairs"] == pytest.approx((keep & ~noisy).sum() / (~noisy).sum())
        assert overall["removed_mismatches"] == pytest.approx((~keep & noisy).sum() / noisy.sum())


def test_a_pool_is_a_shuffle_of_few_rows_and_a_computed_permutation_of_many() -> None:
    assert pool.pool_rows(1000, 30, 4).tolist() == sorted(generator(4, "pool").permutation(1000)[:30].tolist())
    rows = pool.SHUFFLED_ROWS + 1
    found = pool.pool_rows(rows, 5000, 4, "source")
    assert found.tolist() == sorted(Permutation(rows, derive_seed(4, "pool", "source"))(np.arange(5000)).tolist())
    assert len(np.unique(found)) == 5000 and abs(found.mean() / rows - 0.5) < 0.03
    assert found.tolist() != pool.pool_rows(rows, 5000, 5, "source").tolist()
    assert len(pool.pool_rows(5, 30, 0)) == 5
