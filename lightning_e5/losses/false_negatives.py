"""False-negative masking: candidates left out of a query's negatives, by the ids of their texts; never a Q x C matrix."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor


class DuplicateQueries(NamedTuple):
    """The (query, positive) text ids of a global batch, by which the positives of duplicate queries are known.

    query_text_Q: of the rows of the loss; all_query_text_N and all_positive_text_N: of the whole batch, own rows included.
    """

    query_text_Q: Tensor
    all_query_text_N: Tensor
    all_positive_text_N: Tensor


class FalseNegativeMask:
    """Candidates that are left out of a query's negatives, since their text is that of a positive.

    A candidate is left out where its text is that of the query's positive, that of a positive of a duplicate
    query (``duplicates``), or the query's own (``own_text_Q``, for queries among the candidates); never the positive itself.

    Args:
        candidate_text_C: int64 text id of every candidate, in the order of the loss's columns.
        positive_text_Q: int64 text id of each query's positive.
        target_Q: int64 column of each query's positive.
        duplicates: of the global batch; None leaves duplicate queries unconsidered.
        own_text_Q: int64 further text id per query that is left out.
    """

    def __init__(
        self,
        candidate_text_C: Tensor,
        positive_text_Q: Tensor,
        target_Q: Tensor,
        *,
        duplicates: DuplicateQueries | None = None,
        own_text_Q: Tensor | None = None,
    ) -> None:
        self._sorted_C, self._column_C = torch.sort(candidate_text_C)
        self._positive_Q, self._target_Q, self._own_Q = positive_text_Q, target_Q, own_text_Q
        self._query_Q = duplicates.query_text_Q if duplicates is not None else None
        if duplicates is not None:
            pairs = torch.unique(torch.stack([duplicates.all_query_text_N, duplicates.all_positive_text_N], 1), dim=0)
            self._pair_query, self._pair_positive = pairs[:, 0].contiguous(), pairs[:, 1].contiguous()

    def among(self, candidate_text_C: Tensor) -> FalseNegativeMask:
        """The mask of the same queries for other candidates, none of which is the positive itself."""
        other = copy.copy(self)
        other._sorted_C, other._column_C = torch.sort(candidate_text_C)
        other._target_Q = torch.full_like(self._target_Q, -1)
        return other

    def block(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """(row - start, column) of every left-out candidate of the queries ``start .. stop``, each once."""
        rows_M = torch.arange(stop - start, device=self._positive_Q.device)
        texts_M = self._positive_Q[start:stop]
        if self._query_Q is not None:
            rows_M, pair_M = _join(self._query_Q[start:stop], self._pair_query)
            texts_M = self._pair_positive[pair_M]
        if self._own_Q is not None:
            rows = torch.arange(stop - start, device=rows_M.device)
            both = torch.unique(torch.stack([torch.cat([rows_M, rows]), torch.cat([texts_M, self._own_Q[start:stop]])], 1), dim=0)
            rows_M, texts_M = both[:, 0], both[:, 1].contiguous()
        match_K, position_K = _join(texts_M, self._sorted_C)
        rows_K, columns_K = rows_M[match_K], self._column_C[position_K]
        others_K = columns_K != self._target_Q[start:stop][rows_K]
        return rows_K[others_K], columns_K[others_K]


class OwnColumnMask:
    """Leaves out one candidate per query, known by its column: the query itself, where queries are among the candidates.

    Args:
        column_Q: int64 column of each query among the candidates.
    """

    def __init__(self, column_Q: Tensor) -> None:
        self._column_Q = column_Q

    def among(self, candidate_text_C: Tensor) -> OwnColumnMask:
        """The mask of the same queries for other candidates, of which it leaves out none."""
        return OwnColumnMask(self._column_Q[:0])

    def block(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """(row - start, column) of the candidate left out of each of the queries ``start .. stop``."""
        columns_K = self._column_Q[start:stop]
        return torch.arange(len(columns_K), device=columns_K.device), columns_K


def _join(keys_M: Tensor, sorted_N: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs (index into ``keys_M``, index into ``sorted_N``) of equal values."""
    keys_M = keys_M.contiguous()
    first_M = torch.searchsorted(sorted_N, keys_M)
    count_M = torch.searchsorted(sorted_N, keys_M, right=True) - first_M
    index_K = torch.repeat_interleave(torch.arange(len(keys_M), device=keys_M.device), count_M)
    before_M = torch.cumsum(count_M, 0) - count_M
    within_K = torch.arange(len(index_K), device=keys_M.device) - before_M[index_K]
    return index_K, first_M[index_K] + within_K
