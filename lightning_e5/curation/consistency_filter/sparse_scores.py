"""Scores of chosen (query, passage) pairs alone."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor


def scores_at(queries_RD: Tensor, pool_PD: Tensor, row_M: Tensor, column_M: Tensor) -> Tensor:
    """The inner products of the pairs ``(row, column)`` in float32, ``[M]``, without a copy of the pool or of its rows.

    Args:
        queries_RD, pool_PD: float32, on the CPU (a mapped file, too).
        row_M, column_M: int64, the rows in ascending order.
    """
    if not len(row_M):
        return queries_RD.new_empty(0)
    size = (len(queries_RD), len(pool_PD))
    start = torch.nn.functional.pad(torch.bincount(row_M, minlength=size[0]).cumsum(0), (1, 0))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
        where = torch.sparse_csr_tensor(start, column_M, queries_RD.new_zeros(len(row_M)), size=size, check_invariants=False)
        return torch.sparse.sampled_addmm(where, queries_RD, pool_PD.T, beta=0.0).values()
