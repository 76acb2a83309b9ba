"""The comparison claims what the queries show, flags unequal compute, and refuses what cannot be compared."""

from __future__ import annotations

import csv
import json

import pytest

from lightning_e5.errors import UserError
from lightning_e5.report.compare import BESIDE, compare
from tests.lightning_e5.results.ablations import make_ablation


def rows(path):
    with path.open(encoding="utf-8", newline="") as handle:
        return {(r["run"], r["model"]): r for r in csv.DictReader(handle)}


def test_a_planted_difference_is_found_and_equal_models_show_none(make_run, tmp_path):
    file = tmp_path / "table.csv"
    text = compare([make_run("a"), make_run("b", lift=0.1)], csv=str(file))
    table = rows(file)
    assert table["b", "second"]["verdict"] == "higher"
    assert float(table["b", "second"]["difference"]) == pytest.approx(0.1, abs=0.01)
    assert table["b", "first"]["verdict"] == "no difference shown"
    assert table["a", "second"]["difference"] == "" and "unequal compute" not in text
    assert compare([make_run("c", lift=0.1), make_run("d")]).count("lower") == 1


def test_csv_holds_full_values(make_run, tmp_path):
    path = make_run("a")
    compare([path], csv=str(tmp_path / "t.csv"))
    stored = json.loads((path / "metrics.json").read_text())
    row = rows(tmp_path / "t.csv")["a", "second"]
    assert float(row["ndcg@10"]) == stored["second/docs/ndcg@10"]
    assert (row["pairs_seen"], row["tokens_seen"], row["optimizer_steps"]) == ("420", "4200", "20")


def test_unequal_compute_is_flagged_beyond_the_tolerance(make_run, tmp_path):
    compare([make_run("a"), make_run("b", pairs_seen=340), make_run("c", pairs_seen=640)], csv=str(tmp_path / "t.csv"))
    table = rows(tmp_path / "t.csv")
    assert table["b", "second"]["unequal_compute"] == ""  # 440 to 420 pairs
    assert table["c", "second"]["unequal_compute"] == "pairs +76%; tokens +76%"
    assert table["c", "first"]["unequal_compute"] == ""


def test_metrics_are_chosen_by_name_or_end(make_run):
    runs = [make_run("a"), make_run("b")]
    text = compare(runs, metrics=["second/docs/recall@100"])
    assert "recall@100" in text and "ndcg@10" not in text and "first" not in text.split("Difference")[0]
    text = compare(runs, metrics=["filter/recall", "precision"])
    assert "0.600" in text and "0.750" in text and "second" not in text
    with pytest.raises(UserError, match=r"--metric ndgc@10: no run has it; did you mean 'ndcg@10'\?"):
        compare(runs, metrics=["ndgc@10"])


def test_figures_on_other_test_sets_stand_apart(make_run, tmp_path):
    first, file = make_run("a"), tmp_path / "t.csv"
    text = compare([first, make_run("b", queries=30, lift=0.2)], csv=str(file))
    assert "b was evaluated on 30 queries of 'docs', a on 40, of which 30 are common: no differences are given." in text
    assert {(row["collection"], row["difference"], row["verdict"]) for row in rows(file).values()} == {("docs", "", ""), ("docs (another test)", "", "")}
    text = compare([first, make_run("c", collection="other")], csv=str(file))
    assert "c was evaluated on other, a on docs, runs without a common collection: no differences are given." in text
    assert {row["difference"] for row in rows(file).values()} == {""}
    other = make_run("d", lift=0.2)
    (other / "stages/pairs/test/corpus.jsonl").write_text('{"_id": "d", "text": "another"}\n')
    text = compare([first, other, make_run("e", lift=0.2)], csv=str(file))
    assert "d was evaluated on another 'docs' than a (corpus.jsonl differ): no differences" in text
    table = rows(file)
    assert table["d", "second"]["verdict"] == "" and table["e", "second"]["verdict"] == "higher"


def test_it_begins_with_what_differs(make_run, tmp_path):
    file, page = tmp_path / "t.csv", tmp_path / "t.html"
    a, b = make_run("a"), make_run("b", pairs_seen=1640)
    text = compare([a, b], csv=str(file), html=str(page))
    assert text.splitlines()[0].split() == ["differs", "in", "key", "a", "b"]
    assert text.splitlines()[2].split() == ["training", "tuned:", "pairs", "seen", "320", "1,640"]
    assert (tmp_path / "t_differs.csv").read_text().splitlines()[:2] == ["differs in,key,a,b", "training,tuned: pairs seen,320,1640"]
    assert page.read_text().index("What differs") < page.read_text().index("tuned: pairs seen") < page.read_text().index("Results")
    assert compare([a, make_run("c")]).startswith("Nothing differs in configuration, versions, machine, data and training.\n\nrun")
    assert not compare([a]).startswith("Nothing")


def test_files_without_a_name_lie_beside_the_runs(make_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a, b = make_run("a"), make_run("b")
    written = []
    compare([a, b], csv=BESIDE, html=BESIDE, say=written.append)
    assert written == [f"{a.parent / name}: written" for name in ("compare_a_b.csv", "compare_a_b_differs.csv", "compare_a_b.html")]
    directory = make_ablation(tmp_path / "runs", {"in_batch": 0.0, "queue": -0.1}, queries=40)
    compare([directory], csv=BESIDE, latex=BESIDE, export=BESIDE)
    assert {p.name for p in directory.iterdir() if "comparison" in p.name} == {"comparison.csv", "comparison.tex"}
    assert (directory / "results" / "table.csv").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


def test_what_cannot_be_compared_is_refused(make_run, tmp_path):
    first = make_run("a")
    with pytest.raises(UserError, match="given twice"):
        compare([first, first])
    with pytest.raises(UserError, match="unfinished"):
        compare([first, make_run("b", finished=False)])
    with pytest.raises(UserError, match="is a directory"):
        compare([first], csv=str(tmp_path))


def test_runs_of_one_name_are_told_apart_by_path(make_run):
    one, two = make_run("a"), make_run("a", folder="elsewhere")
    text = compare([one, two])
    assert str(one) in text and str(two) in text


def test_html_is_escaped_and_needs_nothing(make_run, tmp_path):
    file = tmp_path / "t.html"
    compare([make_run("a", collection="<script>x")], html=str(file))
    page = file.read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;x" in page and "src=" not in page.replace("img-src", "")


def test_finished_smoke_run_compares_with_itself_under_another_name(smoke_run, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(smoke_run, copy)
    text = compare([smoke_run, copy])
    assert "no difference shown" in text and "higher" not in text and "lower" not in text
