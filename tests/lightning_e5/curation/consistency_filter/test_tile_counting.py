"""What a tile decides is what its thresholds say, in every number format."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_e5.curation.consistency_filter.bounded_scores import Tile
from lightning_e5.curation.consistency_filter.tile_counting import count_tile


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6), rows=st.integers(0, 40), columns=st.integers(1, 70), most=st.sampled_from([0, 2, 10, float("inf")]),
    band=st.sampled_from([0.0, 1e-4, 0.1, 5.0]), kind=st.sampled_from(["float32", "bfloat16", "int32", "bounds"]),
)  # fmt: skip
def test_a_tile_is_counted_as_its_thresholds_say(seed, rows, columns, most, band, kind):
    draw = torch.Generator().manual_seed(seed)
    scores, low = torch.randn(rows, columns, generator=draw), 2 * torch.randn(rows, generator=draw)
    high = low + band
    if kind == "int32":
        scores, low, high = ((1000 * value).int() for value in (scores, low, high))
    elif kind == "bfloat16":
        scores, low, high = (value.bfloat16() for value in (scores, low, high))
    elif kind == "bounds":
        scores, low, high = scores - 1.5, torch.zeros(rows), torch.full((rows,), torch.inf)
    above, row, column, many = count_tile(Tile(scores, low, high, upper_bounds=kind == "bounds"), most)
    between = (scores > low[:, None]) & (scores <= high[:, None])
    if kind != "bounds":  # a row is left out by a count that rounding may raise
        assert not bool((many & (between.sum(1) < most - 2)).any())
    assert bool((many | (between.sum(1) <= most)).all())
    assert torch.equal(above, (scores > high[:, None]).sum(1).masked_fill(many, 0))
    found = torch.zeros_like(between)
    found[row, column] = True
    assert torch.equal(found, between & ~many[:, None]) and len(row) == int(found.sum())
