"""Stage: mine hard negatives for the kept pairs, or for a judged collection, with a trained encoder or BM25."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_modules.pair_store import PairStore
from lightning_e5.configurable import configurable
from lightning_e5.curation.engines.engine import Engine
from lightning_e5.curation.engines.inference import EmbedTexts, ScoreGroups
from lightning_e5.curation.mining.candidates import Candidates, dense_candidates, false_negatives, lexical_candidates
from lightning_e5.curation.mining.collections import COLLECTION_FACTS, MiningData, of_collection, of_pairs
from lightning_e5.curation.mining.hard_negatives import NegativeRules, mine
from lightning_e5.distributed.devices import Precision
from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir.data import load_beir
from lightning_e5.files.parquet import read_parquet, write_parquet
from lightning_e5.files.storage import read_json, write_json
from lightning_e5.ranges import Count, Length, Range, WorkersOrZero
from lightning_e5.retrieval.bm25 import BM25
from lightning_e5.types import Kind


@configurable("stage")
def hard_negatives(
    out: Path,
    *,
    pairs: Path | None = None,
    keep: Path | None = None,
    collection: Path | None = None,
    split: str = "train",
    source: str | None = None,
    passage_kind: Kind | None = None,
    encoder: Path | None = None,
    retriever: BM25 | None = None,
    count: Count = 7,
    first_rank: Count = 1,
    last_rank: Count = 200,
    absolute_margin: Annotated[float, Range(-1e6, 1e6)] | None = None,
    relative_margin: Annotated[float, Range(-1e6, 1e6)] | None = None,
    denoise: Path | None = None,
    denoise_margin: Annotated[float, Range(-1e6, 1e6)] = 0.0,
    max_score: Annotated[float, Range(-1e6, 1e6)] | None = None,
    max_queries: Count | None = None,
    precision: Precision = "fp32",
    max_length: Length | None = None,
    engine: Engine | Literal["local", "ray"] | None = None,
    gpus_per_task: WorkersOrZero = 0,
    seed: int,
) -> dict[str, float]:
    """Write ``ranked.parquet``: ``query``, ``positive``, ``negatives`` (list of ``count``), ``source``, ``passage_kind``, and
    ``retriever_scores`` (list: the positive's, then each negative's; NaN for one that was not retrieved).

    What takes long (embeddings, searches, the cross-encoder's scores) is kept part by part until the end, so that a
    killed stage continues.

    Args:
        pairs: folder of pairs (see `PairStore`); give this or ``collection``.
        keep: the filter's ``ranks.parquet``; with ``pairs``.
        collection: folder in BEIR's layout; every document judged above 0 in ``split`` is a positive, and those judged 0 are
            the query's first negatives.
        split: of the collection.
        source: the collection's name; the folder's by default.
        passage_kind: of a collection's passages; ``query`` for sets of like texts. By default what ``ranked_data`` wrote beside
            the collection, else ``passage``.
        encoder: the retriever; give this or ``retriever``.
        retriever: BM25.
        count, first_rank, last_rank, absolute_margin, relative_margin: see `NegativeRules`.
        denoise: folder of a cross-encoder; a candidate that it scores at least ``positive - denoise_margin``, or above
            ``max_score``, is no negative.
        max_queries: a random part of the rows; None for all.
        precision: of the backbones; scores are float32.
        max_length: tokens per text that ``encoder`` reads; as stored with it by default.
        engine: ``local``, ``ray`` or an engine with settings embeds texts, searches embeddings and scores candidates as tasks; None in
            this process, as BM25 does always.
        gpus_per_task: GPUs of each task.

    Returns:
        The mining report's counts.

    Source: paper section 4.2 (mined hard negatives).
    """
    rules = NegativeRules(count, first_rank, last_rank, absolute_margin, relative_margin)
    if (encoder is None) == (retriever is None):
        raise UserError("negatives: give either an encoder or a retriever (BM25), not both or none")
    if denoise is None and (denoise_margin != 0.0 or max_score is not None):
        raise UserError("negatives: denoise_margin and max_score need denoise, the folder of a cross-encoder")
    data = _data(pairs, keep, collection, split, source, max_queries, seed)
    passage_kind = _passage_kind(collection, passage_kind)
    parts = out / "parts"
    where: dict[str, Any] = {"engine": engine, "gpus_per_task": gpus_per_task}
    if encoder is not None:
        embedder = EmbedTexts(encoder, max_length, precision)
        candidates = dense_candidates(data, embedder, last_rank, parts, passage_kind=passage_kind, **where)
    else:
        assert retriever is not None
        candidates = lexical_candidates(data, retriever, last_rank, parts)
    vetoed_QK: NDArray[np.bool_] | None = None
    if denoise is not None:
        teacher = ScoreGroups(str(denoise), None, "{passage}", precision)
        window = slice(first_rank - 1, last_rank)
        vetoed_QK = false_negatives(data, candidates, window, teacher, parts, margin=denoise_margin, max_score=max_score, **where)
    metrics = _write(out, data, candidates, rules, vetoed_QK, passage_kind, seed)
    shutil.rmtree(parts, ignore_errors=True)
    return metrics


def _data(
    pairs: Path | None, keep: Path | None, collection: Path | None, split: str, source: str | None, max_queries: int | None, seed: int
) -> MiningData:
    if (pairs is None) == (collection is None):
        raise UserError("negatives: give either pairs with keep, or a collection, not both or none")
    if collection is not None:
        return of_collection(load_beir(collection, split, source), max_queries=max_queries, seed=seed)
    assert pairs is not None
    if keep is None:
        raise UserError("negatives: pairs need keep, the filter's ranks.parquet")
    table = PairStore(pairs).read(["query", "passage", "source"])
    kept = np.flatnonzero(read_parquet(keep, {"keep": "bool"})["keep"].to_numpy(zero_copy_only=False))
    if len(kept) == 0:
        raise UserError(f"{keep}: keeps no pair")
    table = table.take(kept)
    queries, passages, sources = (table[name].to_pylist() for name in ("query", "passage", "source"))
    return of_pairs(queries, passages, sources, max_queries=max_queries, seed=seed)


def _passage_kind(collection: Path | None, given: Kind | None) -> Kind:
    facts = read_json(collection / COLLECTION_FACTS) if collection is not None and (collection / COLLECTION_FACTS).is_file() else {}
    stored: Kind = facts.get("passage_kind", given or "passage")
    if given not in (None, stored):
        raise UserError(f"negatives: passage_kind is {given!r}, but the passages of {collection} are of kind {stored!r}")
    return stored


def _write(
    out: Path, data: MiningData, candidates: Candidates, rules: NegativeRules, vetoed_QK: NDArray[np.bool_] | None, passage_kind: Kind, seed: int
) -> dict[str, float]:
    import pyarrow as pa

    negatives, scores_QN, report = mine(
        *candidates, data.known, data.corpus_text_P, rules, seed=seed, false_negatives_QK=vetoed_QK, known_negatives=data.known_negatives
    )
    columns = {
        "query": list(data.queries),
        "positive": list(data.positive_texts),
        "negatives": [[data.corpus[n] for n in ns] for ns in negatives],
        "source": list(data.sources),
        "passage_kind": [passage_kind] * len(data.queries),
        "retriever_scores": pa.array([*np.column_stack([candidates.positive_scores_Q, scores_QN])], pa.list_(pa.float32())),
    }
    write_parquet(out / "ranked.parquet", columns)
    write_json(out / "report.json", dataclasses.asdict(report))
    return {k: v for k, v in dataclasses.asdict(report).items() if isinstance(v, int)}
