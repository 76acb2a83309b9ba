"""The tables of an evaluation in the summary and the report: one for all tasks, one on how figures were made."""

from __future__ import annotations

import io
import re
import shlex
from pathlib import Path

from lightning_e5.__main__ import main
from lightning_e5.files.storage import read_json, write_json
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.report.run_page import write_report
from lightning_e5.report.tables.evaluation import (
    contamination_table,
    retrieval_notes,
    retrieval_table,
    task_table,
    validity_table,
)
from lightning_e5.report.tables.summary import summary_table

FACTS = {"prefix": {"query": "query: "}, "max_length": 128, "truncated": 0.125, "precision": "fp32"}
TASKS = [
    {"model": "e5", "set": "stsb", "task": "sts", "metric": "spearman", "value": 0.8, "low": 0.78, "high": 0.82, "items": 1379, **FACTS},
    {"model": "e5", "set": "banking", "task": "classification", "metric": "accuracy", "value": 0.75, "low": 0.7, "high": 0.8,
     "items": 3080, "published": 0.77, "split": "test", "prefix_ablation": True, **FACTS},
]  # fmt: skip


def test_task_rows_with_published_figures_and_labels() -> None:
    table = task_table(TASKS)
    header, (sts, banking) = table.header, table.cells
    assert dict(zip(header, banking, strict=True)) == {
        "model": "e5 (prefix ablation)", "set": "banking", "task": "classification", "metric": "accuracy", "value": "0.750",
        "95% interval": "[0.700, 0.800]", "published": "0.770", "difference": "-0.020", "items": "3,080",
    }  # fmt: skip
    assert sts[header.index("published")] == "" and "published" not in task_table(TASKS[:1]).header


def test_validity_rows_of_retrieval_and_tasks() -> None:
    retrieval = {"model": "bm25", "collection": "docs", "split": "test", "missing": 2, "dangling": 3, "tied": 0.25, "queries": 8,
                 "prefix": None, "max_length": None, "truncated": None, "precision": None}  # fmt: skip
    table = validity_table([retrieval, *TASKS])
    header, (first, second, third) = table.header, table.cells
    assert first == ["bm25", "docs", "test", "none", "–", "–", "–", "25.0%", "2", "3"]
    assert second[:6] == ["e5", "stsb", "–", "'query: '", "128", "12.5%"] and third[2] == "test" and len(header) == len(third)
    old = {"model": "x", "collection": "y"}
    assert validity_table([old]).rows == [] and validity_table([old]).header == header
    table = retrieval_table([retrieval | {"low": 0.1, "high": 0.3, "published": {"ndcg@10": 0.25}}], {"bm25/docs/ndcg@10": 0.2}, ["ndcg@10"])
    assert table.cells[0] == ["bm25", "docs", "0.200", "[0.100, 0.300]", "0.250", "-0.050", "8"]
    lines = table.lines()
    assert len(lines) == 3 and lines[0].startswith("model  set")


SEEN = {"share": 0.25, "count": 2, "exact": 1, "punctuation": 1, "inside": 1, "ngram": 0}


def test_notes_on_own_documents_and_equal_scores() -> None:
    row = {"model": "bm25", "collection": "mine", "self_excluded": 3, "same_id_kept": 1200, "tie_queries": 6,
           "tie_range": {"ndcg@10": [0.6443, 0.6459]}}  # fmt: skip
    declared = {"model": "e5", "collection": "arguana", "self_excluded": 1401, "rules": {"queries_are_documents": True}, "tie_queries": 1}
    assert retrieval_notes([row, {**row, "model": "e5", "tie_queries": 0}, declared, {"model": "old", "collection": "x"}], "ndcg@10") == [
        "mine: 3 queries' own documents are left out of their results (document and query have one text)",
        "mine: 1,200 documents have the id of a query and are not left out of its results",
        "arguana: 1,401 queries' own documents are left out of their results (the set's queries are documents)",
        "bm25, mine: 6 queries depend on the order of equal scores (falling ids, as in trec_eval), ndcg@10 0.6443 to 0.6459",
        "e5, arguana: 1 query depends on the order of equal scores (falling ids, as in trec_eval)",
    ]


