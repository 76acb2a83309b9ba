"""Stage: rank every pair's passage among a random pool, keep the pairs in the top k."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from lightning_e5.curation.consistency_filter import consistency_ranks, judge
from lightning_e5.errors import UserError
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.precision import Precision
from lightning_e5.progress import progress
from lightning_e5.rng import generator
from lightning_e5.storage import read_parquet, write_parquet
from lightning_e5.text import text_id


def consistency_filter(
    out: Path, *, pairs: Path, encoder: Path, pool_size: int = 1_000_000, k: int = 2, precision: Precision = "fp32", seed: int
) -> dict[str, float]:
    """Write ``ranks.parquet`` (``rank`` int64, ``keep`` bool; a row per pair, in order).

    Args:
        pairs: folder with ``pairs.parquet``.
        encoder: folder of the noisy model.
        pool_size: random passages to rank among (E5: 1M); at most all there are.
        k: highest rank kept (E5: 2).
        precision: of the backbone; scores are float32.

    Returns:
        Kept share, and, where the pairs have a ``planted`` column (which no training reads), precision and recall.

    Source: paper section 3.1.
    """
    if k < 1 or pool_size < 1:
        raise UserError(f"filter: k = {k} and pool_size = {pool_size} must be >= 1")
    table = read_parquet(pairs / "pairs.parquet", {"query": "string", "passage": "string", "planted": "bool"})
    queries, passages = table["query"].to_pylist(), table["passage"].to_pylist()
    model = TextEncoder.from_pretrained(encoder, precision=precision)
    texts = torch.tensor([text_id(p) for p in passages])
    with progress(2 * len(queries), "embed pairs", "text") as bar:
        queries_ND = model.embed(queries, "query", progress=bar)
        passages_ND = model.embed(passages, "passage", progress=bar)
    chosen = generator(seed, "pool").permutation(len(passages))[:pool_size]
    pool = torch.from_numpy(np.sort(chosen))
    with progress(len(queries), "rank", "pair") as bar:
        ranks = consistency_ranks(queries_ND, passages_ND, passages_ND[pool], texts, texts[pool], progress=bar)
    keep = ranks <= k
    write_parquet(out / "ranks.parquet", {"rank": ranks.numpy(), "keep": keep.numpy()})
    truth = judge(keep, torch.from_numpy(table["planted"].to_numpy(zero_copy_only=False).copy()))
    return {
        "pairs": len(keep),
        "kept": int(keep.sum()),
        "pool": len(pool),
        "kept_share": float(keep.float().mean()),
        "removed_mismatches": truth.removed_mismatches,
        "kept_pairs": truth.kept_pairs,
        "precision": truth.precision,
        "recall": truth.recall,
    }
