"""``python -m lightning_e5 evaluate``: names, the metrics file, the printed tables, and one sentence for a mistake."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

from lightning_e5.__main__ import main
from lightning_e5.cli.evaluate_inputs import RETRIEVAL_METRICS, set_name
from lightning_e5.files.storage import read_json


@pytest.fixture
def model(encoder_folder: Path) -> Path:
    target = encoder_folder.with_name("All-Small-L2")
    os.rename(encoder_folder, target)
    return target


def test_any_model_on_any_data(tmp_path: Path, model: Path, sts_file: Path, collection: Path, task_files: dict[str, Path], capsys) -> None:  # type: ignore[no-untyped-def]
    os.rename(collection, collection.with_name("SciFake"))
    os.rename(sts_file, sts_file.with_name("stsx_test.tsv"))
    out = tmp_path / "results" / "metrics.json"
    code = main([
        "evaluate", "--model", str(model), "bm25", "--model", f"again={model}", "--beir", str(collection.with_name("SciFake")),
        "--sts", str(sts_file.with_name("stsx_test.tsv")), "--classification", str(task_files["classification"]),
        "--samples-per-label", "kinds=4", "--clustering", f"g={task_files['clustering']}", "--reranking", str(task_files["reranking"]),
        "--pair-classification", str(task_files["pair_classification"]), "--max-length", "24", "--out", str(out),
        "--details", str(tmp_path / "details"),
    ])  # fmt: skip
    assert code == 0
    metrics = read_json(out)
    assert {f"{m}/scifake/{name}" for m in ("all-small-l2", "again", "bm25") for name in RETRIEVAL_METRICS} <= set(metrics)
    for name in ("stsx/spearman", "kinds/accuracy", "g/v_measure", "lists/map", "same/ap", "scifake/ndcg@10_low"):
        assert metrics[f"all-small-l2/{name}"] == metrics[f"again/{name}"]
    assert [p.name for p in out.parent.iterdir()] == ["metrics.json"]  # no temporary file is left
    assert (tmp_path / "details" / "bm25" / "scifake" / "run.trec").is_file()
    printed = capsys.readouterr().out
    assert f"{metrics['all-small-l2/stsx/spearman']:.3f}" in printed and f"{metrics['bm25/scifake/ndcg@10']:.3f}" in printed
    assert "truncated" in printed and "'query: ', 'passage: '" in printed


def test_the_encoder_of_a_run_goes_by_the_runs_name(tmp_path: Path, encoder_folder: Path, sts_file: Path) -> None:
    run = tmp_path / "my-run"
    run.mkdir()
    os.rename(encoder_folder, run / "encoder")
    assert main(["evaluate", "--model", str(run), "--sts", str(sts_file), "--out", str(tmp_path / "m.json")]) == 0
    assert "my-run/pairs/spearman" in read_json(tmp_path / "m.json")


def test_models_are_compared_in_every_form(tmp_path: Path, model: Path, sts_file: Path, collection: Path, task_files: dict[str, Path], capsys) -> None:  # type: ignore[no-untyped-def]
    files = {name: tmp_path / "out" / f"e.{name}" for name in ("csv", "html", "parquet", "json")}
    code = main([
        "evaluate", "--model", f"one={model}", "bm25", "--reference", "one", "--beir", f"toy={collection}", "--sts", str(sts_file),
        "--clustering", f"g={task_files['clustering']}", "--json", "--csv", str(files["csv"]), "--html", str(files["html"]),
        "--per-query", str(files["parquet"]), "--out", str(files["json"]),
    ])  # fmt: skip
    printed = json.loads(capsys.readouterr().out)
    metrics = read_json(files["json"])
    assert code == 0 and printed["reference"] == "one" and printed["not_compared"] == {}
    (compared,) = [row for row in printed["rows"] if "difference" in row]
    assert compared["model"] == "bm25" and compared["difference"] == pytest.approx(metrics["bm25/toy/ndcg@10"] - metrics["one/toy/ndcg@10"])
    with files["csv"].open(encoding="utf-8", newline="") as handle:
        lines = {(row["model"], row["set"], row["metric"]): row for row in csv.DictReader(handle)}
    assert {f"{m}/{s}/{metric}": float(row["value"]) for (m, s, metric), row in lines.items()} == {k: v for k, v in metrics.items() if not k.endswith(("_low", "_high"))}
    line = lines["bm25", "toy", "ndcg@10"]
    assert line["reference"] == "one" and float(line["difference_low"]) == compared["difference_low"] and line["shown"] in ("higher", "lower", "no difference shown")
    page = files["html"].read_text(encoding="utf-8")
    assert "Differences to one" in page and "<script" not in page and "data:image/svg+xml" in page
    assert files["parquet"].is_file()

    assert main(["evaluate", "--model", "bm25", f"one={model}", f"two={model}", "--beir", f"toy={collection}", "--sts", str(sts_file)]) == 0
    text = capsys.readouterr().out
    assert "each model minus bm25 (the first model; --reference NAME chooses another)" in text and "(2)" in text
    assert "pairs: not compared: bm25 can only search." in text
    assert main(["evaluate", "--model", f"one={model}", f"two={model}", "--clustering", f"g={task_files['clustering']}"]) == 0
    text = capsys.readouterr().out
    assert "No model is compared with one" in text and "g: not compared: no pairing of items is possible in clustering" in text
    assert main(["evaluate", "--model", f"one={model}", "--sts", str(sts_file)]) == 0
    assert "compared" not in capsys.readouterr().out


def test_a_split_column_chooses_the_rows_and_what_is_left_out_is_said(tmp_path: Path, model: Path, collection: Path, task_files: dict[str, Path], capsys) -> None:  # type: ignore[no-untyped-def]
    pairs = [(split, n, f"{split} {n} sea", f"river {n}") for split in ("train", "dev", "test") for n in range(4)]
    header = "split\tgenre\tdataset\tyear\tsid\tscore\tsentence1\tsentence2"
    for name, kept in (("all", pairs), ("alone", pairs[8:])):
        lines = [f"{split}\tmain\tx\t2012\t{n}\t{n}.5\t{one}\t{other}" for split, n, one, other in kept]
        (tmp_path / f"{name}.tsv").write_text("\n".join([header, *lines]) + "\n")
    lists = task_files["reranking"].read_text().splitlines()
    task_files["reranking"].write_text("".join(line[:-1] + f', "split": "{split}"}}\n' for split in ("test", "train") for line in lists))
    with (collection / "qrels/test.tsv").open("a") as handle:
        handle.write("nowhere\td1\t1\n")
    details = tmp_path / "details"
    assert main([
        "evaluate", "--model", str(model), "--sts", str(tmp_path / "all.tsv"), str(tmp_path / "alone.tsv"), "--beir", str(collection),
        "--reranking", str(task_files["reranking"]), "--details", str(details), "--out", str(tmp_path / "m.json"),
    ]) == 0  # fmt: skip
    rows = {row["set"]: row for row in read_json(details / "tasks.json")}
    assert rows["all"]["items"] == rows["alone"]["items"] == 4 and rows["all"]["value"] == rows["alone"]["value"]
    assert (rows["all"]["split"], rows["all"]["other_splits"], rows["alone"]["other_splits"]) == ("test", 8, 0)
    assert rows["lists"]["items"] == rows["lists"]["other_splits"] == len(lists)
    assert read_json(details / "table.json")[0]["left_out"] == {"queries_without_text": 1}
    assert "1 judged queries are left out, since the queries file has no text of them" in capsys.readouterr().err
    assert main(["evaluate", "--model", str(model), "--sts", str(tmp_path / "all.tsv"), "--split", "valid"]) == 2
    assert "all.tsv: has no row of the split 'valid' (its column 'split' has: dev, test, train)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "absent", "--sts", "{sts}"], "--model: absent: no such model folder (nor bm25)"),
        (["--model", "bm25", "bm25", "--sts", "{sts}"], "two models are named 'bm25'"),
        (["--model", "{model}"], "nothing to evaluate on"),
        (["--model", "{model}", "--sts", "absent.tsv"], "absent.tsv: no such file or directory"),
        (["--model", "{model}", "--sts", "{sts}", "{sts}"], "two sets are named 'pairs'"),
        (["--model", "{model}", "--sts", "a/b={sts}"], "is not NAME=FOLDER"),
        (["--model", "..={model}", "--sts", "{sts}"], "a model: '..' cannot be a name of results"),
        (["--model", ".={model}", "--sts", "{sts}"], "a model: '.' cannot be a name of results"),
        (["--model", "table.json={model}", "--sts", "{sts}"], "'table.json' could be the name of a table"),
        (["--model", "x" * 300 + "={model}", "--sts", "{sts}"], "File name too long"),
        (["--model", "red\x1b[31m={model}", "--sts", "{sts}"], r"'red\x1b[31m' cannot be a name"),
        (["--model", "{model}", "--sts", "..={sts}"], "a set: '..' cannot be a name of results"),
        (["--model", "{model}", "--sts", "two\nlines={sts}"], r"'two\nlines' cannot be a name"),
        (["--model", "{model}", "--sts", "half\ud800={sts}"], "holds NUL, or bytes that are not UTF-8"),
        (["--model", "{model}", "--sts", "{sts}", "--samples-per-label", "x"], "'x' is not SET=N"),
        (["--model", "{model}", "--sts", "{sts}", "--query-prefix", ""], "belong together"),
        (["--model", "{model}", "--sts", "{sts}", "--query-prefix", "", "--passage-prefix", ""], "stores the prefixes"),
        (["--model", "{model}", "--sts", "{sts}", "--out", "{folder}"], "is a directory"),
        (["--model", "{folder}", "--sts", "{sts}"], "no model folder (has no config.json)"),
        (["--model", "{model}", "bm25", "--sts", "{sts}", "--reference", "bm52"], "--reference: 'bm52' is not one of the models (bm25, all-small-l2); did you mean 'bm25'"),
        (["--model", "{model}", "--sts", "{sts}", "--reference", "all-small-l2"], "'all-small-l2' is the only model"),
        (["--model", "{model}", "--sts", "{sts}", "--csv", "{folder}"], "--csv: "),
        (["--model", "{model}", "--sts", "{sts}", "--html", "{folder}"], "is a directory, not a file"),
        (["--model", "{model}", "--sts", "{sts}", "--per-query", "q.txt"], "--per-query: q.txt: ends in '.txt', not in .csv or .parquet"),
        (["--model", "{model}", "--sts", "{sts}", "--out", "kept/x.csv", "--csv", "./kept/x.csv"], "--csv: ./kept/x.csv: is the file of --out, too"),
    ],
)  # fmt: skip
def test_a_mistake_ends_with_one_sentence(tmp_path: Path, model: Path, sts_file: Path, capsys, arguments: list[str], message: str) -> None:  # type: ignore[no-untyped-def]
    places = {"{sts}": str(sts_file), "{model}": str(model), "{folder}": str(tmp_path)}
    given = arguments
    for key, value in places.items():
        given = [a.replace(key, value) for a in given]
    before = set(tmp_path.parent.rglob("*"))
    assert main(["evaluate", *given, "--details", str(tmp_path / "kept" / "details")]) == 2
    assert set(tmp_path.parent.rglob("*")) - before <= {tmp_path / "kept", tmp_path / "kept/details"}, "nothing is written"
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error


@pytest.mark.parametrize(
    ("name", "expected"),
    [("stsb_test.tsv", "stsb"), ("newsgroups20.jsonl.gz", "newsgroups20"), ("A-dev.parquet", "a"), ("latest.tsv", "latest")],
)
def test_names_of_files(tmp_path: Path, name: str, expected: str) -> None:
    assert set_name(tmp_path / name) == expected
