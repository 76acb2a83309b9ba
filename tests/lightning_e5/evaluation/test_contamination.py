"""What a model has seen of the test sets: counted where its training texts are here, unknown where they are not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_e5.errors import UserError
from lightning_e5.evaluation.baselines.fusion import ReciprocalRankFusion, StoredEncoder
from lightning_e5.evaluation.tasks.zero_shot import ZeroShotPrompts
from lightning_e5.files.parquet import read_parquet, write_parquet
from lightning_e5.files.storage import read_json, write_text
from lightning_e5.models.training_record import RECORD, UNTRAINED, file_identity, read_record, texts_identity
from lightning_e5.retrieval.bm25 import BM25
from lightning_e5.stages.evaluate import evaluate
from lightning_e5.text import texts_digest

METRICS = ["ndcg@10", "recall@5"]


def write_pool(folder: Path, rows: list[tuple[str, str]]) -> str:
    """A folder of pairs; its name by content."""
    columns = {"query": [q for q, _ in rows], "passage": [p for _, p in rows]}
    write_parquet(folder / "pairs.parquet", columns)
    return texts_identity({name: texts_digest(texts) for name, texts in columns.items()})


@pytest.fixture
def queries(collection: Path) -> list[str]:
    """Eight queries of words that the texts of the repository do not hold."""
    texts = [f"quux{i} of the zorble{i} in a frobnitz number {i}" for i in range(8)]
    write_text(collection / "queries.jsonl", "".join(json.dumps({"_id": f"q{i}", "text": t}) + "\n" for i, t in enumerate(texts)))
    return texts


@pytest.fixture
def trained(tmp_path: Path, encoder_folder: Path, queries: list[str]) -> dict[str, Any]:
    """A model trained on a pool that holds three of the eight queries, and on ranked groups that hold a fourth."""
    pool = write_pool(tmp_path / "pool", [
        (queries[0], "an answer"), (queries[1].upper() + "?", "another"), ("what", f"before it {queries[2]} and after it"), ("x", "y"),
    ])  # fmt: skip
    write_parquet(tmp_path / "ranked.parquet", {"query": ["z"], "positive": ["p"], "negatives": [["n", f"see {queries[3]}!"]]})
    seen = {"pairs_seen": 40.0, "tokens_seen": 900.0}
    record = UNTRAINED.after("pretrain", seen, [pool]).after("finetune", seen, [file_identity(tmp_path / "ranked.parquet")])
    released = tmp_path / "released"
    shutil.copytree(encoder_folder, released)
    record.save(encoder_folder)
    return {
        "encoders": {"ours": encoder_folder, "released": released}, "baselines": {"bm25": BM25()}, "metrics": METRICS, "seed": 0,
        "training_texts": {"pool": tmp_path / "pool", "ranked": tmp_path / "ranked.parquet"}, "cosines": False,
    }  # fmt: skip


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    return {row["model"]: row for row in read_json(out / "table.json")}


def test_queries_seen_in_training_are_counted_and_left_out(tmp_path: Path, trained: dict[str, Any], collection: Path) -> None:
    metrics = evaluate(tmp_path / "out", collections={"toy": collection}, **trained)
    rows = rows_of(tmp_path / "out")
    ours = rows["ours"]
    assert (ours["contamination"], ours["clean_items"], ours["pairs_seen"], ours["tokens_seen"]) == ("measured", 4, 80, 1800)
    assert ours["contaminated"] == {"share": 0.5, "count": 4, "exact": 1, "punctuation": 2, "inside": 2, "ngram": 0}
    for model in ("ours", "bm25"):  # one subset for all
        table = read_parquet(tmp_path / "out" / model / "toy/per_query.parquet", {"query_id": "string", **dict.fromkeys(METRICS, "double")})
        clean = [row for row in table.to_pylist() if row["query_id"] not in ("q0", "q1", "q2", "q3")]
        for metric in METRICS:
            assert metrics[f"{model}/toy/{metric}_clean"] == pytest.approx(np.mean([row[metric] for row in clean]))
        assert rows[model]["ndcg@10_clean"] == metrics[f"{model}/toy/ndcg@10_clean"]
    assert (rows["bm25"]["contamination"], rows["bm25"]["contaminated"]) == ("none", {"share": 0.0, "count": 0})
    assert (rows["bm25"]["pairs_seen"], rows["bm25"]["tokens_seen"]) == (0, 0)
    released = rows["released"]
    for key in ("contaminated", "ndcg@10_clean", "pairs_seen", "tokens_seen"):
        assert released[key] is None, key
    assert released["contamination"] == "unknown"
    assert not [name for name in metrics if name.startswith("released/") and name.endswith("_clean")]


def test_texts_that_are_not_all_here_are_unknown(tmp_path: Path, trained: dict[str, Any], collection: Path) -> None:
    trained["training_texts"] = {"pool": tmp_path / "pool"}  # the ranked groups are not
    evaluate(tmp_path / "part", collections={"toy": collection}, **trained)
    assert rows_of(tmp_path / "part")["ours"]["contamination"] == "unknown"
    write_pool(tmp_path / "pool", [("another", "pool")])  # not what the model was trained on
    trained["training_texts"]["ranked"] = tmp_path / "ranked.parquet"
    evaluate(tmp_path / "other", collections={"toy": collection}, **trained)
    assert rows_of(tmp_path / "other")["ours"]["contamination"] == "unknown"
    trained["training_texts"] = None
    metrics = evaluate(tmp_path / "nothing", collections={"toy": collection}, **trained)
    rows = rows_of(tmp_path / "nothing")
    assert [rows[m]["contamination"] for m in ("bm25", "ours")] == ["none", "unknown"]
    assert rows["bm25"]["clean_items"] is None and rows["bm25"]["ndcg@10_clean"] is None and rows["ours"]["pairs_seen"] == 80
    assert not [name for name in metrics if name.endswith("_clean")]


def test_the_user_may_say_what_a_model_was_trained_on(tmp_path: Path, trained: dict[str, Any], collection: Path) -> None:
    metrics = evaluate(tmp_path / "out", collections={"toy": collection}, **trained, trained_on={"released": ["ranked"], "bm25": []})
    rows = rows_of(tmp_path / "out")
    assert rows["released"]["contaminated"]["count"] == 1 and "released/toy/ndcg@10_clean" in metrics
    assert rows["bm25"]["contamination"] == "none"


def test_no_clean_item_is_no_score(tmp_path: Path, trained: dict[str, Any], collection: Path, queries: list[str]) -> None:
    write_pool(tmp_path / "pool", [(q, "p") for q in queries])
    metrics = evaluate(tmp_path / "out", collections={"toy": collection}, **trained, trained_on={"ours": ["pool"]})
    row = rows_of(tmp_path / "out")["ours"]
    assert (row["contaminated"]["share"], row["clean_items"], row["ndcg@10_clean"]) == (1.0, 0, None)
    assert "ours/toy/ndcg@10_clean" not in metrics and "ours/toy/ndcg@10" in metrics


def test_the_other_tasks(tmp_path: Path, trained: dict[str, Any], task_files: dict[str, Path], sts_file: Path) -> None:
    """A text of every set is planted; the clean values are those of the items that are left."""
    labelled = [json.loads(line) for line in (task_files["classification"] / "test.jsonl").read_text().splitlines()]
    candidates = [json.loads(line) for line in task_files["reranking"].read_text().splitlines()]
    planted = [labelled[0]["text"], sts_file.read_text().splitlines()[4].split("\t")[2], candidates[2]["query"]]
    write_pool(tmp_path / "pool", [(text, "p") for text in planted])
    metrics = evaluate(
        tmp_path / "out", sts={"similar": sts_file}, classification={"kinds": task_files["classification"]}, samples_per_label={"kinds": 4},
        zero_shot={"kinds": ZeroShotPrompts({"long": "a long text", "short": "a short text"}, "text: {text}")},
        clustering={"groups": task_files["clustering"]}, pair_classification={"same": task_files["pair_classification"]},
        reranking={"lists": task_files["reranking"]}, **trained, trained_on={"ours": ["pool"]},
    )  # fmt: skip
    rows = {(r["model"], r["metric"]): r for r in read_json(tmp_path / "out" / "tasks.json")}
    for metric in ("spearman", "accuracy", "zero_shot_accuracy", "ap", "map", "v_measure"):
        row = rows["ours", metric]
        assert 0 < row["contaminated"]["count"] < row["items"] and 0 < row["clean_items"] < row["items"], metric
        assert metrics[f"ours/{row['set']}/{metric}_clean"] == row[f"{metric}_clean"] is not None
        assert row["pairs_seen"] == 80 and rows["released", metric][f"{metric}_clean"] is None
    correct = read_parquet(tmp_path / "out/ours/kinds/items.parquet", {"correct": "double"})["correct"].to_numpy()
    seen = np.array([any(p.casefold() == row["text"].casefold() for p in planted) for row in labelled])
    assert rows["ours", "accuracy"]["contaminated"]["exact"] == seen.sum()
    if rows["ours", "accuracy"]["clean_items"] == (~seen).sum():
        assert rows["ours", "accuracy"]["accuracy_clean"] == pytest.approx(correct[~seen].mean())


def test_a_fusion_has_seen_what_its_models_have(trained: dict[str, Any]) -> None:
    ours, released = (StoredEncoder(trained["encoders"][name]) for name in ("ours", "released"))
    both = ReciprocalRankFusion([BM25(), ours]).training_record
    assert both is not None and both.pairs_seen == 80 and len(both.texts or ()) == 2
    assert ReciprocalRankFusion([BM25(), released]).training_record is None


def test_records_are_kept_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    tmp_path.joinpath("m").mkdir()
    assert read_record(tmp_path / "m") is None
    one = UNTRAINED.after("words", {"pairs_seen": 7.0}, ["a"])
    one.save(tmp_path / "m")
    assert read_record(tmp_path / "m") == one and (one.pairs_seen, one.tokens_seen) == (7, None)
    assert one.after("next", {"pairs_seen": 1.0}, None).texts is None
    write_text(tmp_path / "m" / RECORD, '{"stages": [{"stage": "x"}], "known_start": true}')
    with pytest.raises(UserError, match=r"training_record\.json: not a record of a model's training"):
        read_record(tmp_path / "m")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"training_texts": {"x": Path("absent")}}, r"training_texts: absent: is no folder of pairs and no Parquet file"),
        ({"trained_on": {"our": ["pool"]}}, r"trained_on: 'our' is not one of the models; did you mean 'ours'"),
        ({"trained_on": {"ours": ["pol"]}}, r"trained_on\.ours: 'pol' is not one of the training texts; did you mean 'pool'"),
    ],
)
def test_wrong_places_and_names_are_refused_first(tmp_path: Path, trained: dict[str, Any], collection: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(tmp_path / "out", collections={"toy": collection}, **{**trained, **wrong})
    assert not (tmp_path / "out").exists()
