"""A cross-encoder's logits of mined groups, and how well it separates positives from negatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from lightning_e5.curation.engines.blocks import KeptBlocks
from lightning_e5.progress import progress
from lightning_e5.types import PairScorer

#: Groups of a block; the scores of a finished block outlive a kill.
GROUPS = 2048
#: Logits of a query's passages that spread less than this are all alike.
COLLAPSED = 1e-4


def group_scores(
    queries: Sequence[str], groups: Sequence[Sequence[str]], scorer: Callable[[], PairScorer], blocks: KeptBlocks
) -> list[NDArray[np.float32]]:
    """float32 logits of each query's passages, group by group; finished blocks of groups are kept.

    ``scorer`` gives the cross-encoder; it is asked only where a block is missing.
    """
    with progress(sum(map(len, groups)), "score", "pair") as bar:

        def compute(part: slice) -> dict[str, NDArray[np.float32]]:
            return {"scores": padded_scores(queries[part], groups[part], scorer())}

        found: list[NDArray[np.float32]] = []
        for block in blocks.run("scores", len(queries), GROUPS, compute):
            part = groups[len(found) : len(found) + len(block["scores"])]
            found += [row[: len(g)] for row, g in zip(block["scores"], part, strict=True)]
            bar(sum(map(len, part)))
    return found


def padded_scores(
    queries: Sequence[str], groups: Sequence[Sequence[str]], scorer: PairScorer
) -> NDArray[np.float32]:
    """float32 ``[Q, longest group]`` logits, NaN after the end of a group."""
    sizes = [len(g) for g in groups]
    asked = [q for q, g in zip(queries, groups, strict=True) for _ in g]
    padded = np.full((len(sizes), max(sizes)), np.nan, dtype=np.float32)
    padded[np.arange(max(sizes)) < np.asarray(sizes)[:, None]] = scorer.score(asked, [p for g in groups for p in g]).numpy()
    return padded


def separation(scores: Sequence[NDArray[np.float32]]) -> dict[str, float]:
    """Share of positives (first in each group) above all negatives, mean margin over the best negative, mean spread in a group."""
    lists = [s.astype(np.float64) for s in scores]
    return {
        "groups": len(lists),
        "positive_first": float(np.mean([s[0] > s[1:].max() for s in lists])),
        "margin": float(np.mean([s[0] - s[1:].max() for s in lists])),
        "score_spread": float(np.mean([np.std(s) for s in lists])),
    }
