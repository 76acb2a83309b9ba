"""The model card: its head as the Hub reads it, its programs as a user runs them, its figures as the run has them."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from lightning_e5.__main__ import main
from lightning_e5.errors import UserError
from lightning_e5.export.model_card import check_metadata, write_model_card
from lightning_e5.export.model_card_facts import card_facts, exported_models, fenced
from lightning_e5.export.model_card_usage import usage
from lightning_e5.files.storage import read_json, write_json
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.report.tables.escaping import markdown as escaped
from lightning_e5.results.run import RunData
from lightning_e5.text import Prefixes, TextTokenizer


@pytest.fixture
def exported(tmp_path: Path, small_bert: Any, small_tokenizer: Any) -> Path:
    TextEncoder(small_bert, small_tokenizer).save_pretrained(tmp_path / "exported")
    return tmp_path / "exported"


def with_model(run: Path, **changes: Any) -> Path:
    """The run of `make_run` with a final encoder and settings of its training."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config |= {"final_encoder": "tuned", "seed": 7, "encoder": {"pretrained": "google-bert/bert-base-uncased"}}
    module = {"_target_": "lightning_e5.modules.in_batch.InBatchModule", "temperature": 0.03, "learning_rate": 0.001}  # as of earlier versions
    optimizer = {"_target_": "lightning_e5.training.optimizer.AdamWConfig", "warmup_steps": 7}
    config["stages"]["tuned"] |= {"data": {"_target_": "x.CCPairsDataModule", "batch_size": 512}, "optimizer": optimizer, "module": module, "precision": "bf16"}
    (run / "config.yaml").write_text(yaml.safe_dump(config | changes, sort_keys=False))
    return run


def programs(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)\n```", card, flags=re.S)


def test_the_head_is_the_hubs_and_the_figures_are_the_runs(make_run: Any, exported: Path) -> None:
    run = with_model(make_run(lift=0.2))
    table = read_json(run / "stages/evaluate/table.json")
    for row in table:
        row |= {"split": "test", "precision": "fp32", "rules": {"beir": "quora", "text_only": True}, "contamination": "measured", "contaminated": {"share": 0.075, "count": 3}}
    write_json(run / "stages/evaluate/table.json", table)
    write_json(run / "stages/evaluate/tasks.json", [
        {"model": m, "set": "s", "task": "sts", "metric": "spearman", "value": v, "low": v - 0.1, "high": v + 0.1, "items": 9, "precision": "fp32"}
        for m, v in (("first", 0.125), ("second", 0.625))
    ])  # fmt: skip
    write_json(run / "stages/pairs/packages.json", {"source": "docs", "test": "docs", "packages": {
        "one": {"version": "1.2", "pairs": 1234, "held_out": False}, "two": {"version": "", "pairs": 55, "held_out": True},
    }})  # fmt: skip
    write_json(run / "stages/pairs/metrics.json", {"train_pairs": 1200.0, "planted": 360.0})
    card = write_model_card(run, exported, license="mit").read_text(encoding="utf-8")
    data = ModelCard(card).data
    expected = {"language": "en", "license": "mit", "library_name": "sentence-transformers", "pipeline_tag": "sentence-similarity",
                "base_model": "google-bert/bert-base-uncased", "model_name": "tiny"}  # fmt: skip
    assert {key: data.get(key) for key in expected} == expected
    metrics = RunData(run).metrics
    second = next(row for row in table if row["model"] == "second")
    found = {(r.task_type, r.dataset_name, r.dataset_split, r.metric_type): (r.metric_value, r.metric_args) for r in data.eval_results}
    assert found == {
        ("Retrieval", "docs", "test", "ndcg_at_10"): (metrics["second/docs/ndcg@10"], {"interval_95": [second["low"], second["high"]]}),
        ("Retrieval", "docs", "test", "recall_at_100"): (metrics["second/docs/recall@100"], None),
        ("STS", "s", None, "spearman"): (0.625, {"interval_95": [0.525, 0.725]}),
    }
    line = next(line for line in card.splitlines() if line.startswith("| docs | test | retrieval | ndcg@10"))
    assert f"{metrics['second/docs/ndcg@10']:.3f} | {second['low']:.3f} to {second['high']:.3f} | {metrics['bm25/docs/ndcg@10']:.3f} |" in line
    for words in ("| one 1.2 | pairs | 1,234 |", "held out for the test | 55", "1,200 pairs to train on", "temperature | 0.03", "learning rate | 0.001", "warmup steps | 7", "batch size | 512",
                  "| tuned | pairs seen | 320 |", "| noisy | pairs seen | 100 |", "seed 7", "| commit | abc with uncommitted changes |", "| torch | 2 |",
                  "rules of BEIR's quora", "docs: 7.5% of the test items (3) also lie in the training texts", "Consistency filter"):  # fmt: skip
        assert words in card.replace("\\", ""), words
    assert "license" not in ModelCard(write_model_card(run, exported).read_text()).data.to_dict()
    assert exported_models(RunData(run)) == {"second"}


def run_program(program: str, folder: Path) -> str:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_programs_run_in_the_folder_and_give_the_encoders_cosines(make_run: Any, tmp_path: Path, small_bert: Any, small_tokenizer: Any) -> None:
    prefixes = Prefixes('say "q": ', "it's p: ")  # of quotes too
    run, out = with_model(make_run()), tmp_path / "out"
    encoder = TextEncoder(small_bert, TextTokenizer(small_tokenizer.backend, prefixes, 48)).eval()
    encoder.save_pretrained(run / "encoder")
    onnx = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
    assert main(["export", str(run), str(out), *(["--onnx"] if onnx else [])]) == 0
    found = programs((out / "README.md").read_text(encoding="utf-8"))
    assert len(found) == (3 if onnx else 2)
    passages = ["Open the file and go through its lines.", "A graph has nodes and edges."]
    expected = (encoder.embed(["how do I read a file?"], "query") @ encoder.embed(passages, "passage").T).numpy().ravel()
    printed = run_program("\n".join(found), out)  # one process: each import of torch takes seconds
    numbers = np.array([float(n) for n in re.findall(r"-?\d\.\d+", printed)]).reshape(len(found), 2)
    assert np.abs(numbers - expected).max() < 2e-4  # as many digits as are printed


def test_texts_of_the_run_stay_texts(make_run: Any, exported: Path) -> None:
    evil = "<script>x</script> | [a](http://b) `c` ---\n---\n# head\u2028**b**"
    run = with_model(make_run(description=evil), description=evil)
    write_json(run / "stages/pairs/packages.json", {"packages": {evil: {"version": "", "pairs": 1, "held_out": False}}})
    card = write_model_card(run, exported).read_text(encoding="utf-8")
    head, body = card.split("\n---\n", 1)
    prose = re.sub(r"(`{3,})\w*\n.*?\n\1", "", body, flags=re.S)
    assert "<script" not in prose and "\n# head" not in prose and "[a](" not in prose and "**b**" not in prose
    assert "&lt;script" in prose and r"\[a\]\(http" in prose
    rows = [line for line in prose.splitlines() if line.startswith("| &lt;script")]
    assert len(rows) == 1 and len(re.findall(r"(?<!\\)\|", rows[0])) == 5
    assert yaml.safe_load(head.removeprefix("---\n"))["model-index"][0]["name"] == "tiny"
    assert fenced("a ```` b").startswith("`````\n") and escaped("a\nb") == "a b"


