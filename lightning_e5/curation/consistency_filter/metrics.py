"""What the consistency filter did: counts and kept shares source by source, precision and recall where label noise was injected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_modules.pair_rows import NOT_RANKED
from data_modules.pair_store import BLOCK_ROWS, PairStore

Counts = NDArray[np.int64]


def has_label_noise(store: PairStore) -> bool:
    """Whether pairs hold injected label noise (column ``planted``); where none does, nothing can be measured by it."""
    if "planted" not in store.columns:
        return False
    return any(table["planted"].to_numpy().any() for table in store.iter_batches(["planted"], BLOCK_ROWS))


class Decisions:
    """Counts of a filter's decisions, added block by block.

    Memory: for each source a count of every rank up to the highest, which is one more than the passages of its pool at most.

    Args:
        names: of the sources.
        pools: how many passages each one's pairs were ranked among.
        noise: label noise was injected.
    """

    def __init__(self, names: Sequence[str], pools: Counts, noise: bool) -> None:
        self.names, self.pools, self.noise = names, pools, noise
        self.pairs_S, self.kept_S, self.noisy_S, self.noisy_kept_S = np.zeros((4, len(names)), dtype=np.int64)
        self.ranks: list[Counts] = [np.zeros(0, dtype=np.int64) for _ in names]

    def add(self, code_N: NDArray[np.int32], rank_N: Counts, keep_N: NDArray[np.bool_], noise_N: NDArray[np.bool_] | None) -> None:
        """Some pairs: their sources' numbers, ranks, decisions, and which of them hold injected noise."""
        for total, some in ((self.pairs_S, None), (self.kept_S, keep_N), (self.noisy_S, noise_N), (self.noisy_kept_S, None if noise_N is None else keep_N & noise_N)):
            if some is not None or total is self.pairs_S:
                total += np.bincount(code_N if some is None else code_N[some], minlength=len(total))
        for code in np.unique(code_N).tolist():
            found = np.bincount(rank_N[code_N == code])
            both = np.zeros(max(len(found), len(self.ranks[code])), dtype=np.int64)
            both[: len(self.ranks[code])] = self.ranks[code]
            both[: len(found)] += found
            self.ranks[code] = both

    def overall(self, *, ranked: bool) -> dict[str, float]:
        """Of all pairs; ``ranked``: say how many had a rank, too."""
        pairs, kept = int(self.pairs_S.sum()), int(self.kept_S.sum())
        found: dict[str, float] = {"pairs": pairs, "kept": kept, "kept_share": kept / pairs}
        if ranked:
            found["ranked"] = pairs - sum(int(counts[NOT_RANKED : NOT_RANKED + 1].sum()) for counts in self.ranks)
        if self.noise:
            found |= filter_metrics(pairs, kept, int(self.noisy_S.sum()), int(self.noisy_kept_S.sum()))
        return found

    def by_source(self) -> list[dict[str, Any]]:
        """A row of ``sources.json`` for each source."""
        rows = []
        for number, name in enumerate(self.names):
            pairs, kept, noisy, noisy_kept = (int(total[number]) for total in (self.pairs_S, self.kept_S, self.noisy_S, self.noisy_kept_S))
            counts = self.ranks[number].copy()
            counts[NOT_RANKED] = 0
            ranked = int(counts.sum())
            row = {
                "source": name,
                "pairs": pairs,
                "ranked": ranked,
                "kept": kept,
                "kept_share": kept / pairs,
                "median_rank": int(np.searchsorted(np.cumsum(counts), (ranked - 1) // 2, side="right")) if ranked else None,
                "pool": int(self.pools[number]),
            }
            rows.append(row | {"planted": noisy} | filter_metrics(pairs, kept, noisy, noisy_kept) if self.noise else row)
        return rows


def filter_metrics(pairs: int, kept: int, noisy: int, noisy_kept: int) -> dict[str, float]:
    """How the decisions compare with injected label noise: shares of noisy pairs dropped and of the others kept; precision and
    recall of the kept set, taking every pair without injected noise for a true one."""
    true, true_kept = pairs - noisy, kept - noisy_kept
    recall = true_kept / max(1, true)
    return {"removed_mismatches": (noisy - noisy_kept) / max(1, noisy), "kept_pairs": recall, "precision": true_kept / max(1, kept), "recall": recall}
