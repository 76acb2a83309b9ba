"""Stage: a random part of a pool of pairs, to train on fewer of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_modules.pair_rows import kept_rows
from data_modules.pair_store import PairStore
from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError
from lightning_e5.files.parquet import write_parquet
from lightning_e5.ranges import Count
from lightning_e5.rng import generator


@configurable("stage")
def draw_pairs(out: Path, *, pairs: Path, keep: Path | None = None, count: Count | None = None, seed: int) -> dict[str, float]:
    """Write ``keep.parquet``: a bool column ``keep``, a row per pair, true for the pairs drawn.

    Args:
        out: the stage's folder.
        pairs: folder of pairs (see `PairStore`).
        keep: the consistency filter's ``ranks.parquet``; only pairs that it keeps are drawn. None: any pair.
        count: pairs drawn; None for all that may be.
        seed: of the draw.

    Returns:
        ``of``, the pairs that could be drawn, and ``pairs``, those drawn.

    Raises:
        UserError: there are fewer pairs than ``count``, or ``keep`` belongs to other pairs.

    Source: paper table 7 (1 M pairs of all).
    """
    rows = PairStore(pairs).rows
    able = np.arange(rows) if keep is None else kept_rows(keep, rows, pairs)
    if count is not None and not 1 <= count <= len(able):
        raise UserError(f"draw_pairs.count: {count} is not between 1 and the {len(able)} pairs that there are")
    chosen = able if count is None else generator(seed, "draw").choice(able, size=count, replace=False)
    drawn = np.zeros(rows, dtype=bool)
    drawn[chosen] = True
    write_parquet(out / "keep.parquet", {"keep": drawn})
    return {"of": len(able), "pairs": int(drawn.sum())}
