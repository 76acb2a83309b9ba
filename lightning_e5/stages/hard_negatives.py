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
from lightning_e5.curation.mining.candidates import (
    StoredCandidates,
    StoredVetoes,
    dense_candidates,
    lexical_candidates,
    score_candidates,
)
from lightning_e5.curation.mining.collections import COLLECTION_FACTS, MiningData, of_collection
from lightning_e5.curation.mining.hard_negatives import QUANTILES, MiningReport, NegativeRules, check_corpus, mine_part
from lightning_e5.curation.mining.score_quantiles import score_quantiles
from lightning_e5.curation.mining.stored_pairs import of_stored_pairs
from lightning_e5.distributed.devices import Precision
from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir.data import load_beir
from lightning_e5.files.parquet import read_parquet
from lightning_e5.files.scratch import mapped, release
from lightning_e5.files.storage import atomic_path, read_json, write_json
from lightning_e5.progress import progress
from lightning_e5.ranges import Count, Length, Range, WorkersOrZero
from lightning_e5.retrieval.bm25 import BM25
from lightning_e5.retrieval.exact import VectorIndex
from lightning_e5.retrieval.mapped_vectors import StoredType
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
    precision: Precision = "bf16-gpu",
    max_length: Length | None = None,
    vectors: StoredType = "float32",
    index: VectorIndex | None = None,
    recall_queries: Count = 1000,
    engine: Engine | Literal["local", "ray"] | None = None,
    gpus_per_task: WorkersOrZero = 0,
    seed: int,
) -> dict[str, float]:
    """Write ``ranked.parquet``: ``query``, ``positive``, ``negatives`` (list of ``count``), ``source``, ``passage_kind``, and
    ``retriever_scores`` (list: the positive's, then each negative's; NaN for one that was not retrieved).

    What takes long (embeddings, searches, the cross-encoder's scores) is kept part by part until the end, so that a
    killed stage continues. Nothing of it is held in memory as a whole, nor are the texts of pairs.

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
        vectors: how embeddings lie on disk; ``float16`` takes half the room and rounds every value to 11 bits.
        index: searches with an index such as `FaissIndex` instead of exactly; its recall against exact search, in the best
            ``last_rank`` of ``recall_queries`` queries, is ``index_recall`` of the result. It holds the vectors in its own way.
        recall_queries: queries, drawn by ``seed``, that the recall is measured on.
        engine: ``local``, ``ray`` or an engine with settings embeds texts, searches embeddings exactly and scores candidates as tasks; None
            in this process, as BM25 and an index do always.
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
    if encoder is None and (index is not None or vectors != "float32"):
        raise UserError("negatives: index and vectors need an encoder")
    scratch = out / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    data = _data(pairs, keep, collection, split, source, max_queries, seed, scratch)
    passage_kind = _passage_kind(collection, passage_kind)
    parts = out / "parts"
    where: dict[str, Any] = {"engine": engine, "gpus_per_task": gpus_per_task}
    if encoder is not None:
        how: dict[str, Any] = {"passage_kind": passage_kind, "vectors": vectors, "index": index, "recall_queries": recall_queries, "seed": seed}
        candidates = dense_candidates(data, EmbedTexts(encoder, max_length, precision), last_rank, parts, **how, **where)
    else:
        assert retriever is not None
        candidates = lexical_candidates(data, retriever, last_rank, parts)
    vetoes: StoredVetoes | None = None
    if denoise is not None:
        teacher = ScoreGroups(str(denoise), None, "{passage}", precision)
        window = slice(first_rank - 1, last_rank)
        vetoes = score_candidates(data, candidates, window, teacher, parts, margin=denoise_margin, max_score=max_score, **where)
    metrics = _write(out, data, candidates, rules, vetoes, passage_kind, seed, scratch)
    for folder in (parts, scratch):
        shutil.rmtree(folder, ignore_errors=True)
    return metrics


def _data(
    pairs: Path | None, keep: Path | None, collection: Path | None, split: str, source: str | None, max_queries: int | None, seed: int, scratch: Path
) -> MiningData:
    if (pairs is None) == (collection is None):
        raise UserError("negatives: give either pairs with keep, or a collection, not both or none")
    if collection is not None:
        return of_collection(load_beir(collection, split, source, scratch=scratch), max_queries=max_queries, seed=seed, folder=scratch)
    assert pairs is not None
    if keep is None:
        raise UserError("negatives: pairs need keep, the filter's ranks.parquet")
    store = PairStore(pairs)
    return of_stored_pairs(store, _kept(keep, store.rows), scratch, max_queries=max_queries, seed=seed)


def _kept(path: Path, rows: int) -> NDArray[np.bool_]:
    keep = read_parquet(path, {"keep": "bool"})["keep"].to_numpy(zero_copy_only=False)
    if not keep.any():
        raise UserError(f"{path}: keeps no pair")
    if len(keep) != rows:
        raise UserError(f"{path}: has {len(keep):,} rows, and there are {rows:,} pairs")
    return keep


def _passage_kind(collection: Path | None, given: Kind | None) -> Kind:
    facts = read_json(collection / COLLECTION_FACTS) if collection is not None and (collection / COLLECTION_FACTS).is_file() else {}
    stored: Kind = facts.get("passage_kind", given or "passage")
    if given not in (None, stored):
        raise UserError(f"negatives: passage_kind is {given!r}, but the passages of {collection} are of kind {stored!r}")
    return stored


def _write(
    out: Path, data: MiningData, candidates: StoredCandidates, rules: NegativeRules, vetoes: StoredVetoes | None, passage_kind: Kind, seed: int, scratch: Path
) -> dict[str, float]:
    """Choose the negatives of a part of the queries after another, and write their groups."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_corpus(data.corpus_distinct, data.most_known, rules)
    texts, numbers = pa.list_(pa.string()), pa.list_(pa.float32())
    types = {"query": pa.string(), "positive": pa.string(), "negatives": texts, "source": pa.string(), "passage_kind": pa.string(), "retriever_scores": numbers}
    schema = pa.schema(list(types.items()))
    report = MiningReport()
    scratch.mkdir(parents=True, exist_ok=True)
    with (
        atomic_path(out / "ranked.parquet") as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd", write_statistics=False) as writer,
        (scratch / "scores").open("wb") as chosen,
        progress(len(data.queries), "choose negatives", "query") as bar,
    ):
        for rows in candidates.parts():
            found = candidates.of(rows)
            vetoed = None if vetoes is None else vetoes.of(rows)
            negatives_QN, scores_QN = mine_part(
                *found, data.known[rows], data.corpus_text_P, rules, report, different=data.corpus_distinct, first_row=rows.start, seed=seed,
                false_negatives_QK=vetoed, known_negatives=data.known_negatives[rows],
            )  # fmt: skip
            scores_QN[~np.isnan(scores_QN)].tofile(chosen)
            columns = {
                "query": list(data.queries[rows]),
                "positive": list(data.positive_texts[rows]),
                "negatives": [[data.corpus[n] for n in ns] for ns in negatives_QN.tolist()],
                "source": list(data.sources[rows]),
                "passage_kind": [passage_kind] * len(negatives_QN),
                "retriever_scores": pa.array([*np.column_stack([found.positive_scores_Q, scores_QN])], numbers),
            }
            writer.write_table(pa.table(columns, schema=schema))
            release(data.corpus_text_P)
            bar(len(negatives_QN))
    report.score_quantiles = score_quantiles(mapped(scratch / "scores", "<f4"), QUANTILES)
    recall = {} if candidates.recall is None else {"index_recall": candidates.recall}
    write_json(out / "report.json", dataclasses.asdict(report) | recall)
    return {k: v for k, v in dataclasses.asdict(report).items() if isinstance(v, int)} | recall
