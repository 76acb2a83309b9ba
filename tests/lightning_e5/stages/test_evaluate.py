"""The evaluation stage: retrieval and STS in one, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_e5.errors import UserError
from lightning_e5.evaluation.baselines.bm25 import BM25
from lightning_e5.evaluation.sts import evaluate_sts, load_sts
from lightning_e5.instantiate import instantiate
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.stages.evaluate import evaluate
from lightning_e5.storage import read_json, read_parquet


@pytest.fixture
def encoder_folder(tmp_path: Path, small_bert, small_tokenizer) -> Path:  # type: ignore[no-untyped-def]
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


def test_retrieval_and_sts_in_one_stage(tmp_path: Path, encoder_folder: Path, sts_file: Path, collection: Path) -> None:
    metrics = evaluate(
        tmp_path / "out", collections={"toy": collection}, sts={"similar": sts_file}, encoders={"small": encoder_folder},
        baselines={"bm25": BM25()}, reference="bm25", seed=3,
    )  # fmt: skip
    alone = evaluate_sts(load_sts(sts_file), TextEncoder.from_pretrained(encoder_folder), seed=3)
    assert metrics["small/similar/spearman"] == alone.metrics["spearman"]
    assert metrics["small/similar/spearman_low"] < metrics["small/similar/spearman"] < metrics["small/similar/spearman_high"]
    assert "small/toy/ndcg@10" in metrics and "bm25/toy/ndcg@10" in metrics
    assert not any(name.startswith("bm25/similar") for name in metrics)  # BM25 embeds nothing
    (row,) = read_json(tmp_path / "out" / "sts.json")
    assert (row["model"], row["set"], row["pairs"]) == ("small", "similar", 40)
    assert len(read_parquet(tmp_path / "out/small/similar/pairs.parquet", {"score": "double", "cosine": "float"})) == 40


def test_an_index_and_kept_embeddings_change_no_score(tmp_path: Path, encoder_folder: Path, collection: Path) -> None:
    given = {"collections": {"toy": collection}, "encoders": {"small": encoder_folder}, "baselines": {"bm25": BM25()}, "seed": 3}
    node = {"_target_": "lightning_e5.retrieval.faiss_index.FaissIndex", "kind": "flat", "threads": 1}
    plain = evaluate(tmp_path / "plain", **given)
    kept = evaluate(tmp_path / "kept", **given, index=instantiate(node, "index"), cache_dir=tmp_path / "cache")
    assert kept == plain
    rows = {row["model"]: row for row in read_json(tmp_path / "kept" / "table.json")}
    assert rows["small"]["ann_recall@100"] == 1.0
    assert "ann_recall@100" not in rows["bm25"]
    assert len(list((tmp_path / "cache").glob("*/manifest.json"))) == 1


def test_nothing_to_judge_on_is_refused(tmp_path: Path, encoder_folder: Path) -> None:
    with pytest.raises(UserError, match="nothing to judge on"):
        evaluate(tmp_path / "out", encoders={"small": encoder_folder}, seed=0)
    with pytest.raises(UserError, match="no model to judge"):
        evaluate(tmp_path / "out", sts={"x": tmp_path}, seed=0)
