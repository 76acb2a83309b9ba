"""Stage: the averaged-word-vectors baseline, trained on the same pairs as pre-training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from lightning_e5.evaluation.baselines.word_vectors import WordVectors, WordVectorsConfig
from lightning_e5.pairs import PairStore
from lightning_e5.storage import read_parquet


def word_vectors(
    out: Path, *, pairs: Path, config: WordVectorsConfig, keep: Path | None = None, seed: int
) -> dict[str, float]:
    """Write ``word_vectors/``; returns the pairs seen.

    Args:
        pairs: folder of pairs (see `PairStore`).
        config: how the vectors are made.
        keep: the filter's ``ranks.parquet``; None keeps all.
    """
    table = PairStore(pairs).read(["query", "passage"])
    if keep is not None:
        table = table.take(np.flatnonzero(read_parquet(keep, {"keep": "bool"})["keep"].to_numpy(zero_copy_only=False)))
    texts = list(zip(table["query"].to_pylist(), table["passage"].to_pylist(), strict=True))
    config = dataclasses.replace(config, seed=seed)
    WordVectors(config).fit(texts).save(out / "word_vectors")
    return {"pairs": len(texts), "pairs_seen": len(texts) * config.epochs}
