"""The paper's figures stand beside ours, variant by variant, and nowhere where there are none."""

from __future__ import annotations

import json

import pytest

from lightning_e5.files.storage import write_json
from lightning_e5.report.figures.drawing import svg
from lightning_e5.report.figures.paper import paper_beside
from lightning_e5.results.ablation import AblationData
from lightning_e5.results.comparison import compare_ablation

METRIC = "second/docs/ndcg@10"


@pytest.fixture
def ablation(make_run, tmp_path):
    """Two variants of which the paper names one."""
    folder = tmp_path / "ablations" / "lift-laptop"
    for name, lift in (("plain", 0.0), ("lifted", 0.2)):
        make_run(f"{name}-seed1", lift=lift, folder="ablations/lift-laptop")
    write_json(folder / "ablation.json", {
        "ablation": "lift", "scale": "laptop", "file": "lift.yaml", "question": "Does a lift help?", "held_constant": [], "baseline": "plain",
        "report": [METRIC], "seeds": [1], "paper": {"source": "Table 8", "note": "", "figures": {"nDCG@10": {"lifted": 51.6}}},
        "variants": {n: {"description": "", "runs": {"1": f"{n}-seed1"}} for n in ("plain", "lifted")},
    })  # fmt: skip
    return folder


def test_one_bar_for_each_figure_that_there_is(ablation):
    figure = paper_beside(compare_ablation(AblationData(ablation)))
    ours, paper = figure.axes
    assert len(ours.patches) == 2 and [bar.get_width() for bar in paper.patches] == [51.6]
    assert [text.get_text() for text in paper.texts].count("not given") == 1 and paper.get_title(loc="left") == "paper, Table 8"
    assert svg(figure).startswith("<?xml")


def test_without_the_papers_figures_there_is_no_picture(ablation):
    plan = json.loads((ablation / "ablation.json").read_text())
    write_json(ablation / "ablation.json", {**plan, "paper": None})
    assert paper_beside(compare_ablation(AblationData(ablation))) is None
