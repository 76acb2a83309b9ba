"""Stage: mine hard negatives for the kept pairs with a trained encoder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from lightning_e5.curation.hard_negatives import NegativeRules, mine
from lightning_e5.errors import UserError
from lightning_e5.models.encoder import Precision, TextEncoder
from lightning_e5.pairs import PairStore
from lightning_e5.progress import progress
from lightning_e5.retrieval.exact import ExactIndex
from lightning_e5.rng import generator
from lightning_e5.storage import read_parquet, write_json, write_parquet
from lightning_e5.text import text_id


def hard_negatives(
    out: Path,
    *,
    pairs: Path,
    keep: Path,
    encoder: Path,
    count: int = 7,
    first_rank: int = 1,
    last_rank: int = 200,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    max_queries: int | None = None,
    precision: Precision = "fp32",
    seed: int,
) -> dict[str, float]:
    """Write ``ranked.parquet``: ``query``, ``positive``, ``negatives`` (list of ``count``), ``source``.

    Args:
        pairs: folder of pairs (see `PairStore`).
        keep: the filter's ``ranks.parquet``.
        encoder: the retriever.
        count, first_rank, last_rank, absolute_margin, relative_margin: see `NegativeRules`.
        max_queries: a random part of the kept pairs; None for all.
        precision: of the backbone; scores are float32.

    Returns:
        The mining report's counts.

    Source: paper section 4.2 (mined hard negatives).
    """
    rules = NegativeRules(count, first_rank, last_rank, absolute_margin, relative_margin)
    table = PairStore(pairs).read(["query", "passage", "source"])
    kept = np.flatnonzero(read_parquet(keep, {"keep": "bool"})["keep"].to_numpy(zero_copy_only=False))
    if len(kept) == 0:
        raise UserError(f"{keep}: keeps no pair")
    table = table.take(kept)
    queries, passages = table["query"].to_pylist(), table["passage"].to_pylist()
    query_text, passage_text = [text_id(q) for q in queries], [text_id(p) for p in passages]
    positives: dict[int, set[int]] = {}
    for q, p in zip(query_text, passage_text, strict=True):
        positives.setdefault(q, set()).add(p)
    corpus = sorted({text: row for row, text in reversed(list(enumerate(passage_text)))}.values())
    rows = np.arange(len(queries))
    if max_queries is not None and max_queries < len(rows):
        rows = np.sort(generator(seed, "queries").permutation(len(rows))[:max_queries])
    chosen = [queries[r] for r in rows]
    model = TextEncoder.from_pretrained(encoder, precision=precision)
    with progress(len(chosen) + len(corpus), "embed", "text") as bar:
        queries_QD = model.embed(chosen, "query", progress=bar)
        corpus_PD = model.embed([passages[r] for r in corpus], "passage", progress=bar)
    index = ExactIndex()
    index.add(corpus_PD)
    with progress(len(chosen), "search", "query") as bar:
        scores_QK, found_QK = index.search(queries_QD, last_rank)
        bar(len(chosen))
    place = {passage_text[r]: i for i, r in enumerate(corpus)}
    own = torch.tensor([place[passage_text[r]] for r in rows])
    positive_scores = (queries_QD * corpus_PD[own]).sum(1).numpy()
    corpus_text = np.asarray([passage_text[r] for r in corpus], dtype=np.int64)
    known = [positives[query_text[r]] for r in rows]
    negatives, report = mine(
        found_QK, scores_QK, positive_scores, known, corpus_text, rules, seed=seed
    )
    columns = {
        "query": chosen,
        "positive": [passages[r] for r in rows],
        "negatives": [[passages[corpus[n]] for n in ns] for ns in negatives],
        "source": table["source"].take(rows),
    }
    write_parquet(out / "ranked.parquet", columns)
    write_json(out / "report.json", dataclasses.asdict(report))
    return {k: v for k, v in dataclasses.asdict(report).items() if isinstance(v, int)}
