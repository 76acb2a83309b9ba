"""The consistency filter: keep a pair when a model trained on the noisy pairs finds its passage among many.

Source: paper section 3.1: a model is trained on all noisy pairs, every pair's passage is ranked among 1M random passages
for its query, and the pair is kept where the rank is within the top k = 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_e5.errors import UserError

#: Scores held at once.
BLOCK_SCORES = 2**24


@dataclass(frozen=True, slots=True)
class FilterTruth:
    """How the filter's decisions compare with the planted truth, as shares."""

    removed_mismatches: float
    kept_pairs: float
    precision: float
    recall: float


def consistency_ranks(
    queries_ND: Tensor,
    passages_ND: Tensor,
    pool_PD: Tensor,
    passage_text_N: Tensor,
    pool_text_P: Tensor,
    *,
    progress: Callable[[int], object] = lambda rows: None,
    block_scores: int = BLOCK_SCORES,
) -> Tensor:
    """The rank of each pair's own passage among the pool, 1 = best.

    It is 1 + the number of pool passages that score above the pair's own; ties, and copies of the own passage in the
    pool (by normalised text), do not count against it.

    Args:
        queries_ND, passages_ND: unit rows of the pairs.
        pool_PD: unit rows of the random pool.
        passage_text_N, pool_text_P: int64 ids of the normalised texts.
        progress: called with the pairs done, block by block.
        block_scores: scores held at once.

    Returns:
        int64 ``[N]``.
    """
    count = len(queries_ND)
    ranks_N = torch.empty(count, dtype=torch.int64)
    rows = max(1, block_scores // max(1, len(pool_PD)))
    sorted_text_P, order_P = torch.sort(pool_text_P, stable=True)
    for start in range(0, count, rows):
        block = slice(start, min(count, start + rows))
        own_R = (queries_ND[block] * passages_ND[block]).sum(1)
        scores_RP = queries_ND[block] @ pool_PD.T
        _rule_out_copies(scores_RP, passage_text_N[block], sorted_text_P, order_P)
        # The own score and the pool's come from different summations; a copy differs in the last bits only, and is out.
        ranks_N[block] = 1 + (scores_RP > own_R[:, None]).sum(1)
        progress(block.stop - block.start)
    return ranks_N


def _rule_out_copies(scores_RP: Tensor, text_R: Tensor, sorted_text_P: Tensor, order_P: Tensor) -> None:
    """Set the scores of pool passages with the text of a row's own passage to -inf."""
    first = torch.searchsorted(sorted_text_P, text_R)
    last = torch.searchsorted(sorted_text_P, text_R, right=True)
    copies = last - first
    rows = torch.repeat_interleave(torch.arange(len(text_R)), copies)
    within = torch.arange(len(rows)) - torch.repeat_interleave(torch.cumsum(copies, 0) - copies, copies)
    scores_RP[rows, order_P[first[rows] + within]] = -torch.inf


def judge(keep_N: Tensor, planted_N: Tensor) -> FilterTruth:
    """Compare decisions with the planted mismatches.

    Returns:
        removed_mismatches: share of planted mismatches dropped; kept_pairs: share of the other pairs kept; precision
        and recall of the kept set, taking every pair that was not planted for a true one.
    """
    if len(keep_N) != len(planted_N):
        raise UserError(f"filter: {len(keep_N)} decisions for {len(planted_N)} pairs")
    true_N = ~planted_N

    def share(part: Tensor, whole: Tensor) -> float:
        return float((part & whole).sum() / whole.sum().clamp(min=1))

    return FilterTruth(
        removed_mismatches=share(~keep_N, planted_N),
        kept_pairs=share(keep_N, true_N),
        precision=share(true_N, keep_N),
        recall=share(keep_N, true_N),
    )
