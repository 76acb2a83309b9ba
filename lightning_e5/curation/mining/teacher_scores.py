"""A cross-encoder's logits of mined groups, and how well it separates positives from negatives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_e5.curation.engines.inference import ScoreGroups
from lightning_e5.curation.engines.run_parts import parts_of, run_parts

#: Groups of a part; the scores of a finished part outlive a kill.
GROUPS = 2048


def group_scores(
    scorer: ScoreGroups, queries: Sequence[str], groups: Sequence[Sequence[str]], folder: Path, **where: Any
) -> list[NDArray[np.float32]]:
    """float32 logits of each query's passages, group by group.

    Args:
        scorer: the cross-encoder.
        folder: of the parts.
        where: `run_parts`' engine and GPUs.
    """
    parts = parts_of(
        folder / "scores", len(queries), GROUPS, lambda rows: (queries[rows], groups[rows]), what="groups",
        steps=lambda rows: sum(map(len, groups[rows])),
    )  # fmt: skip
    padded = (row for block in run_parts(scorer, parts, title="score", unit="pair", **where) for row in block["scores"])
    return [row[: len(group)] for row, group in zip(padded, groups, strict=True)]


def separation(scores: Sequence[NDArray[np.float32]]) -> dict[str, float]:
    """Share of positives (first in each group) above all negatives, mean margin over the best negative, mean spread in a group."""
    lists = [s.astype(np.float64) for s in scores]
    return {
        "groups": len(lists),
        "positive_first": float(np.mean([s[0] > s[1:].max() for s in lists])),
        "margin": float(np.mean([s[0] - s[1:].max() for s in lists])),
        "score_spread": float(np.mean([np.std(s) for s in lists])),
    }
