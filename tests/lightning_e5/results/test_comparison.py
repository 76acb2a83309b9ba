"""An ablation's comparison says what its runs show, keeps what is missing in sight, and refuses what cannot be compared."""

from __future__ import annotations

import csv
import io
import json
import os
import time

import pytest

from lightning_e5.__main__ import main
from lightning_e5.errors import UserError
from lightning_e5.evaluation.statistics.decision import NO_DIFFERENCE, NO_INTERVAL
from lightning_e5.report.comparison_export import export_comparison
from lightning_e5.report.tables.comparison import as_csv, as_latex, as_text
from lightning_e5.results import run as run_data
from lightning_e5.results.ablation import AblationData
from lightning_e5.results.comparison import compare_ablation
from tests.lightning_e5.results.ablations import NDCG, PRECISION, RECALL, make_ablation

PAPER = {
    "source": "Table 8", "note": "mean nDCG@10 of six sets",
    "figures": {"nDCG@10 (6 sets)": {"in_batch": 51.6, "pre_batch": 43.3}},
}  # fmt: skip
VARIANTS = {"in_batch": 0.0, "pre_batch": -0.06, "same": 0.0}


def csv_rows(text: str) -> dict[tuple[str, str], dict[str, str]]:
    return {(r["variant"], r["metric"]): r for r in csv.DictReader(io.StringIO(text))}


