"""A run from tables to batches: built pairs, their tokens, and sampling by source, all from one YAML's nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_modules.ccpairs.datamodule import CCPairsDataModule
from data_modules.pair_store import PairStore
from lightning_e5.config.experiment import load_experiment
from lightning_e5.files.parquet import write_parquet
from lightning_e5.files.storage import read_json, write_json
from lightning_e5.pipeline.runner import check_experiment, run_experiment

Node = dict[str, Any]
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "many", "other", "animals", "look", "at", "it", "from", "afar"]


def write_table(path: Path, source: str, rows: int) -> None:
    texts = [" ".join(WORDS[(i * k + k) % len(WORDS)] for k in range(1, 12)) for i in range(rows)]
    columns = {
        "query": [f"{source} asks {i}" for i in range(rows)],
        "passage": [f"{text} {source} {i}" for i, text in enumerate(texts)],
        "source": [source] * rows,
        "id": [str(i) for i in range(rows)],
    }
    write_parquet(path, columns)


@pytest.fixture
def experiment(tmp_path: Path) -> Node:
    for source, rows in (("ask", 60), ("wiki", 20)):
        write_table(tmp_path / "data/pairs" / f"{source}.parquet", source, rows)
    encoder = {"_target_": "lightning_e5.models.factory.EncoderSpec", "vocab_size": 300, "layers": 1, "hidden_size": 16, "heads": 2, "intermediate_size": 16}
    tree = {
        "name": "built", "seed": 1, "threads": 1, "runs_dir": str(tmp_path / "runs"), "data_dir": str(tmp_path / "data"), "engine": "local",
        "logger": {"mode": "disabled"},
        "stages": {
            "pairs": {
                "_target_": "lightning_e5.stages.build_ccpairs.build_ccpairs", "engine": "${engine}", "shard_rows": 25, "planted_mismatches": 0.2,
                "sources": [{
                    "_target_": "data_modules.ccpairs.sources.tables.ParquetPairs", "paths": ["${data_dir}/pairs/*.parquet"],
                    "name": "tables", "source_column": "source", "id_column": "id",
                }],
                "heuristics": [{"_target_": "data_modules.ccpairs.heuristics.Length", "min_query_words": 3}],
            },
            "vocabulary": {
                "_target_": "lightning_e5.stages.vocabulary.vocabulary", "inputs": {"pairs": "pairs"}, "encoder": encoder,
            },
        },
    }  # fmt: skip
    write_json(tmp_path / "built.yaml", tree)  # JSON is YAML
    return load_experiment(tmp_path / "built.yaml")


def test_from_tables_to_batches_by_source(experiment: Node, tmp_path: Path) -> None:
    check_experiment(experiment)
    metrics, computed = run_experiment(experiment, say=lambda text: None)
    stages = tmp_path / "runs/built/stages"
    store = PairStore(stages / "pairs")
    assert computed and store.sources == {"ask": 60, "wiki": 20} and [s.rows for s in store.shards()] == [25, 25, 10, 20]
    assert metrics["ask/pairs"] == 60 and metrics["pairs/planted"] == sum(store.read(["planted"])["planted"].to_pylist()) > 0
    files = set(read_json(stages / "pairs/manifest.json")["files"])
    assert {"pairs.json", "shards/ask/part-00002.parquet", "metrics.json"} <= files
    assert not {f for f in files if f.startswith("work") or "timing" in f}
    weights = {"ask": 1, "wiki": 3}
    data = CCPairsDataModule(tokens=stages / "vocabulary/tokens", batch_size=8, seed=1, max_steps=128, weights=weights)
    wiki = sum(int((data.batch(step, 0, 1).rows_B >= 60).sum()) for step in range(128))
    assert abs(wiki - 768) <= 1

    experiment["engine"] = experiment["stages"]["pairs"]["engine"] = {"_target_": "lightning_e5.curation.engines.engine.LocalEngine", "workers": 2}
    assert run_experiment(experiment, say=lambda text: None) == (metrics, False), "another engine changes no result"

    before = (stages / "pairs/pairs.json").read_bytes()
    write_table(tmp_path / "data/pairs/wiki.parquet", "wiki", 30)
    metrics, computed = run_experiment(experiment, say=lambda text: None)
    assert computed and metrics["wiki/pairs"] == 30 and (stages / "pairs/pairs.json").read_bytes() != before
