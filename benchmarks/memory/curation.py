"""The stages around training: the build of a pool, mining, teacher scores, evaluation of a large corpus, and what of it was in training texts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.memory.pretraining import encoder as write_encoder
from benchmarks.memory.stage import Inputs
from data_modules.ccpairs.sources.tables import ParquetPairs
from data_modules.pair_store import PairStore
from lightning_e5.curation.cleaning.duplicates import NearDuplicates
from lightning_e5.curation.engines.engine import LocalEngine
from lightning_e5.evaluation.contamination import Contamination
from lightning_e5.evaluation.evaluate import evaluate
from lightning_e5.evaluation.load_tasks import TaskSettings, load_tasks
from lightning_e5.models.cross_encoder import CrossEncoder
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.retrieval.bm25 import BM25
from lightning_e5.retrieval.faiss_index import FaissIndex
from lightning_e5.stages import build_ccpairs as building
from lightning_e5.stages import hard_negatives as mining
from lightning_e5.stages import teacher as teaching

#: Queries that are mined for and evaluated, and groups of a pair in so many.
_QUERIES, _GROUPED = 1000, 10
_ROWS = 8192


def all_kept(inputs: Inputs, out: Path) -> None:
    """``ranks.parquet`` that keeps every pair."""
    out.mkdir(exist_ok=True)
    with pq.ParquetWriter(out / "ranks.parquet", pa.schema([("keep", pa.bool_())])) as writer:
        for first in range(0, inputs.rows, _ROWS):
            writer.write_table(pa.table({"keep": [True] * min(_ROWS, inputs.rows - first)}))


def collection(inputs: Inputs, out: Path) -> None:
    """A collection in BEIR's layout: the passages as corpus, 1,000 of their queries."""
    (out / "qrels").mkdir(parents=True)
    step = max(1, inputs.rows // _QUERIES)
    with (out / "corpus.jsonl").open("w") as corpus, (out / "queries.jsonl").open("w") as queries, (out / "qrels/test.tsv").open("w") as qrels:
        qrels.write("query-id\tcorpus-id\tscore\n")
        for row, (query, passage) in enumerate(_pairs(inputs)):
            corpus.write(json.dumps({"_id": f"d{row}", "title": "", "text": passage}) + "\n")
            if row % step == 0 and row // step < _QUERIES:
                queries.write(json.dumps({"_id": f"q{row}", "text": query}) + "\n")
                qrels.write(f"q{row}\td{row}\t1\n")


def groups(inputs: Inputs, out: Path) -> None:
    """``ranked.parquet``: a group of 8 passages for a pair in ten, the negatives the passages before it."""
    out.mkdir(exist_ok=True)
    schema = pa.schema([("query", pa.string()), ("positive", pa.string()), ("negatives", pa.list_(pa.string())), ("source", pa.string())])
    before = [f"passage {number}" for number in range(7)]
    rows: list[tuple[Any, ...]] = []
    with pq.ParquetWriter(out / "ranked.parquet", schema) as writer:
        for row, (query, passage) in enumerate(_pairs(inputs)):
            if row % _GROUPED == 0:
                rows.append((query, passage, list(before), "forum"))
            before = [*before[1:], passage]
            if len(rows) == _ROWS // 8:
                writer.write_table(pa.table(dict(zip(schema.names, zip(*rows, strict=True), strict=True)), schema=schema))
                rows = []
        if rows:
            writer.write_table(pa.table(dict(zip(schema.names, zip(*rows, strict=True), strict=True)), schema=schema))


def cross_encoder(inputs: Inputs, out: Path) -> None:
    """An untrained cross-encoder of the encoder's shape."""
    write_encoder(inputs, out / "start")
    CrossEncoder.from_encoder(TextEncoder.from_pretrained(out / "start", max_length=32)).save_pretrained(out / "cross_encoder")


def build(inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """A pool of the pairs: rules, exact and near duplicates, a cap, shards."""
    files = [str(shard.path) for shard in PairStore(inputs.pairs).shards()]
    source = ParquetPairs(files, name="pairs", source_column="source", id_column="id")
    return building.build_ccpairs(
        out, sources=[source], near_duplicates=NearDuplicates(), shard_rows=100_000, max_pairs_per_source=inputs.rows * 2 // 5,
        engine=LocalEngine(workers=inputs.workers), seed=0,
    )  # fmt: skip


def mine_pairs(inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Negatives for 1,000 queries among the passages of all pairs, exactly."""
    return mining.hard_negatives(out, pairs=inputs.pairs, keep=inputs.folder / "all_kept" / "ranks.parquet", **_mining(inputs))


def mine_collection(inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Negatives for 1,000 queries of a collection, exactly."""
    return mining.hard_negatives(out, collection=inputs.folder / "collection", split="test", **_mining(inputs))


def mine_ivf(inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """As `mine_pairs`, by an inverted file of one byte per value and with vectors of two; its recall is measured."""
    index = FaissIndex("ivf", codes="int8", nprobe=32, threads=inputs.workers)
    options: dict[str, Any] = {"index": index, "vectors": "float16", "recall_queries": 200}
    keep = inputs.folder / "all_kept" / "ranks.parquet"
    return mining.hard_negatives(out, pairs=inputs.pairs, keep=keep, **options, **_mining(inputs))


def teacher_scores(inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """A cross-encoder's scores of groups of 8."""
    found = teaching.teacher_scores(out, teacher=inputs.folder / "cross_encoder", ranked=inputs.folder / "groups")
    return {**found, "rows": found["groups"]}


def evaluate_corpus(inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """An encoder on 1,000 queries and a corpus of all passages."""
    return _evaluated(inputs, out, {"encoder": inputs.folder / "encoder"})


def evaluate_bm25(inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """BM25 on the same."""
    return _evaluated(inputs, out, {"bm25": BM25()})


def contamination(inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """1,000 test items looked for in the texts of all pairs."""
    items = [(query,) for query, _ in _first(inputs, _QUERIES)]
    Contamination({"test": items}, {"pairs": inputs.pairs}, {})
    return {}


def _mining(inputs: Inputs) -> dict[str, Any]:
    return {"encoder": inputs.folder / "encoder", "count": 7, "last_rank": 100, "max_queries": _QUERIES, "seed": 0}


def _evaluated(inputs: Inputs, out: Path, models: Mapping[str, Any]) -> Mapping[str, Any]:
    tasks = load_tasks({"collections": {"all": inputs.folder / "collection"}}, TaskSettings())
    (row,) = evaluate(models, tasks, seed=0, out=out)
    return {"ndcg@10": row.value}


def _pairs(inputs: Inputs) -> Iterator[tuple[str, str]]:
    for table in PairStore(inputs.pairs).iter_batches(["query", "passage"], _ROWS):
        yield from zip(table["query"].to_pylist(), table["passage"].to_pylist(), strict=True)


def _first(inputs: Inputs, count: int) -> list[tuple[str, str]]:
    return [pair for pair, _ in zip(_pairs(inputs), np.arange(count), strict=False)]