def test_the_next_steps_are_commands_that_work(make_run, small_bert, small_tokenizer, capsys, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """As they are printed, whatever the run's folder is named."""
    path = make_run(folder="it's with spaces & more")
    TextEncoder(small_bert, small_tokenizer).save_pretrained(path / "encoder")
    (path / "stages" / "pairs" / "test" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td\t1\nq1\td\t1\n")
    write_report(path, {**read_json(path / "metrics.json")})
    steps = summary_table(path, ["ndcg@10"]).partition("try next:\n")[2].splitlines()
    commands = [shlex.split(step) for step in steps]
    assert [command[:3] for command in commands] == [["python", "-m", "lightning_e5"], ["python", "-m", "webbrowser"], ["python", "-m", "lightning_e5"]]
    monkeypatch.setattr("sys.stdin", io.StringIO("a question\n"))
    assert main(commands[0][3:]) == 0 and "1. " in capsys.readouterr().out
    assert Path(commands[1][3]).is_file()
    assert main(commands[2][3:]) == 0 and "bm25" in (out := capsys.readouterr().out) and "tiny" in out


def test_what_the_models_have_seen() -> None:
    retrieval = {"model": "e5", "collection": "docs", "pairs_seen": 40000, "tokens_seen": None, "contamination": "measured",
                 "contaminated": SEEN, "clean_items": 6, "ndcg@10_clean": 0.5}  # fmt: skip
    unknown = {**TASKS[0], "pairs_seen": None, "tokens_seen": None, "contamination": "unknown", "contaminated": None,
               "clean_items": None, "spearman_clean": None}  # fmt: skip
    table = contamination_table([retrieval, unknown, TASKS[1]], {"e5/docs/ndcg@10": 0.625})
    header, (first, second) = table.header, table.cells
    assert header[2:6] == ["pairs seen", "tokens seen", "seen in training", "clean items"]
    assert first == ["e5", "docs", "40,000", "unknown", "25.0% (2)", "6", "ndcg@10", "0.625", "0.500"]
    assert second == ["e5", "stsb", "unknown", "unknown", "unknown", "–", "spearman", "0.800", "–"]


def test_summary_and_report_show_them(make_run) -> None:  # type: ignore[no-untyped-def]
    path = make_run()
    stage = path / "stages" / "evaluate"
    write_json(stage / "tasks.json", TASKS)
    table = read_json(stage / "table.json")
    write_json(stage / "table.json", [row | {"published": {"ndcg@10": 0.111}} if row["model"] == "bm25" else row for row in table])
    table = read_json(stage / "table.json")
    facts = {"pairs_seen": None, "tokens_seen": None, "contamination": "measured", "contaminated": SEEN, "clean_items": 30, "ndcg@10_clean": 0.0625}
    write_json(stage / "table.json", [row | facts if row["model"] == "second" else row for row in table])
    text = summary_table(path, ["ndcg@10", "recall@100"])
    assert "spearman" in text and "difference to it" in text and "0.111" in text and "e5 (prefix ablation)" in text
    assert summary_table(path, ["ndcg@10", "spearman", "recall@100"]) == text, "a headline of another task is in its own table"
    assert re.search(r"second .*  unknown \+ \d+  ", text), "what a model that does not say it has seen, and what it saw in this run"
    write_report(path, {**read_json(path / "metrics.json")})
    page = (path / "report.html").read_text(encoding="utf-8")
    assert "<h2>Other tasks</h2>" in page and "How the figures were made" in page and "12.5%" in page and "0.111" in page
    assert "What the models have seen" in page and "25.0% (2)" in page and "0.062" in page and ">unknown<" in page
