"""The evaluation stage: retrieval and STS in one, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_e5 import progress
from lightning_e5.__main__ import main
from lightning_e5.config.instantiate import instantiate
from lightning_e5.errors import UserError
from lightning_e5.evaluation.tasks import task
from lightning_e5.evaluation.tasks.sts import STSTask, evaluate_sts, load_sts
from lightning_e5.evaluation.tasks.zero_shot import ZeroShotPrompts
from lightning_e5.files.parquet import read_parquet
from lightning_e5.files.storage import read_json
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.retrieval.bm25 import BM25
from lightning_e5.stages.evaluate import evaluate
from lightning_e5.text import TextTokenizer


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
    (row,) = read_json(tmp_path / "out" / "tasks.json")
    assert (row["model"], row["set"], row["items"]) == ("small", "similar", 40)
    assert (row["metric"], row["value"], row["low"]) == ("spearman", alone.metrics["spearman"], alone.metrics["spearman_low"])
    assert len(read_parquet(tmp_path / "out/small/similar/pairs.parquet", {"score": "double", "cosine": "float"})) == 40


def test_every_task_in_one_stage(tmp_path: Path, encoder_folder: Path, task_files: dict[str, Path]) -> None:
    metrics = evaluate(
        tmp_path / "out", encoders={"small": encoder_folder}, baselines={"bm25": BM25()}, seed=3,
        classification={"kinds": task_files["classification"]}, samples_per_label={"kinds": 4},
        zero_shot={"kinds": ZeroShotPrompts({"long": "a long text", "short": "a short text"}, "text: {text}")},
        clustering={"groups": task_files["clustering"]}, pair_classification={"same": task_files["pair_classification"]},
        reranking={"lists": task_files["reranking"]}, published={"small": {"kinds/accuracy": 0.5}},
    )  # fmt: skip
    rows = {(r["set"], r["metric"]): r for r in read_json(tmp_path / "out" / "tasks.json")}
    assert list(rows) == [("kinds", "accuracy"), ("kinds", "zero_shot_accuracy"), ("same", "ap"), ("lists", "map"), ("groups", "v_measure")]
    for (name, metric), row in rows.items():
        assert metrics[f"small/{name}/{metric}"] == row["value"] and metrics[f"small/{name}/{metric}_low"] == row["low"] <= row["high"]
        assert (row["model"], row["prefix"], row["max_length"], row["precision"]) == ("small", {"query": "query: "}, 48, "fp32")
        assert 0 <= row["truncated"] <= 1
    accuracy = rows["kinds", "accuracy"]
    assert (accuracy["published"], accuracy["split"], accuracy["samples_per_label"], accuracy["normalized"]) == (0.5, "test", 4, False)
    assert {"small/kinds/f1", "small/lists/mrr", "small/same/accuracy"} <= set(metrics)
    assert not any(name.startswith("bm25/") for name in metrics)


def test_many_texts_show_progress_and_change_nothing(encoder_folder: Path, sts_file: Path, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    encoder, texts = TextEncoder.from_pretrained(encoder_folder), STSTask(load_sts(sts_file)).texts()
    plain = task.finite_embeddings(encoder, texts, "similar")
    assert "embed similar" not in capsys.readouterr().err
    monkeypatch.setattr(task, "_MANY", len(texts))
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    shown = task.finite_embeddings(encoder, texts, "similar")
    assert (shown == plain).all() and f"embed similar: {len(texts)} of {len(texts)} texts, about 0 s left" in capsys.readouterr().err


def test_a_row_says_how_its_figures_were_made(tmp_path: Path, encoder_folder: Path, collection: Path) -> None:
    evaluate(
        tmp_path / "out", collections={"toy": collection}, encoders={"small": encoder_folder}, baselines={"bm25": BM25()}, max_length=40,
        published={"bm25": {"toy/ndcg@10": 0.4}}, metrics=["recall@5"], k=11, seed=0,
    )  # fmt: skip
    bm25, small = read_json(tmp_path / "out" / "table.json")
    documents = [json.loads(line)["text"] for line in (collection / "corpus.jsonl").read_text().splitlines()]
    queries = [json.loads(line)["text"] for line in (collection / "queries.jsonl").read_text().splitlines()]
    encoder = TextEncoder.from_pretrained(encoder_folder)
    whole = TextTokenizer(encoder.tokenizer.backend, encoder.tokenizer.prefixes, 10_000)
    lengths = [*whole.encode(documents, "passage")[1], *whole.encode(queries, "query")[1]]
    assert small["truncated"] == pytest.approx(sum(n > 40 for n in lengths) / len(lengths)) and 0 < small["truncated"] < 1
    assert small["prefix"] == {"query": "query: ", "passage": "passage: "} and small["max_length"] == 40
    facts = ("split", "missing", "dangling", "queries", "documents", "precision")
    assert [small[key] for key in facts] == ["test", 0, 0, 8, 30, "fp32"] and small["tied"] == 0.0
    assert bm25["prefix"] is None and bm25["published"] == {"ndcg@10": 0.4}


def test_prefixes_that_are_not_the_models_are_refused(tmp_path: Path, encoder_folder: Path, sts_file: Path) -> None:
    given = {"sts": {"similar": sts_file}, "encoders": {"small": encoder_folder}, "seed": 0}
    own = evaluate(tmp_path / "a", **given, prefixes={"query": "query: ", "passage": "passage: "})
    with pytest.raises(UserError, match=r"stores the prefixes 'query: ' and 'passage: ', not '' and ''"):
        evaluate(tmp_path / "b", **given, prefixes={"query": "", "passage": ""})
    other = evaluate(tmp_path / "c", **given, prefixes={"query": "", "passage": ""}, prefix_ablation=True)
    assert other["small/similar/spearman"] != own["small/similar/spearman"]
    (row,) = read_json(tmp_path / "c" / "tasks.json")
    assert row["prefix_ablation"] is True and row["prefix"] == {"query": ""}
    assert "prefix_ablation" not in read_json(tmp_path / "a" / "tasks.json")[0]


def test_a_folder_without_prompts_takes_any_prefix_and_another_pooling_is_computed(tmp_path: Path, encoder_folder: Path, sts_file: Path) -> None:
    (encoder_folder / "config_sentence_transformers.json").write_text("{}")
    given = {"sts": {"similar": sts_file}, "encoders": {"small": encoder_folder}, "seed": 0}
    evaluate(tmp_path / "a", **given, prefixes={"query": "q: ", "passage": "p: "})
    assert read_json(tmp_path / "a" / "tasks.json")[0]["prefix"] == {"query": "q: "}
    (encoder_folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}')
    pooled = evaluate(tmp_path / "b", **given)
    (encoder_folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    assert pooled["small/similar/spearman"] != evaluate(tmp_path / "c", **given)["small/similar/spearman"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"samples_per_label": {"kind": 4}}, r"samples_per_label: 'kind' is not one of the classification sets; did you mean 'kinds'"),
        ({"zero_shot": {"x": ZeroShotPrompts({"a": "x", "b": "y"})}}, r"zero_shot: 'x' is not one of the classification sets"),
        ({"published": {"smal": {"kinds/accuracy": 0.1}}}, r"published: 'smal' is not one of the models; did you mean 'small'"),
        ({"published": {"small": {"kinds/acuracy": 0.1}}}, r"published\.small: 'kinds/acuracy' was not measured; did you mean"),
        ({"prefixes": {"query": "x"}}, r"prefixes: needs the keys query and passage"),
        ({"max_length": 4096}, r"max_length: 4096 is above the 128 positions"),
        ({"split": "dev"}, r"dev\.jsonl: no such file"),
    ],
)  # fmt: skip
def test_a_wrong_word_is_refused(tmp_path: Path, encoder_folder: Path, task_files: dict[str, Path], wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(tmp_path / "out", encoders={"small": encoder_folder}, classification={"kinds": task_files["classification"]}, **wrong, seed=0)


def test_bm25_alone_on_what_is_no_collection_is_refused(tmp_path: Path, sts_file: Path) -> None:
    with pytest.raises(UserError, match="bm25 can only search, and there is no collection"):
        evaluate(tmp_path / "out", baselines={"bm25": BM25()}, sts={"x": sts_file}, seed=0)


def test_an_experiment_of_tasks_alone(tmp_path: Path, encoder_folder: Path, task_files: dict[str, Path], capsys) -> None:  # type: ignore[no-untyped-def]
    """The whole way from a YAML: checked, run, tables printed, report written."""
    stage = {
        "_target_": "lightning_e5.stages.evaluate.evaluate",
        "inputs": {
            "classification": {"kinds": f"path:{task_files['classification']}"}, "reranking": {"lists": f"path:{task_files['reranking']}"},
            "encoders": {"small": f"path:{encoder_folder}"},
        },
        "zero_shot": {"kinds": {
            "_target_": "lightning_e5.evaluation.tasks.zero_shot.ZeroShotPrompts", "text": "text: {text}", "labels": {"long": "long", "short": "short"},
        }},
        "samples_per_label": {"kinds": 4}, "published": {"small": {"kinds/accuracy": 0.25, "lists/map": 1}},
    }  # fmt: skip
    node = {"name": "evaluation", "runs_dir": str(tmp_path / "runs"), "logger": {"mode": "disabled"}, "stages": {"evaluate": stage}}
    (tmp_path / "evaluation.yaml").write_text(yaml.safe_dump(node))
    assert main(["run", str(tmp_path / "evaluation.yaml")]) == 0
    metrics = read_json(tmp_path / "runs/evaluation/metrics.json")
    assert {"small/kinds/accuracy_low", "small/kinds/zero_shot_accuracy", "small/lists/mrr"} <= set(metrics)
    printed = capsys.readouterr().out
    assert f"{metrics['small/kinds/accuracy'] - 0.25:+.3f}" in printed and "re-ranking" in printed
    page = (tmp_path / "runs/evaluation/report.html").read_text(encoding="utf-8")
    assert "Other tasks" in page and "<h2>Results" not in page
    assert main(["run", str(tmp_path / "evaluation.yaml")]) == 0 and "nothing to do" in capsys.readouterr().out


def test_two_sets_of_one_name_are_refused(tmp_path: Path, encoder_folder: Path, sts_file: Path, collection: Path) -> None:
    with pytest.raises(UserError, match="two sets are named 'x'"):
        evaluate(tmp_path / "out", encoders={"small": encoder_folder}, sts={"x": sts_file}, collections={"x": collection}, seed=0)


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


def test_nothing_to_evaluate_on_is_refused(tmp_path: Path, encoder_folder: Path) -> None:
    with pytest.raises(UserError, match="nothing to evaluate on"):
        evaluate(tmp_path / "out", encoders={"small": encoder_folder}, seed=0)
    with pytest.raises(UserError, match="no model to evaluate"):
        evaluate(tmp_path / "out", sts={"x": tmp_path}, seed=0)