def failing(capsys, *arguments: str) -> str:
    assert main(["compare", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_a_planted_difference_is_found_and_an_equal_variant_shows_none(tmp_path):
    comparison = compare_ablation(AblationData(make_ablation(tmp_path, VARIANTS, paper=PAPER)))
    cells = {row.name: row.cells for row in comparison.rows}
    assert cells["pre_batch"][NDCG].decision == "lower" and cells["pre_batch"][NDCG].p_holm < 0.01
    assert cells["pre_batch"][NDCG].difference.mean == pytest.approx(-0.06, abs=0.015)
    assert cells["same"][NDCG].decision == NO_DIFFERENCE and cells["in_batch"][NDCG].decision == ""
    values = cells["same"][NDCG].per_seed
    assert cells["same"][NDCG].mean.mean == pytest.approx(sum(values.values()) / 3) and len(set(values.values())) == 3
    assert cells["same"][PRECISION].per_query is None and cells["same"][PRECISION].difference.mean == pytest.approx(0)
    text = as_text(comparison)
    assert "51.6" in text and "43.3 (-8.3)" in text and "Table 8; mean nDCG@10" in text and "unequal" not in text.lower()
    assert text.splitlines()[0] == "negatives (laptop): Do in-batch negatives beat a queue?"
    assert "held constant: data, encoder" in text and "3 of 3 seeds" in text


def test_csv_holds_full_values(tmp_path):
    path = make_ablation(tmp_path, VARIANTS, pairs={"pre_batch": 6400}, paper=PAPER)
    comparison = compare_ablation(AblationData(path))
    row = csv_rows(as_csv(comparison))["pre_batch", NDCG]
    stored = json.loads((path / "pre_batch-seed2/metrics.json").read_text())
    assert float(row["seed_2"]) == stored[NDCG] and row["paper: nDCG@10 (6 sets)"] == "43.3"
    assert float(row["difference"]) == comparison.rows[1].cells[NDCG].difference.mean
    assert (row["pairs_seen"], row["tokens_seen"], row["optimizer_steps"], row["seconds"]) == ("6400.0", "320000.0", "20.0", "63.0")
    assert row["unequal_compute"] == "pairs +100%; tokens +100%" and "unequal compute (pairs +100%" in as_text(comparison)
    assert csv_rows(as_csv(comparison))["same", NDCG]["unequal_compute"] == ""


def test_missing_seeds_and_failed_variants_stay_in_sight(tmp_path):
    failed = {"state": "failed", "exit_code": 1, "message": "error: out of memory", "seconds": 3.0}
    path = make_ablation(
        tmp_path, VARIANTS | {"broken": 0.1}, skipped={"large": "needs a GPU"},
        unfinished={("same", 3): {"state": "running"}, **{("broken", s): failed for s in (1, 2, 3)}},
    )  # fmt: skip
    comparison = compare_ablation(AblationData(path))
    text, rows = as_text(comparison), csv_rows(as_csv(comparison))
    assert "2 of 3 seeds" in text and "0 of 3 seeds" in text and "broken: 0 of 3 seeds finished; seeds 1, 2, 3 failed: error: out of memory." in text
    assert "same: 2 of 3 seeds finished; seed 3 running." in text and "large: not run at the scale laptop: needs a GPU." in text
    assert rows["same", NDCG]["seeds_finished"] == "2" and rows["same", NDCG]["seed_3"] == ""
    assert rows["broken", NDCG]["mean"] == "" and rows["broken", NDCG]["unfinished"].startswith("seeds 1, 2, 3 failed")
    assert "2 of 3" in as_latex(comparison) and "0 of 3" in as_latex(comparison)


def test_one_seed_says_that_its_noise_is_left_out(tmp_path):
    comparison = compare_ablation(AblationData(make_ablation(tmp_path, VARIANTS, seeds=[1])))
    text = as_text(comparison)
    assert "noise of the training seed is not in the intervals" in text and "intervals over queries" in text
    assert comparison.rows[1].cells[PRECISION].decision == NO_INTERVAL and comparison.rows[1].cells[PRECISION].mean.low is None
    assert comparison.rows[1].cells[NDCG].decision == "lower"


def test_metrics_are_chosen_by_name_or_end(tmp_path, capsys):
    path = str(make_ablation(tmp_path, VARIANTS, report=[NDCG]))
    assert main(["compare", path, "--metric", "recall@100", "--metric", PRECISION]) == 0
    text = capsys.readouterr().out
    assert RECALL in text and PRECISION in text and NDCG not in text
    assert "--metric ndgc@10: no finished run has it; did you mean 'ndcg@10'?" in failing(capsys, path, "--metric", "ndgc@10")
    bad = make_ablation(tmp_path / "b", VARIANTS, report=["e5-pt/docs/ndcg@11"])
    assert "report: e5-pt/docs/ndcg@11: no finished run has it; did you mean" in failing(capsys, str(bad))


def test_what_cannot_be_compared_is_refused(tmp_path, capsys):
    gone = {("in_batch", s): {"state": "failed", "exit_code": 1, "message": "error: x"} for s in (1, 2)}
    path = make_ablation(tmp_path, VARIANTS, seeds=[1, 2], unfinished=gone)
    assert "baseline 'in_batch' has no finished run (seed 1 failed: error: x; seed 2 failed" in failing(capsys, str(path))
    none = make_ablation(tmp_path / "none", {"a": 0.0}, seeds=[1], unfinished={("a", 1): {"state": "waiting"}})
    assert "no run of the ablation is finished" in failing(capsys, str(none))
    assert "neither a run directory" in failing(capsys, str(tmp_path))
    (tmp_path / "x.yaml").write_text("name: x\n")
    assert "is neither a run directory nor an ablation" in failing(capsys, str(tmp_path / "x.yaml"))
    assert "no such run directory, ablation" in failing(capsys, str(tmp_path / "absent"))
    run = str(path / "same-seed1")
    assert "is an ablation; it is compared alone" in failing(capsys, run, str(path))
    assert "only scale=... and runs_dir=... may stand" in failing(capsys, str(path), run)
    assert "goes with an ablation's YAML" in failing(capsys, str(path), "scale=laptop")
    assert "go with one ablation's YAML" in failing(capsys, run, "scale=laptop")
    assert "--latex: is of an ablation" in failing(capsys, run, "--latex", str(tmp_path / "t.tex"))
    assert "is a directory" in failing(capsys, run, "--latex", str(tmp_path))


def test_other_tests_are_refused(tmp_path, capsys):
    path = make_ablation(tmp_path, VARIANTS)
    manifest = path / "same-seed2/stages/pairs/manifest.json"
    content = json.loads(manifest.read_text())
    content["files"]["test/corpus.jsonl"] = "0" * 64
    manifest.unlink()
    manifest.write_text(json.dumps(content))
    assert "same-seed2 was evaluated on another 'docs' than in_batch-seed1 (corpus.jsonl differ)" in failing(capsys, str(path))
    shorter = make_ablation(tmp_path / "b", VARIANTS)
    (shorter / "same-seed1/stages/evaluate/e5-pt/docs/per_query.parquet").unlink()
    few = make_ablation(tmp_path / "c", VARIANTS, queries=50)
    os.link(few / "same-seed1/stages/evaluate/e5-pt/docs/per_query.parquet", shorter / "same-seed1/stages/evaluate/e5-pt/docs/per_query.parquet")
    assert "same-seed1 was evaluated on 50 queries of 'docs', in_batch-seed1 on 200" in failing(capsys, str(shorter))


def test_a_yaml_with_scale_names_the_ablation(tmp_path, capsys):
    make_ablation(tmp_path / "runs", VARIANTS, scale="one_gpu")
    file = tmp_path / "negatives.yaml"
    file.write_text("ablation: negatives\nscale: laptop\nscales: {laptop: {}, one_gpu: {}}\n")
    assert main(["compare", str(file), "scale=one_gpu", f"runs_dir={tmp_path / 'runs'}", "--csv", str(tmp_path / "t.csv")]) == 0
    assert "negatives (one_gpu)" in capsys.readouterr().out and ("same", NDCG) in csv_rows((tmp_path / "t.csv").read_text())


def test_latex_is_a_booktabs_table_with_everything_escaped(tmp_path):
    comparison = compare_ablation(AblationData(make_ablation(tmp_path, {"a_b": 0.0, "50%_&": -0.1}, paper={"figures": {"x_1 & $": {"a_b": 1}}})))
    text = as_latex(comparison)
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 3 and len({line.replace(r"\&", "").count(" & ") for line in rows}) == 1
    assert rows[0].startswith("variant & seeds & e5-pt/docs/ndcg@10 & ") and r"x\_1 \& \$" in rows[0]
    assert rows[1].startswith(r"a\_b & 3 & 0.") and r"$\pm$" in rows[1] and rows[2].startswith(r"50\%\_\&") and r"$^{*}$" in rows[2]
    assert [w for w in (r"\toprule", r"\midrule", r"\bottomrule") if w not in text] == []


def test_exported_files_are_equal_for_equal_input(tmp_path):
    path = make_ablation(tmp_path, VARIANTS, paper=PAPER)
    export_comparison(compare_ablation(AblationData(path)), tmp_path / "one")
    export_comparison(compare_ablation(AblationData(path)), tmp_path / "two")
    names = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert names == ["bars.png", "results.json", "table.csv"]
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes() for n in names)
    results = json.loads((tmp_path / "one/results.json").read_text())
    cell = results["variants"]["pre_batch"]["metrics"][NDCG]
    assert cell["verdict"] == "lower" and len(cell["per_seed"]) == 3 and cell["queries"] == 200 and cell["difference"]["seed_noise"]
    assert results["made_with"]["commit"] == "0123abcd" and results["paper"]["source"] == "Table 8"
    assert str(tmp_path) not in (tmp_path / "one/results.json").read_text()
    with pytest.raises(UserError, match="is a file"):
        export_comparison(compare_ablation(AblationData(path)), tmp_path / "one/table.csv")


def test_a_hundred_runs_are_read_once_and_their_collection_is_not_hashed_again(tmp_path, monkeypatch):
    path = make_ablation(tmp_path, {f"v{i:02}": 0.002 * i for i in range(34)}, queries=100)
    hashed, parquet = [], []
    monkeypatch.setattr(run_data, "sha256_file", lambda p: hashed.append(p) or "x")
    read = run_data.read_parquet
    monkeypatch.setattr(run_data, "read_parquet", lambda p, c: parquet.append((p, *c)) or read(p, c))
    start = time.monotonic()
    comparison = compare_ablation(AblationData(path))
    assert len(comparison.rows) == 34 and as_text(comparison)
    assert time.monotonic() - start < 20  # about 1 s on an idle machine
    assert hashed == [] and len(parquet) == len(set(parquet)) == 2 * 102
    start = time.monotonic()
    runs = [str(path / f"v{i:02}-seed{s}") for i in range(34) for s in (1, 2, 3)]
    parquet.clear()
    assert main(["compare", *runs[:100]]) == 0
    assert time.monotonic() - start < 20
    assert hashed == [] and len(parquet) == len(set(parquet)) <= 200


def test_files_outside_the_runs_are_hashed_once(tmp_path, monkeypatch):
    path = make_ablation(tmp_path, {"a": 0.0, "b": 0.0})
    for run in path.glob("*-seed*"):
        config = run / "config.yaml"
        config.write_text(config.read_text().replace("docs: pairs/test", f"docs: path:{path}/shared/test"))
    hashed, real = [], run_data.sha256_file
    monkeypatch.setattr(run_data, "sha256_file", lambda p: hashed.append(p) or real(p))
    compare_ablation(AblationData(path))
    assert len(hashed) == 3