@pytest.mark.parametrize(
    "given",
    [
        {"license": "mit\nbase_model: evil"}, {"license": "MIT License"}, {"license": "../../etc"}, {"license": ""}, {"license": "x" * 65}, {"license": "a\x00b"},
        {"language": "english"}, {"language": "en, de"}, {"language": ""}, {"language": "en\n---"}, {"language": "<b>"}, {"language": "en\ud800"},
    ],
)  # fmt: skip
def test_a_license_or_language_that_is_none(exported: Path, tmp_path: Path, given: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    (option, value), = given.items()
    assert main(["export", str(exported), str(tmp_path / "out"), f"--{option}={value}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith((f"error: --{option}: ", f"error: '--{option}=")) and not (tmp_path / "out").exists()


def test_licenses_and_languages_of_the_hub_pass() -> None:
    for license, language in [("mit", "en"), ("apache-2.0", "zh-Hans"), ("cc-by-sa-4.0", "multilingual"), ("other", "yue"), (None, "pt-BR"), ("bsl-1.0", "code")]:
        check_metadata(language, license)


def test_a_folder_without_a_run_and_a_run_that_is_unfinished(make_run: Any, exported: Path) -> None:
    card = write_model_card(exported, exported).read_text(encoding="utf-8")
    assert "Exported from a model folder without a run" in card and "## Results" not in card and len(programs(card)) == 2
    assert "model-index" not in card
    with pytest.raises(UserError, match="the run is unfinished"):
        card_facts(RunData(with_model(make_run("half", finished=False))))


def test_prefixes_are_named_only_where_there_are_some(exported: Path) -> None:
    assert "Queries begin with" not in usage(exported, Prefixes("", ""), 48)
    assert "`` 'a` ' ``" in usage(exported, Prefixes("a` ", "b"), 48)
