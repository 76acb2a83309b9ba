"""The consistency filter for a list of pairs in memory; the stage `lightning_e5.stages.consistency_filter` does the same for folders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_modules.pair_rows import text_pairs
from lightning_e5.curation.consistency_filter.pool import pool_rows
from lightning_e5.curation.consistency_filter.rank_counting import RankPool
from lightning_e5.curation.engines.inference import embedded
from lightning_e5.curation.engines.run_parts import Progress
from lightning_e5.errors import UserError
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.progress import progress
from lightning_e5.text import check_texts, text_id
from lightning_e5.types import Kind, TextPair

#: Pairs that are embedded and ranked together.
ROWS_PER_PART = 131_072


class FilteredPairs(NamedTuple):
    """kept: the pairs that stay, in order; rank_N: int64, of each pair's passage for its query, 1 = best; keep_N: bool."""

    kept: list[TextPair]
    rank_N: NDArray[np.int64]
    keep_N: NDArray[np.bool_]


def filter_pairs(
    encoder: TextEncoder,
    pairs: Iterable[TextPair | tuple[str, str]],
    *,
    pool: int | Sequence[str] = 1_000_000,
    keep_top: int = 2,
    exact_up_to: int | None = None,
    seed: int = 0,
) -> FilteredPairs:
    """Keep the pairs whose passage ranks among the first for its query, in a pool of random passages.

    Args:
        encoder: trained on the unfiltered pairs, on the device that it is to embed on.
        pairs: (query, passage), or `TextPair`.
        pool: so many random passages of the pairs, at most all there are (E5: 1M), or the passages themselves.
        keep_top: highest rank kept (E5: 2).
        exact_up_to: ranks over it are all given as ``exact_up_to + 1``, which is faster; at least ``keep_top``; None: all exact.
        seed: of the pool's draw; that of the stage with this seed.

    Raises:
        UserError: something that is no pair of texts, no pool, or a number out of range.

    Source: paper section 3.1.
    """
    rows = text_pairs(pairs)
    if keep_top < 1 or (isinstance(pool, int) and pool < 1):
        raise UserError(f"filter: keep_top = {keep_top} and pool = {pool} must be >= 1")
    if exact_up_to is not None and exact_up_to < keep_top:
        raise UserError(f"filter: exact_up_to = {exact_up_to} must be >= keep_top = {keep_top}, or None for all ranks")
    queries, passages = [row.query for row in rows], [row.passage for row in rows]
    drawn = [passages[row] for row in pool_rows(len(rows), pool, seed)] if isinstance(pool, int) else pool
    check_texts(drawn)
    if not drawn:
        raise UserError("filter: the pool has no passage")
    with progress(len(drawn) + 3 * len(rows), "filter pairs", "step") as bar:  # two texts of a pair to embed, one rank
        device = next(encoder.parameters()).device
        ranking = RankPool(_embedded(encoder, drawn, "passage", bar), _text_ids(drawn), exact_up_to=exact_up_to, device=device)
        rank_N = np.empty(len(rows), dtype=np.int64)
        for first in range(0, len(rows), ROWS_PER_PART):
            part = slice(first, first + ROWS_PER_PART)
            queries_ND = _embedded(encoder, queries[part], "query", bar)
            passages_ND = _embedded(encoder, passages[part], "passage", bar)
            rank_N[part] = ranking.ranks(queries_ND, passages_ND, _text_ids(passages[part]), bar).numpy()
    keep_N = rank_N <= keep_top
    return FilteredPairs([row for row, stays in zip(rows, keep_N, strict=True) if stays], rank_N, keep_N)


def _embedded(encoder: TextEncoder, texts: Sequence[str], kind: Kind, bar: Progress) -> Tensor:
    """``[N, D]``, part by part."""
    parts = [texts[first : first + ROWS_PER_PART] for first in range(0, len(texts), ROWS_PER_PART)]
    return torch.cat([embedded(encoder, part, kind, bar) for part in parts])


def _text_ids(texts: Sequence[str]) -> Tensor:
    return torch.tensor([text_id(text) for text in texts])
