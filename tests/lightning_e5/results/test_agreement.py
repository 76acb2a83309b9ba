"""A difference agrees with the paper's where it is shown and has its sign, and only a difference that is shown tells anything."""

from __future__ import annotations

import csv
import io
import json
from itertools import product

import pytest

from lightning_e5.errors import UserError
from lightning_e5.evaluation.statistics.decision import NO_DIFFERENCE, NO_INTERVAL
from lightning_e5.report.comparison_export import results
from lightning_e5.report.tables.comparison import as_csv, as_text
from lightning_e5.results.ablation import AblationData
from lightning_e5.results.agreement import agreement, agreements, direction
from lightning_e5.results.comparison import compare_ablation
from tests.lightning_e5.results.ablations import NDCG, RECALL, make_ablation

VARIANTS = {"base": 0.0, "worse": -0.06, "better": 0.06, "same": 0.0, "unknown": -0.06}
#: ``worse`` falls in the paper too, ``better`` falls there, and of ``unknown`` it has no figure.
COLUMN = {"base": 50.0, "worse": 40.0, "better": 45.0, "same": 30.0}
SHOWN_SIGN = {"higher": 1, "lower": -1, NO_DIFFERENCE: 0, NO_INTERVAL: 0, "": 0}


@pytest.mark.parametrize("ours, papers", list(product(SHOWN_SIGN, (-8.3, 0.0, 0.1))))
def test_the_direction_is_the_product_of_the_signs(ours, papers):
    product_of_signs = SHOWN_SIGN[ours] * (0 if papers == 0 else papers / abs(papers))
    assert direction(ours, 50.0 + papers, 50.0) == {1: "agrees", -1: "disagrees", 0: "cannot be told"}[product_of_signs]


def test_every_variant_with_a_figure_of_the_paper_is_told(tmp_path):
    comparison = compare_ablation(AblationData(make_ablation(tmp_path, VARIANTS, paper={"figures": {"nDCG": COLUMN, "other": {"base": 1, "worse": 2}}})))
    rows = {row.name: row for row in comparison.rows}
    told = {name: agreement(comparison, row, NDCG) for name, row in rows.items()}
    assert told == {"base": None, "worse": "agrees", "better": "disagrees", "same": "cannot be told", "unknown": None}
    assert all(agreement(comparison, row, RECALL) is None for row in comparison.rows)  # only the headline stands beside a column
    text = as_text(comparison)
    assert "difference to base: agrees for worse; disagrees for better; cannot be told for same." in text
    line = next(line for line in text.splitlines() if line.startswith("better "))
    assert "45 (-5)" in line and line.rstrip().endswith("disagrees")


def test_metrics_stand_beside_the_columns_that_the_file_names(tmp_path):
    paper = {"figures": {"nDCG": COLUMN, "recall": {"base": 50.0, "worse": 60.0, "better": 70.0}}, "beside": {RECALL: "recall"}}
    comparison = compare_ablation(AblationData(make_ablation(tmp_path, VARIANTS, paper=paper)))
    assert list(agreements(comparison)) == [("worse", RECALL, "disagrees"), ("better", RECALL, "agrees")]
    told = {(r["variant"], r["metric"]): r["papers_direction"] for r in csv.DictReader(io.StringIO(as_csv(comparison)))}
    assert told["worse", RECALL] == "disagrees" and told["worse", NDCG] == "" and told["base", RECALL] == ""
    kept = json.loads(json.dumps(results(comparison)))["variants"]
    assert kept["better"]["metrics"][RECALL]["papers_direction"] == "agrees" and kept["better"]["metrics"][NDCG]["papers_direction"] is None


def test_variants_are_compared_with_each_other_where_the_file_asks_for_it(tmp_path):
    two = [["better", "worse"], ["same", "worse"], ["unknown", "worse"]]
    path = make_ablation(tmp_path, VARIANTS, paper={"figures": {"nDCG": COLUMN}}, report=[NDCG], also_compare=two)
    comparison = compare_ablation(AblationData(path))
    rows = {row.name: row for row in comparison.rows}
    better, _, unknown = comparison.further
    values = {name: row.cells[NDCG].per_query.mean(0) for name, row in rows.items()}
    assert better.cells[NDCG].difference.mean == pytest.approx((values["better"] - values["worse"]).mean())
    assert better.cells[NDCG].decision == "higher" and unknown.cells[NDCG].decision == NO_DIFFERENCE
    # The paper has better above worse (45, 40) and same below it (30), and nothing of unknown.
    assert [agreement(comparison, row, NDCG) for row in comparison.further] == ["agrees", "disagrees", None]
    p = [cell.difference.p_value for row in (*comparison.rows, *comparison.further) if (cell := row.cells[NDCG]).difference]
    smallest = min(range(7), key=lambda i: p[i])
    held = [cell.p_holm for row in (*comparison.rows, *comparison.further) if (cell := row.cells[NDCG]).difference]
    assert held[smallest] == pytest.approx(min(1.0, 7 * p[smallest]))  # one family of seven tests
    text = as_text(comparison)
    assert "Further differences" in text and "agrees for worse, better to worse; disagrees for better, same to worse" in text
    kept = json.loads(json.dumps(results(comparison)))["also_compared"]
    assert [(row["variant"], row["reference"]) for row in kept] == [tuple(names) for names in two] and kept[0]["metrics"][NDCG]["verdict"] == "higher"


def test_a_pair_of_other_variants_in_the_plan_is_refused(tmp_path):
    path = make_ablation(tmp_path, VARIANTS, also_compare=[["better", "wurse"]])
    with pytest.raises(UserError, match=r"also_compare: .*'wurse'.* is no pair of variants"):
        AblationData(path)


def test_without_the_papers_figures_nothing_is_said_of_it(tmp_path):
    for number, paper in enumerate((None, {"source": "Appendix", "figures": {}}, {"figures": {"nDCG": {"worse": 40.0}}})):
        comparison = compare_ablation(AblationData(make_ablation(tmp_path / str(number), {"base": 0.0, "worse": -0.06}, paper=paper)))
        assert list(agreements(comparison)) == [] and "Beside the paper" not in as_text(comparison)
