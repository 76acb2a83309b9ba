"""The page of an ablation is whole, escaped, needs nothing from outside, and is the same for the same runs."""

from __future__ import annotations

import base64
import re

import pytest

from lightning_e5.report.comparison_page import comparison_page, environment_facts
from lightning_e5.report.figures import comparison as comparison_figures
from lightning_e5.results.ablation import AblationData
from lightning_e5.results.comparison import compare_ablation
from tests.lightning_e5.results.ablations import make_ablation

VARIANTS = {"in_batch": 0.0, "pre_batch": -0.06, "same": 0.0}


def test_the_page_has_every_part_and_needs_nothing(tmp_path):
    paper = {"source": "Table 8 <b>", "figures": {"nDCG@10": {"in_batch": 51.6}}}
    question = "Is <script>alert(1)</script> a question?"
    failed = {"state": "failed", "exit_code": 1, "message": "error: <img src=x onerror=y>"}
    path = make_ablation(tmp_path, VARIANTS, paper=paper, question=question, unfinished={("same", 2): failed})
    page = comparison_page(compare_ablation(AblationData(path)))
    for part in ("Is &lt;script&gt;", "Held constant: data, encoder", "What pre_batch is.", "51.6", "Table 8 &lt;b&gt;", "0123abcd", "2.13.0",
                 "2 of 3 seeds", "Means with intervals", "Learning curves", "query by query", "A processor"):  # fmt: skip
        assert part in page, part
    assert "<script" not in page and "onerror=y&gt;" in page and "<img src=x" not in page
    sources = re.findall(r'(?:src|href)="([^"]{0,40})', page)
    assert len(sources) == 3 and all(s.startswith("data:image/svg+xml;base64,") for s in sources)
    for data in re.findall(r'base64,([^"]+)', page):
        assert base64.b64decode(data).startswith(b"<?xml")
    assert page == comparison_page(compare_ablation(AblationData(path)))


def test_pictures_show_every_variant_and_seed(tmp_path):
    comparison = compare_ablation(AblationData(make_ablation(tmp_path, {f"v{i}": 0.01 * i for i in range(9)})))
    bars = comparison_figures.metric_bars(comparison)
    assert [t.get_text() for t in bars.axes[0].get_yticklabels()] == [f"v{i}" for i in range(9)] and len(bars.axes) == 6
    labels = [t.get_text() for t in bars.legends[0].get_texts()]  # of all panels, not of the first alone
    assert {"baseline", "single seeds", "higher than the baseline", "no difference to the baseline shown"} <= set(labels)
    curves = comparison_figures.learning_curves(comparison)
    legends = [[t.get_text() for t in ax.get_legend().get_texts()] for ax in curves.axes]
    assert legends == [[f"v{i}" for i in range(1, 7)] + ["v0"], ["v7", "v8", "v0"]]  # the baseline in each panel
    assert curves.axes[0].get_xlabel() == "pairs seen" and "nats" in curves.axes[0].get_ylabel()
    assert len(comparison_figures.query_differences(comparison).axes) == 8


def test_the_band_reaches_from_the_lowest_to_the_highest_seed(tmp_path):
    comparison = compare_ablation(AblationData(make_ablation(tmp_path, VARIANTS)))
    axis, losses, unit = comparison_figures._curves(comparison)["same"]["pretrain"]
    assert losses.shape == (3, len(axis)) and unit == "pairs seen"
    assert losses[2].mean() - losses[0].mean() == pytest.approx(0.04, abs=0.01)  # seed 3 and seed 1 of the written logs


def test_environments_that_differ_are_all_named():
    one = {"commit": "a", "processor": "P", "gpus": [], "packages": {"torch": "2"}}
    two = {**one, "commit": "b", "uncommitted_changes": True, "gpus": ["H100", "H100"]}
    facts = environment_facts([one, two])
    assert facts == {"commit": "a; b with uncommitted changes", "processor": "P", "gpus": "none; H100, H100", "torch": "2"}
