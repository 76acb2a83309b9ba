"""The verb ``adapt``: at toy size from a CSV to the closing lines, killed and continued, and what it refuses in one sentence."""

from __future__ import annotations

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_e5.__main__ import main
from lightning_e5.cli.adapt_inputs import TEMPLATE
from lightning_e5.export.adaptation import use_lines
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.training_record import read_record
from lightning_e5.text import Prefixes

ROOT = Path(__file__).resolve().parents[3]
THINGS = ("array", "graph", "matrix", "table", "tree", "image", "signal", "file", "string", "model", "queue", "vector")
DEEDS = ("sort", "copy", "merge", "split", "count", "filter", "compress", "validate", "print", "rotate", "shuffle", "invert")
#: Settings under which a run of a tiny encoder is over in seconds.
SMALL = ["stages.pretrain.data.least_steps=3", "stages.pretrain.data.batch_size=16", "stages.pretrain.optimizer.learning_rate=1e-3", "logger.mode=disabled", "threads=1"]


def write_pairs(path: Path, negatives: bool = False) -> Path:
    rows = [(f"how do I {deed} a {thing}", f"To {deed} the {thing}, call {deed}_{thing}; every element of the {thing} is read once.") for thing in THINGS for deed in DEEDS]
    names = ["question", "answer", *(["negative"] if negatives else [])]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([*row, *([rows[(i + 5) % len(rows)][1]] if negatives else [])] for i, row in enumerate(rows))
    return path


