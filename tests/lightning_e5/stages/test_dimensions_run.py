"""A run that trains at several dimensions, with a pooling and prefixes of its own, evaluated, searched and exported at them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer
from transformers import BertConfig, BertModel

from lightning_e5.__main__ import main
from lightning_e5.config.experiment import load_experiment
from lightning_e5.errors import UserError
from lightning_e5.files.storage import read_json
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.training_record import read_record
from lightning_e5.pipeline.check import check_experiment
from lightning_e5.report.notebook import load_encoder
from lightning_e5.result_row import at_dimensions
from lightning_e5.results.run import RunData
from tests.lightning_e5.conftest import DEEDS, write_package

PREFIXES = {"query": "質問: ", "passage": ""}


def experiment(root: Path, start: Path) -> dict[str, Any]:
    packages = {"one": write_package(root / "one", DEEDS[:5]), "held": write_package(root / "held", DEEDS[5:])}
    source = {"_target_": "data_modules.ccpairs.sources.python_docs.PythonDocs", "workers": 1, "show_progress": False, "roots": {n: str(p) for n, p in packages.items()}}
    encoder = {"_target_": "lightning_e5.models.factory.EncoderSpec", "pretrained": str(start), "pooling": "cls", "prefixes": PREFIXES, "max_length": 48}
    return {
        "name": "nested", "seed": 1, "threads": 1, "runs_dir": str(root / "runs"), "final_encoder": "pretrain", "logger": {"mode": "disabled"},
        "stages": {
            "pairs": {"_target_": "lightning_e5.stages.build_pairs.build_pairs", "source": source, "held_out": ["held"]},
            "start": {"_target_": "lightning_e5.stages.vocabulary.vocabulary", "inputs": {"pairs": "pairs"}, "encoder": encoder},
            "pretrain": {
                "_target_": "lightning_e5.stages.pretrain.pretrain", "inputs": {"encoder": "start/encoder", "tokens": "start/tokens"},
                "data": {"_target_": "data_modules.ccpairs.datamodule.CCPairsDataModule", "_partial_": True, "batch_size": 16, "max_steps": 3},
                "optimizer": {"_target_": "lightning_e5.training.optimizer.AdamWConfig", "learning_rate": 1e-3},
                "module": {"_target_": "lightning_e5.modules.in_batch.InBatchModule", "_partial_": True, "dimensions": [32, 8], "dimension_weights": [1.0, 0.5]},
                "trainer": {"accelerator": "cpu", "devices": 1},
            },
            "evaluate": {
                "_target_": "lightning_e5.stages.evaluate.evaluate", "inputs": {"collections": {"docs": "pairs/test"}, "encoders": {"ours": "pretrain"}},
                "truncate_dim": [32, 8], "reference": "ours@32",
            },
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Any) -> Path:
    import torch

    root = tmp_path_factory.mktemp("dimensions")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64}
    bert = BertModel(BertConfig(vocab_size=small_tokenizer.backend.get_vocab_size(), **sizes), add_pooling_layer=False)
    TextEncoder(bert, small_tokenizer).save_pretrained(root / "start")
    (root / "nested.yaml").write_text(yaml.safe_dump(experiment(root, root / "start"), allow_unicode=True, sort_keys=False))
    assert main(["run", str(root / "nested.yaml")]) == 0
    return root / "runs" / "nested"


def test_what_was_trained_is_recorded_with_the_weights(run: Path) -> None:
    record = read_record(run / "encoder")
    assert record is not None and record.dimensions == (32, 8) and record.stages[-1].dimensions == (32, 8)
    rows = [json.loads(line) for line in (run / "stages/pretrain/metrics.jsonl").read_text().splitlines()]
    assert all(row["loss"] == pytest.approx(row["loss@32"] + 0.5 * row["loss@8"], rel=1e-5) and row["accuracy"] == row["accuracy@32"] for row in rows)
    metrics = read_json(run / "metrics.json")
    assert metrics["pretrain/final_loss@8"] == pytest.approx(np.mean([row["loss@8"] for row in rows]))
    encoder = TextEncoder.from_pretrained(run / "encoder")
    assert encoder.head.settings.modes == ("cls",) and encoder.width == 32
    assert (encoder.tokenizer.prefixes.query, encoder.tokenizer.prefixes.passage) == ("質問: ", "")


def test_every_dimension_is_a_row(run: Path) -> None:
    rows = read_json(run / "stages/evaluate/table.json")
    assert [(row["model"], row["dimensions"]) for row in rows] == [("ours@32", 32), ("ours@8", 8)]
    assert rows[1]["difference"] == pytest.approx(rows[1]["value"] - rows[0]["value"], abs=1e-9) and "difference" not in rows[0]
    page = (run / "report.html").read_text()
    assert "Dimensions" in page and "ours@8" in page and "arXiv 2205.13147" in page
    data = RunData(run)
    assert {r.model: (r.trained_by, r.pairs) for r in data.results()} == {name: (("pretrain",), 48) for name in ("ours@32", "ours@8")}
    assert load_encoder(data, "ours@8").width == 8  # type: ignore[attr-defined]


def test_the_evaluate_verb_compares_dimensions(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["evaluate", "--model", f"m={run}", "--beir", f"docs={run / 'stages/pairs/test'}"]
    assert main([*given, "--truncate-dim", "32", "8", "--json", "--csv", str(tmp_path / "figures.csv")]) == 0
    found = json.loads(capsys.readouterr().out)
    values = {row["model"]: row["value"] for row in found["rows"]}
    assert found["reference"] == "m@32" and values == {f"m{row['model'][4:]}": row["value"] for row in read_json(run / "stages/evaluate/table.json")}
    header, *lines = (tmp_path / "figures.csv").read_text().splitlines()
    assert header.endswith(",dimensions") and {line.rsplit(",", 1)[1] for line in lines if line.startswith("m@8,")} == {"8"}
    assert main([*given, "--truncate-dim", "8"]) == 0
    shown = capsys.readouterr().out
    assert "m (8 dimensions)" in shown and any(line.split()[-1] == "dimensions" or "  dimensions  " in line for line in shown.splitlines())
    assert main(given) == 0 and "dimensions" not in capsys.readouterr().out
    for wrong, message in ((["33"], "truncate_dim: 33 of the 32 values"), (["8", "8"], r"truncate_dim: [8, 8]: a number is there twice"), (["0"], "truncate_dim: 0 of the 32")):
        assert main([*given, "--truncate-dim", *wrong]) == 2
        assert message in capsys.readouterr().err


def test_search_and_export_at_a_dimension(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", str(run), "sort the elements", "--truncate-dim", "8"]) == 0
    shown = capsys.readouterr().out
    out = tmp_path / "out"
    assert main(["export", str(run), str(out), "--truncate-dim", "8"]) == 0
    assert "8 values per embedding (the first of 32)" in capsys.readouterr().out
    theirs = SentenceTransformer(str(out), device="cpu", trust_remote_code=False)
    texts = ["sort the elements", "how to merge two lists", ""]
    ours = TextEncoder.from_pretrained(run / "encoder", truncate_dim=8)
    query = np.asarray(theirs.encode_query(texts, normalize_embeddings=True, show_progress_bar=False))
    assert theirs.get_embedding_dimension() == 8 and np.abs(ours.embed(texts, "query").numpy() - query).max() < 1e-6
    corpus = [json.loads(line) for line in (run / "stages/pairs/test/corpus.jsonl").read_text().splitlines()]
    passages = np.asarray(theirs.encode_document([row["text"] for row in corpus], normalize_embeddings=True, show_progress_bar=False))
    assert "by the first 8 of 32 values of an embedding" in shown and f"1. {float((passages @ query[0]).max()):.3f}" in shown
    card = (out / "README.md").read_text()
    assert "8 values (the first of 32)" in card and "the state of the first token (CLS)" in card and "1 of the figures" not in card
    assert "| dimensions |" in card.replace("\\", "") and "embeddings[:, :8]" in card and "states[:, 0]" in card
    sets = {one.dataset_name for one in ModelCard(card).data.eval_results}
    assert sets == {"docs (32 dimensions)", "docs (8 dimensions)"}
    assert main(["export", str(run), str(tmp_path / "whole")]) == 0
    assert "The first 8 values alone are embeddings, too" in (tmp_path / "whole" / "README.md").read_text()
    assert main(["export", str(run), str(tmp_path / "wrong"), "--truncate-dim", "64"]) == 2
    assert "truncate_dim: 64 of the 32 values" in capsys.readouterr().err


def test_names_of_models_at_dimensions(run: Path) -> None:
    assert at_dimensions({"a": 1, "b": 2}, None) == {"a": (1, None), "b": (2, None)}
    assert at_dimensions({"a": 1}, 8) == at_dimensions({"a": 1}, [8]) == {"a": (1, 8)}
    assert at_dimensions({"a": 1}, [8, 4]) == {"a@8": (1, 8), "a@4": (1, 4)}
    for wrong in ([], [8, 8]):
        with pytest.raises(UserError, match="truncate_dim: "):
            at_dimensions({"a": 1}, wrong)
    node = load_experiment(run.parents[1] / "nested.yaml")
    for changes, message in (
        ({"reference": "ours"}, r"stages\.evaluate\.reference: 'ours' is not one of the models"), ({"truncate_dim": 0}, r"stages\.evaluate\.truncate_dim: 0"),
        ({"truncate_dim": [8, 8]}, "a number is there twice"),
    ):  # fmt: skip
        changed = {**node, "stages": {**node["stages"], "evaluate": {**node["stages"]["evaluate"], **changes}}}
        with pytest.raises(UserError, match=message):
            check_experiment(changed, paths=False)
    start = {**node["stages"]["start"], "encoder": {**node["stages"]["start"]["encoder"], "pretrained": "google-bert/bert-base-uncased"}}
    pretrain = {**node["stages"]["pretrain"], "module": {**node["stages"]["pretrain"]["module"], "dimensions": [1024, 768]}}
    with pytest.raises(UserError, match=r"stages\.pretrain\.module\.dimensions: 1024 is above the 768 values of the encoder's embeddings"):
        check_experiment({**node, "stages": {**node["stages"], "start": start, "pretrain": {**pretrain, "module": {**pretrain["module"], "dimension_weights": None}}}}, paths=False)
