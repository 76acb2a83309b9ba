"""The consistency filter: keep a pair when a model trained on the noisy pairs finds its passage among many.

Source: paper section 3.1: a model is trained on all noisy pairs, every pair's passage is ranked among 1M random passages
for its query, and the pair is kept where the rank is within the top k = 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_e5.curation.consistency_filter.rank_counting import RankPool
from lightning_e5.curation.consistency_filter.screens import ScreenName
from lightning_e5.errors import UserError


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
    block_scores: int | None = None,
    exact_up_to: int | None = None,
    screen: ScreenName | None = None,
    device: str | torch.device = "cpu",
) -> Tensor:
    """The rank of each pair's own passage among the pool, 1 = best.

    It is 1 + the number of pool passages that score at least as high as the pair's own: a tie is no hit, so that a collapsed
    encoder keeps nothing. Copies of the own passage in the pool (by normalised text) do not count. For many calls with one pool, keep a `RankPool`.

    Args:
        queries_ND, passages_ND: unit rows of the pairs.
        pool_PD: unit rows of the random pool.
        passage_text_N, pool_text_P: int64 ids of the normalised texts.
        progress: called with the pairs done, block by block.
        block_scores, exact_up_to, screen, device: as in `RankPool`.

    Returns:
        int64 ``[N]``.
    """
    pool = RankPool(pool_PD, pool_text_P, exact_up_to=exact_up_to, screen=screen, device=device, block_scores=block_scores)
    return pool.ranks(queries_ND, passages_ND, passage_text_N, progress)


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