@pytest.fixture
def encoder(tmp_path: Path, small_bert: Any, small_tokenizer: Any) -> Path:
    TextEncoder(small_bert, small_tokenizer.replaced(prefixes=Prefixes("", ""))).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_from_a_table_to_what_to_use(tmp_path: Path, encoder: Path, sts_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_pairs(tmp_path / "faq.csv")
    words = ["adapt", str(table), "--encoder", str(encoder), "--general", str(sts_file), f"runs_dir={tmp_path / 'runs'}", *SMALL, "--name", "faq"]
    assert main(words) == 0
    said = capsys.readouterr().out
    run = tmp_path / "runs" / "faq"
    for expected in ("faq.csv: about 144 rows", "some of the training pairs:", "your test, ", "queries got better", "# sentence-transformers", "# LangChain",
                     f"lightning-e5 search {run} --interactive", "general: spearman "):  # fmt: skip
        assert expected in said, expected
    *_, decision = [line for line in said.splitlines() if line.startswith(("use ", "keep the start"))]
    assert said.index("some of the training pairs") < said.index("pretrain: starts") < said.index("your test, ") < said.index(decision)
    check_table(run, decision)
    check_files(run, encoder)
    page = (run / "report.html").read_text()
    assert "Your texts" in page and "What was read" in page and "faq.csv: about 144 rows" in page
    check_programs(run / "encoder", tmp_path)
    assert main(words) == 0  # again: nothing to do, the same end
    again = capsys.readouterr().out
    assert "nothing to do" in again and decision in again
    assert main(["run", str(run / "experiment.yaml")]) == 0 and "nothing to do" in capsys.readouterr().out
    assert main(["check", str(run / "experiment.yaml"), "--paths"]) == 0


def check_table(run: Path, decision: str) -> None:
    rows = {row["model"]: row for row in json.loads((run / "stages" / "evaluate" / "table.json").read_text())}
    assert set(rows) == {"start", "bm25", "adapted", "bm25+adapted"}
    (compared,) = rows["adapted"]["previous"]
    assert compared["model"] == "start" and compared["difference"] == pytest.approx(rows["adapted"]["value"] - rows["start"]["value"])
    metrics = json.loads((run / "metrics.json").read_text())
    better = compared["verdict"] == "a is higher" and metrics["pretrain/best_step"] > 0
    assert decision.startswith(f"use {run / 'encoder'}" if better else "keep the start")


def check_files(run: Path, encoder: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    steps = [json.loads(line) for line in (run / "stages" / "pretrain" / "validation.jsonl").read_text().splitlines()]
    best = max(steps, key=lambda row: (row["val/own-texts/ndcg@10"], -row["step"]))
    assert steps[0]["step"] == 0 and best["step"] == metrics["pretrain/best_step"]
    assert metrics["pretrain/val/own-texts/ndcg@10"] == best["val/own-texts/ndcg@10"]
    record = read_record(run / "encoder")
    assert record is not None and record.stages[-1].selected_on is not None and record.stages[-1].selected_on.startswith("items ")
    changed = json.loads((run / "changed_queries.json").read_text())
    for row in changed:
        value = row["ndcg@10"]
        assert (value["adapted"] > value["start"]) is row["better"] and row["relevant"]
    assert "Your texts" in (run / "report.html").read_text() and (run / "changed_queries.md").is_file()
    assert (run / "encoder" / "README.md").read_text().startswith("---")


def check_programs(encoder: Path, tmp_path: Path) -> None:
    """The printed programs run as they stand and agree with each other; LangChain's where it is installed."""
    lines = use_lines(encoder)
    starts = [number for number, line in enumerate(lines) if line.startswith("# ")]
    programs = {lines[a][2:]: "\n".join(lines[a + 1 : b]) for a, b in zip(starts, [*starts[1:], None], strict=True)}
    assert list(programs) == ["sentence-transformers", "LangChain", "transformers"]
    wanted = ["transformers", *(["sentence-transformers"] if importlib.util.find_spec("sentence_transformers") else [])]
    program = "\n".join(programs[name] for name in wanted)  # in one process, which imports torch once
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    values = [[float(v) for v in line[line.index("[[") + 2 : line.index("]]")].split(",")] for line in done.stdout.splitlines() if "[[" in line]
    assert len(values) == len(wanted) and all(v == pytest.approx(values[0], abs=2e-4) for v in values)
    compile(programs["LangChain"], "LangChain", "exec")


def written(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The experiment that ``--dry-run`` prints."""
    assert main(["adapt", *words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    return dict(yaml.safe_load(said[said.index("name: ") :]))


def test_negatives_are_trained_on_behind_the_pairs(tmp_path: Path, encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = written([str(write_pairs(tmp_path / "faq.csv", negatives=True)), "--encoder", str(encoder), "keep_general=0.25"], capsys)
    assert list(found["stages"]) == ["pairs", "start", "pretrain", "finetune", "evaluate"] and found["final_encoder"] == "finetune"
    finetune = found["stages"]["finetune"]
    assert finetune["inputs"] == {
        "encoder": "pretrain/encoder", "ranked": "pairs/ranked.parquet", "validation_collections": {"own-texts": "pairs/validation"},
        "general": "start/encoder",
    }  # fmt: skip
    assert found["variables"]["keep_general"] == 0.25 and found["stages"]["pretrain"]["keep_general"] == 0.0
    assert finetune["keep_general"] == "${variables.keep_general}" and found["encoder"]["pretrained"] == str(encoder)
    assert not list(tmp_path.rglob("runs"))


def test_the_users_own_test_and_columns(tmp_path: Path, collection: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_pairs(tmp_path / "My FAQ (new).csv")
    found = written([str(table), "--test", str(collection), "--general", str(collection), "--query", "answer", "--passage", "question"], capsys)
    pairs = found["stages"]["pairs"]
    assert pairs["test"] == [f"path:{collection}"] and (pairs["query"], pairs["passage"]) == ("answer", "question")
    assert pairs["pairs"] == [f"path:{table}"] and found["name"] == "own-My-FAQ-new"
    assert found["variables"]["keep_general"] == 0.5  # of so few pairs
    assert found["stages"]["evaluate"]["inputs"]["collections"]["general"] == f"path:{collection}"


def test_the_template_is_the_experiment_of_the_repository() -> None:
    assert TEMPLATE.read_bytes() == (ROOT / "experiments" / "own_texts.yaml").read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere: no such file or directory"),
        (["empty"], "empty"),
        (["keep_general=0.5"], "adapt: 'keep_general=0.5' is a key of the experiment; name a folder or file of your texts, too"),
        (["faq.csv", "--encoder", "no/such/encoder"], "no/such/encoder: no such model folder"),
        (["faq.csv", "--test", "empty"], "--test: empty: is no BEIR folder (corpus.jsonl, queries.jsonl and qrels/test.tsv)"),
        (["faq.csv", "--test", "nowhere"], "--test: nowhere: no such folder"),
        (["faq.csv", "--general", "nowhere"], "--general: nowhere: no such file or directory"),
        (["faq.csv", "--general", "faq.csv"], "faq.csv"),
        (["faq.csv", "--query", "asked"], "asked"),
        (["faq.csv", "--name", "a/b"], "--name: 'a/b' is not a valid name"),
        (["faq.csv", "keep_general=2", "--dry-run"], "keep_general: 2 is not a number"),
        (["faq.csv", "no.such.key=2"], "override 'no.such.key=2'"),
        (["few.csv", "runs_dir=runs", "logger.mode=disabled"], "needed"),
    ],
)
def test_what_is_refused_says_so_in_one_sentence(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_pairs(tmp_path / "faq.csv")
    (tmp_path / "few.csv").write_text("question,answer\n" + "".join((tmp_path / "faq.csv").read_text().splitlines(keepends=True)[1:7]))
    assert main(["adapt", *words]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and said in errors[0], errors
