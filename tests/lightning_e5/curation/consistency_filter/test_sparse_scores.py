"""Scores of chosen pairs are their inner products."""

from __future__ import annotations

import torch

from lightning_e5.curation.consistency_filter.sparse_scores import scores_at


def test_scores_at_chosen_pairs_are_their_products():
    draw = torch.Generator().manual_seed(7)
    queries, pool = (torch.nn.functional.normalize(torch.randn(count, 48, generator=draw), dim=1) for count in (30, 200))
    row, column = (torch.rand(30, 200, generator=torch.Generator().manual_seed(0)) < 0.1).nonzero(as_tuple=True)
    order = torch.argsort(row * 1000 - column)  # columns of a row in another order
    row, column = row[order], column[order]
    expected = (queries[row].double() * pool[column].double()).sum(1)
    assert torch.allclose(scores_at(queries, pool, row, column).double(), expected, atol=1e-6)
    assert not torch.allclose(scores_at(queries, pool, row, column.flip(0)).double(), expected, atol=1e-2)
    assert len(scores_at(queries, pool, row[:0], column[:0])) == 0
