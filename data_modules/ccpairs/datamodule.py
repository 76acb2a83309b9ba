"""CCPairs batches for pre-training: a token cache, the rows that the filter kept, and the order of the steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from data_modules.base import StepDataModule, resolve_steps
from data_modules.order import BatchOrder
from data_modules.token_cache import TokenCache
from lightning_e5.errors import UserError
from lightning_e5.storage import read_parquet
from lightning_e5.types import PairBatch, TokenBatch


class CCPairsDataModule(StepDataModule):
    """In-batch-negative batches of (query, passage) token pairs.

    Args:
        tokens: a token cache with the columns ``query`` and ``passage``.
        batch_size: pairs of the global batch (E5: 32,768).
        seed: of the order.
        max_steps, epochs: give one of them (E5: 20,000 steps, about 2.5 epochs).
        keep: a Parquet file of the consistency filter with a bool column ``keep``, a row per pair; None keeps all.
        num_workers: data-loading processes.
    """

    def __init__(
        self,
        *,
        tokens: Path,
        batch_size: int,
        seed: int,
        max_steps: int | None = None,
        epochs: float | None = None,
        keep: Path | None = None,
        num_workers: int = 0,
    ) -> None:
        cache = TokenCache(Path(tokens))
        kept = _kept_rows(Path(keep), cache) if keep is not None else None
        self.pairs = cache.rows if kept is None else len(kept)
        steps = resolve_steps(max_steps, epochs, self.pairs, batch_size)
        super().__init__(batch_size=batch_size, max_steps=steps, seed=seed, num_workers=num_workers)
        self.cache, self.kept = cache, kept
        self.order = BatchOrder([self.pairs], batch_size, seed)

    def batch(self, step: int, rank: int, world_size: int) -> PairBatch:
        rows = self.order.rows(step)[self.rank_slice(rank, world_size)]
        if self.kept is not None:
            rows = self.kept[rows]
        return PairBatch(
            queries=_token_batch(self.cache, "query", rows),
            passages=_token_batch(self.cache, "passage", rows),
            query_text_B=torch.from_numpy(self.cache.text_ids("query", rows)),
            passage_text_P=torch.from_numpy(self.cache.text_ids("passage", rows)),
            rows_B=torch.from_numpy(rows),
        )


def _token_batch(cache: TokenCache, column: str, rows: np.ndarray) -> TokenBatch:
    ids, lengths = cache.gather(column, rows)
    return TokenBatch(torch.from_numpy(ids), torch.from_numpy(lengths))


def _kept_rows(path: Path, cache: TokenCache) -> np.ndarray:
    keep = read_parquet(path, {"keep": "bool"})["keep"].to_numpy(zero_copy_only=False)
    if len(keep) != cache.rows:
        raise UserError(f"{path}: has {len(keep)} rows where {cache.directory} has {cache.rows} pairs")
    rows = np.flatnonzero(keep)
    if not len(rows):
        raise UserError(f"{path}: keeps no pair")
    return rows.astype(np.int64)
