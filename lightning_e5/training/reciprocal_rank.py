"""Where the positives of held-out queries rank among all held-out passages."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_e5.distributed.devices import whole_float32
from lightning_e5.losses.false_negatives import DuplicateQueries, FalseNegativeMask

#: Scores of one block: 2^24 float32 values are 64 MB.
_BLOCK_SCORES = 2**24


@torch.no_grad()
def reciprocal_ranks(
    queries_MD: Tensor, passages_PD: Tensor, query_text_M: Tensor, passage_text_P: Tensor, *, k: int = 10, block_scores: int = _BLOCK_SCORES
) -> Tensor:
    """The reciprocal rank of each query's positive among the distinct passages, 0 past rank ``k``.

    A passage that scores as the positive does is ranked before it, so that a collapsed encoder has no hits. Passages of equal text
    count once; those of the positive's text and the positives of an equal query are no rivals (`FalseNegativeMask`).

    Args:
        queries_MD: embeddings.
        passages_PD: embeddings, ``P = M * G``: a query's positive first, then its negatives.
        query_text_M, passage_text_P: int64, equal for equal texts.
        k: the lowest rank that counts.
        block_scores: scores held at once.

    Returns:
        float64 ``[M]``.
    """
    group = len(passage_text_P) // max(1, len(query_text_M))
    positive_text_M = passage_text_P[::group]
    text_U, number_P = torch.unique(passage_text_P, return_inverse=True)
    # One passage per text; which one is the same in every run, whatever the order in which a device writes.
    place_U = torch.full((len(text_U),), len(number_P), dtype=torch.long, device=number_P.device)
    place_U.scatter_reduce_(0, number_P, torch.arange(len(number_P), device=number_P.device), "amin")
    distinct_UD, target_M = passages_PD.index_select(0, place_U), number_P[::group]
    rivals = FalseNegativeMask(text_U, positive_text_M, target_M, duplicates=DuplicateQueries(query_text_M, query_text_M, positive_text_M))
    block, parts = max(1, block_scores // len(text_U)), []
    for start in range(0, len(queries_MD), block):
        with whole_float32():
            scores_BU = queries_MD[start : start + block] @ distinct_UD.T
        own_B1 = scores_BU.gather(1, target_M[start : start + block, None])
        row_K, column_K = rivals.block(start, start + len(scores_BU))
        scores_BU[row_K, column_K] = -torch.inf
        rank_B = (scores_BU >= own_B1).sum(1).double()  # the positive itself is the 1
        parts.append(torch.where((rank_B >= 1) & (rank_B <= k), 1.0 / rank_B, torch.zeros_like(rank_B)))
    return torch.cat(parts)
