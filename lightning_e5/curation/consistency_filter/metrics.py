"""What the consistency filter did: counts and kept shares source by source, precision and recall where label noise was injected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_modules.pair_rows import NOT_RANKED
from data_modules.pair_store import PairStore


def label_noise(store: PairStore) -> Tensor | None:
    """Which pairs hold injected label noise (column ``planted``); None where none does, for then nothing can be measured."""
    if "planted" not in store.columns:
        return None
    planted = torch.from_numpy(store.read(["planted"])["planted"].to_numpy(zero_copy_only=False).copy())
    return planted if bool(planted.any()) else None


def filter_metrics(keep_N: Tensor, noise_N: Tensor) -> dict[str, float]:
    """How the decisions compare with injected label noise: shares of noisy pairs dropped and of the others kept; precision and
    recall of the kept set, taking every pair without injected noise for a true one."""
    true_N = ~noise_N

    def share(part: Tensor, whole: Tensor) -> float:
        return float((part & whole).sum() / whole.sum().clamp(min=1))

    kept_pairs = share(keep_N, true_N)
    return {"removed_mismatches": share(~keep_N, noise_N), "kept_pairs": kept_pairs, "precision": share(true_N, keep_N), "recall": kept_pairs}


def by_source(
    names: Sequence[str], code_N: NDArray[np.int32], ranks: Tensor, keep: Tensor, noise: Tensor | None, pools: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """A row of ``sources.json`` for each source; ``pools``: how many passages its pairs were ranked among."""
    rows = []
    for name, own, pool in zip(names, rows_by_source(code_N, len(names)), pools.tolist(), strict=True):
        kept, rank = keep[own], ranks[own]
        ranked = rank[rank != NOT_RANKED]
        row = {
            "source": name,
            "pairs": len(own),
            "ranked": len(ranked),
            "kept": int(kept.sum()),
            "kept_share": int(kept.sum()) / len(own),
            "median_rank": int(ranked.median()) if len(ranked) else None,
            "pool": pool,
        }
        rows.append(row if noise is None else row | {"planted": int(noise[own].sum())} | filter_metrics(kept, noise[own]))
    return rows


def rows_by_source(code_N: NDArray[np.int32], sources: int) -> list[NDArray[np.int64]]:
    """The rows of each source, rising."""
    return np.split(np.argsort(code_N, kind="stable"), np.cumsum(np.bincount(code_N, minlength=sources))[:-1])
