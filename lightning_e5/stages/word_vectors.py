"""Stage: the averaged-word-vectors baseline, trained on the same pairs as pre-training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from data_modules.pair_rows import kept_rows
from data_modules.pair_store import PairStore
from lightning_e5.configurable import configurable
from lightning_e5.evaluation.baselines.word_vectors import WordVectors, WordVectorsConfig
from lightning_e5.models.training_record import UNTRAINED, texts_identity
from lightning_e5.pipeline.stage import StageContext
from lightning_e5.ranges import Given
from lightning_e5.text import texts_digest


@configurable("stage")
def word_vectors(
    out: Path, *, pairs: Path, config: Annotated[WordVectorsConfig, Given(("seed",))], keep: Path | None = None, seed: int, context: StageContext | None = None
) -> dict[str, float]:
    """Write ``word_vectors/``; returns the pairs seen.

    Args:
        pairs: folder of pairs (see `PairStore`).
        config: how the vectors are made.
        keep: the filter's ``ranks.parquet``; None keeps all.
    """
    table = PairStore(pairs).read(["query", "passage"])
    read = texts_identity({name: texts_digest(table[name].to_pylist()) for name in ("query", "passage")})
    if keep is not None:
        table = table.take(kept_rows(keep, len(table), pairs))
    texts = list(zip(table["query"].to_pylist(), table["passage"].to_pylist(), strict=True))
    config = dataclasses.replace(config, seed=seed)
    WordVectors(config).fit(texts).save(out / "word_vectors")
    metrics: dict[str, float] = {"pairs": len(texts), "pairs_seen": len(texts) * config.epochs}
    UNTRAINED.after(context.stage if context else "word_vectors", metrics, [read]).save(out / "word_vectors")
    return metrics
