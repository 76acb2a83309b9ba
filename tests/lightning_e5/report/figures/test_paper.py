"""The paper's figures stand beside ours, variant by variant, and nowhere where there are none."""

from __future__ import annotations

import json

from lightning_e5.files.storage import write_json
from lightning_e5.report.figures.drawing import svg
from lightning_e5.report.figures.paper import paper_beside
from lightning_e5.results.ablation import AblationData
from lightning_e5.results.comparison import compare_ablation


def test_one_bar_for_each_figure_that_there_is(ablation):
    figure = paper_beside(compare_ablation(ablation))
    ours, paper = figure.axes
    assert len(ours.patches) == 2 and [bar.get_width() for bar in paper.patches] == [51.6]
    assert [text.get_text() for text in paper.texts].count("not given") == 1 and paper.get_title(loc="left") == "paper, Table 8"
    assert svg(figure).startswith("<?xml")


def test_without_the_papers_figures_there_is_no_picture(ablation):
    plan = json.loads((ablation.path / "ablation.json").read_text())
    write_json(ablation.path / "ablation.json", {**plan, "paper": None})
    assert paper_beside(compare_ablation(AblationData(ablation.path))) is None
