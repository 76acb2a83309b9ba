"""A small experiment of real stages, on documentation written here, that runs in about a second."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lightning_e5.files.parquet import write_parquet
from lightning_e5.files.storage import write_json, write_text

THINGS = ("array", "graph", "matrix", "table", "tree", "image", "signal", "file", "string", "model")
DEEDS = ("Sort", "Copy", "Merge", "Split", "Count", "Filter", "Compress", "Validate")
PASSAGE = "The {0} given is read once from start to end, and a new {0} is made whose elements were {1} in the order in which they came."


def write_package(root: Path, deeds: tuple[str, ...]) -> Path:
    """A package of documented functions, one per deed and thing."""
    root.mkdir(parents=True, exist_ok=True)
    for thing in THINGS:
        lines = []
        for deed in deeds:
            passage = PASSAGE.format(thing, deed.lower() + "ed")
            lines.append(f'def {deed.lower()}_{thing}(value):\n    """{deed} the elements of a {thing}.\n\n    {passage}\n    """\n')
        (root / f"{thing}.py").write_text("\n\n".join(lines), encoding="utf-8")
    return root


@pytest.fixture
def small_experiment(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Pairs, word vectors of them, an untrained encoder of them, and pairs that none of these depends on."""
    packages = {"one": write_package(tmp_path / "one", DEEDS[:5]), "held": write_package(tmp_path / "held", DEEDS[5:])}

    def pairs(roots: dict[str, Path]) -> dict[str, Any]:
        source = {"_target_": "data_modules.ccpairs.sources.python_docs.PythonDocs", "workers": 1, "show_progress": False}
        source["roots"] = {name: str(root) for name, root in roots.items()}
        return {"_target_": "lightning_e5.stages.build_pairs.build_pairs", "source": source, "held_out": ["held"]}

    other = {"one": write_package(tmp_path / "other", DEEDS[:2]), "held": packages["held"]}
    config = {"_target_": "lightning_e5.evaluation.baselines.word_vectors.WordVectorsConfig", "width": 8, "buckets": 16, "epochs": 1, "batch_size": 8}
    encoder = {"_target_": "lightning_e5.models.factory.EncoderSpec", "vocab_size": 300, "layers": 1, "hidden_size": 16, "heads": 2, "intermediate_size": 16}
    yield {
        "name": "small", "seed": 1, "threads": 1, "runs_dir": str(tmp_path / "runs"), "final_encoder": "vocabulary",
        "logger": {"mode": "disabled"},
        "stages": {
            "pairs": pairs(packages),
            "alone": pairs(other),
            "vectors": {"_target_": "lightning_e5.stages.word_vectors.word_vectors", "inputs": {"pairs": "pairs"}, "config": config},
            "vocabulary": {
                "_target_": "lightning_e5.stages.vocabulary.vocabulary", "inputs": {"pairs": "pairs"}, "encoder": encoder,
            },
        },
    }  # fmt: skip


@pytest.fixture
def encoder_folder(tmp_path: Path, small_bert, small_tokenizer) -> Path:  # type: ignore[no-untyped-def]
    from lightning_e5.models.encoder import TextEncoder

    TextEncoder(small_bert, small_tokenizer).save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


@pytest.fixture
def sts_file(tmp_path: Path, texts: list[str]) -> Path:
    lines = [" ".join(t.split()) for t in texts[:40]]
    rows = [f"{i % 6}\t{lines[i]}\t{lines[(i * 7 + 1) % 40]}" for i in range(40)]
    (tmp_path / "pairs.tsv").write_text("\n".join(["score\tsentence1\tsentence2", *rows]) + "\n", encoding="utf-8")
    return tmp_path / "pairs.tsv"


@pytest.fixture
def collection(tmp_path: Path, texts: list[str]) -> Path:
    folder = tmp_path / "collection"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"_id": f"d{i}", "title": "", "text": t}) + "\n" for i, t in enumerate(texts[:30])))
    (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": f"q{i}", "text": texts[i][:40]}) + "\n" for i in range(8)))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\td{i}\t1\n" for i in range(8)))
    return folder


@pytest.fixture
def task_files(tmp_path: Path, texts: list[str]) -> dict[str, Path]:
    """A small set of every kind of task but retrieval and STS, by the argument of the evaluate stage."""
    lines = [" ".join(t.split()) for t in texts[:60]]
    labelled = [json.dumps({"text": t, "label": "long" if len(t) > 120 else "short"}) + "\n" for t in lines]
    folder = tmp_path / "kinds"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(labelled[:30]), encoding="utf-8")
    (folder / "test.jsonl").write_text("".join(labelled[30:]), encoding="utf-8")
    (tmp_path / "groups.jsonl.gz").write_bytes(gzip.compress("".join(labelled).encode()))
    pairs = [f"{i % 2}\t{lines[i]}\t{lines[i] if i % 2 else lines[59 - i]}\n" for i in range(30)]
    (tmp_path / "same.tsv").write_text("label\tsentence1\tsentence2\n" + "".join(pairs), encoding="utf-8")
    lists = [{"query": lines[i][:30], "positive": [lines[i]], "negative": [f"{i} {t}" for t in lines[40:44]]} for i in range(10)]
    (tmp_path / "lists.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lists), encoding="utf-8")
    files = {"clustering": "groups.jsonl.gz", "pair_classification": "same.tsv", "reranking": "lists.jsonl"}
    return {"classification": folder} | {argument: tmp_path / name for argument, name in files.items()}


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
