"""Tiny run directories, written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from lightning_e5.parquet import write_parquet
from lightning_e5.storage import write_json, write_text


@pytest.fixture
def make_run(tmp_path):
    """A function that writes a run of all kinds of stages: BM25 and two encoders on one collection."""

    def make(name: str = "tiny", *, lift: float = 0.0, pairs_seen: int = 320, finished: bool = True, **changes) -> Path:
        queries, collection = changes.get("queries", 40), changes.get("collection", "docs")
        path = tmp_path / changes.get("folder", "runs") / name
        write_text(
            path / "config.yaml",
            yaml.safe_dump(config(name, collection, changes.get("description", "A test.")), sort_keys=False),
        )
        write_json(
            path / "environment.json",
            {"commit": "abc", "uncommitted_changes": True, "gpus": [], "packages": {"torch": "2"}},
        )
        stages = path / "stages"
        write_pairs(stages / "pairs", changes.get("text", "plain"), queries)
        train(stages / "noisy", 100, 4.0)
        train(stages / "tuned", pairs_seen, 2.0)
        rank = np.array([1, 2, 3, 9, 1, 40, 2, 100], dtype=np.int64)
        write_parquet(stages / "filter" / "ranks.parquet", {"rank": rank, "keep": rank <= 2})
        write_json(
            stages / "filter" / "metrics.json",
            {"precision": 0.75, "recall": 0.6, "removed_mismatches": 0.67, "pool": 100},
        )
        metrics = evaluation(stages / "evaluate", collection, queries, lift)
        for stage in stages.iterdir():
            write_json(stage / "timing.json", {"seconds": 61.0, "peak_memory_gb": 0.5})
            write_json(stage / "manifest.json", {"kind": "test", "files": {}})
        metrics |= {"filter/precision": 0.75, "filter/recall": 0.6}
        if finished:
            write_json(path / "metrics.json", metrics)
        return path

    return make


def config(name: str, collection: str, description: str) -> dict:
    return {
        "name": name,
        "description": description,
        "headline": ["ndcg@10", "recall@100"],
        "stages": {
            "pairs": {"_target_": "x"},
            "noisy": {"_target_": "x"},
            "filter": {"_target_": "x", "inputs": {"pairs": "pairs", "encoder": "noisy/encoder"}, "k": 2},
            "tuned": {"_target_": "x", "inputs": {"encoder": "noisy/encoder", "keep": "filter/ranks.parquet"}},
            "evaluate": {
                "_target_": "x",
                "inputs": {
                    "collections": {collection: "pairs/test"},
                    "encoders": {"first": "noisy", "second": "tuned"},
                },
            },
        },
    }


def write_pairs(folder: Path, text: str, queries: int) -> None:
    planted = np.array([False, False, True, True, True, False, False, False])
    texts = [f"{text} {i}" for i in range(8)]
    write_parquet(folder / "pairs.parquet", {"query": texts, "passage": texts, "planted": planted})
    lines = [json.dumps({"_id": f"q{i}", "text": f"question {i}"}) + "\n" for i in range(queries)]
    write_text(folder / "test" / "queries.jsonl", "".join(lines))
    write_text(
        folder / "test" / "corpus.jsonl",
        json.dumps({"_id": "d", "title": "T", "text": "\u2028x"}, ensure_ascii=False) + "\n",
    )
    write_text(folder / "test" / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore\n")


def train(stage: Path, pairs: int, loss: float) -> None:
    rows = [{"step": s, "loss": loss / s, "pairs": pairs * s // 10, "tokens": 7 * s} for s in range(1, 11)]
    write_text(stage / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_json(stage / "metrics.json", {"pairs_seen": float(pairs), "tokens_seen": pairs * 10.0, "steps": 10.0})


def evaluation(stage: Path, collection: str, queries: int, lift: float) -> dict[str, float]:
    draw = np.random.default_rng(0)
    metrics, table = {}, []
    for model, level in (("bm25", 0.4), ("first", 0.3), ("second", 0.3 + lift)):
        values = np.clip(level + 0.1 * draw.standard_normal(queries), 0, 1)
        folder = stage / model / collection
        ids = [f"q{i}" for i in range(queries)]
        write_parquet(folder / "per_query.parquet", {"query_id": ids, "ndcg@10": values, "recall@100": values})
        if model != "bm25":
            columns = {
                "positive": np.linspace(0.2, 0.9, 50, dtype=np.float32),
                "random": np.linspace(-0.2, 0.5, 50, dtype=np.float32),
            }
            write_parquet(folder / "cosines.parquet", columns)
        mean = float(values.mean())
        metrics |= {f"{model}/{collection}/ndcg@10": mean, f"{model}/{collection}/recall@100": mean}
        row = {"model": model, "collection": collection, "pairs_seen": 0, "low": mean - 0.03, "high": mean + 0.03}
        if model != "bm25":
            row |= {
                "difference": -0.1,
                "difference_low": -0.2,
                "difference_high": 0.01,
                "verdict": "no difference shown",
            }
        table.append(row)
    write_json(stage / "table.json", table)
    write_json(stage / "metrics.json", metrics)
    return metrics
