"""A bar's length is what it says: no bar, stacked or single, is drawn along a logarithmic axis."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from lightning_e5.files.storage import write_json
from lightning_e5.report.figures import comparison, drawing, filters, outcomes, paper, pools
from lightning_e5.results.comparison import compare_ablation
from lightning_e5.results.outcomes import Outcomes, QueryOutcome
from lightning_e5.results.pools import DataFacts, SourceCounts, TextLengths
from lightning_e5.results.run import RunData


def on_log_axes(figure: Figure) -> list[str]:
    """The panels whose bars lie along a logarithmic axis."""
    found = []
    for ax in figure.axes:
        directions = {c.orientation for c in ax.containers if isinstance(c, BarContainer)}
        scales = {"horizontal": ax.get_xscale(), "vertical": ax.get_yscale()}
        found += [ax.get_title(loc="left") for direction in directions if scales[direction] != "linear"]
    return found


def bars(figure: Figure) -> int:
    return sum(len(c.patches) for ax in figure.axes for c in ax.containers if isinstance(c, BarContainer))


@pytest.fixture
def run(make_run):
    path = make_run()
    sources = [
        {"source": name, "pairs": pairs, "ranked": pairs, "kept": kept, "kept_share": kept / pairs, "median_rank": 1, "pool": 100}
        for name, pairs, kept in (("large", 100_000, 60_000), ("small", 10, 4))
    ]
    write_json(path / "stages" / "filter" / "sources.json", {"k": 2, "pool": "global", "exact_up_to": None, "sources": sources})
    return RunData(path)


@pytest.mark.parametrize("width", [drawing.WIDTH, drawing.NARROW])
def test_a_runs_figures(run, width):
    for draw in (drawing.ndcg_intervals, lambda r, w: filters.filter_ranks(r, "filter", w), lambda r, w: filters.kept_per_source(r, "filter", w)):
        figure = draw(run, width)
        assert bars(figure) and on_log_axes(figure) == []
        assert figure.get_size_inches()[0] == width


def test_kept_and_dropped_are_stacked_to_what_there_is(run):
    shares, counts = filters.kept_per_source(run, "filter").axes
    kept, dropped = counts.containers
    assert [b.get_width() for b in kept] == [60_000, 4] and [b.get_x() + b.get_width() for b in dropped] == [100_000, 10]
    assert [b.get_x() + b.get_width() for b in shares.containers[1]] == [100, 100]
    assert [text.get_text() for text in counts.texts] == ["60,000 of 100,000", "4 of 10"]


def test_an_ablations_figures(ablation):
    compared = compare_ablation(ablation)
    for figure in (comparison.metric_bars(compared), paper.paper_beside(compared)):
        assert bars(figure) and on_log_axes(figure) == []


def test_figures_of_pools_and_of_queries():
    facts = DataFacts("pairs", (SourceCounts("a", 100_000, {"short": 900}, 99_100, 0), SourceCounts("b", 10, {"short": 5, "long": 1}, 4, 0)))
    draw = np.random.default_rng(0)
    lengths = TextLengths(draw.integers(1, 9, 50), draw.integers(9, 2000, 50), np.zeros(50, np.int32), ["a"], draw.random(50) < 0.5, 50)
    rows = tuple(QueryOutcome(f"q{i}", "", float(d), 0.5, i % 7, 0.5, "d", None, None) for i, d in enumerate(draw.random(60)))
    found = Outcomes("m", "r", "c", "ndcg@10", rows, {})
    drawn = (pools.fate_of_candidates(facts), pools.length_histograms(lengths, "pairs"), outcomes.query_by_query(found), outcomes.by_kind_of_query(found))
    for figure in drawn:
        assert bars(figure) and on_log_axes(figure) == []


def test_bars_on_a_log_axis_are_noticed():
    figure = Figure()
    ax = figure.subplots()
    ax.barh([0, 1], [1000, 10])
    ax.barh([0, 1], [100, 5])
    assert on_log_axes(figure) == []
    ax.set_title("pairs", loc="left")
    ax.set_xscale("log")
    assert on_log_axes(figure) == ["pairs"]
