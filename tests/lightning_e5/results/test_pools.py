"""A built pool's counts are those of its files, and pictures of them are drawn without a rule or source left out."""

from __future__ import annotations

import numpy as np
import pytest

from data_modules.pair_store import PairStore
from lightning_e5.files.parquet import write_parquet
from lightning_e5.files.storage import write_json
from lightning_e5.report.figures import pools as data_figures
from lightning_e5.report.figures.drawing import svg
from lightning_e5.report.tables import pools as tables
from lightning_e5.results import pools as data_facts
from lightning_e5.results.run import RunData


@pytest.fixture
def run_of_shards(make_run):
    """A run whose pairs are shards of two sources, with a filter of them."""
    path = make_run()
    stage = path / "stages" / "pairs"
    (stage / "pairs.parquet").unlink()
    sources = []
    for name, rows, text in (("forum", 5, "question 3"), ("wiki", 3, "a b c d")):
        file = f"shards/{name}/part-00000.parquet"
        texts = [f"{name} {i} is" for i in range(rows)]
        texts[0] = text
        columns = {"query": texts, "passage": [f"{t} more words" for t in texts], "source": [name] * rows, "planted": [i < 2 for i in range(rows)]}
        write_parquet(stage / file, columns)
        dropped = {"short": 7, "near duplicate": 1} if name == "forum" else {"over max_pairs_per_source": 90}
        sources.append({
            "name": name, "candidates": rows + sum(dropped.values()), "dropped": dropped, "pairs": rows, "planted": 2,
            "shards": [{"file": file, "rows": rows, "sha256": ""}],
        })  # fmt: skip
    write_json(stage / "pairs.json", {"kind": "pairs", "sources": sources, "read": [{"name": "r", "parts": 1, "counts": {"records": 106}, "bad": []}]})
    return RunData(path)


def test_counts_of_shards(run_of_shards):
    (facts,) = data_facts.data_facts(run_of_shards)
    assert facts.rules == ["over max_pairs_per_source", "short", "near duplicate"] and facts.before == {"r: records": 106}
    table = tables.pairs_left(facts)
    header, rows = table.header, table.cells
    assert header == ["source", "candidates", "dropped: over max_pairs_per_source", "dropped: short", "dropped: near duplicate", "pairs left", "injected mismatches"]
    assert rows == [["wiki", "93", "90", "0", "0", "3", "2"], ["forum", "13", "0", "7", "1", "5", "2"], ["together", "106", "90", "7", "1", "8", "4"]]
    for _, candidates, *dropped, left, _ in rows:  # every candidate has one fate
        assert int(candidates) == sum(map(int, dropped)) + int(left)


def test_lengths_go_with_the_filters_decisions(run_of_shards):
    lengths = data_facts.text_lengths(run_of_shards, "pairs")
    assert lengths.query_N.tolist() == [2, 3, 3, 3, 3, 4, 3, 3]
    assert (lengths.passage_N == lengths.query_N + 2).all() and lengths.of == 8
    assert [lengths.sources[c] for c in lengths.source_N] == ["forum"] * 5 + ["wiki"] * 3
    assert lengths.keep_N.tolist() == run_of_shards.filter_ranks("filter").keep_N.tolist()


def test_a_sample_is_rising_and_always_the_same(run_of_shards):
    store = PairStore(run_of_shards.stage("pairs"))
    rows = data_facts.sample_rows(store, 3)
    assert len(set(rows.tolist())) == 3 and (np.diff(rows) > 0).all()
    assert rows.tolist() == data_facts.sample_rows(store, 3).tolist()


def test_a_test_text_among_the_pairs_is_counted(run_of_shards):
    (found,) = data_facts.exact_overlaps(run_of_shards, "pairs")  # "question 3" is a test query
    assert (found.collection, found.pairs, found.queries, found.passages) == ("docs", 8, 1, 0)
    assert found.texts == 41


def test_the_planted_truth_in_all(make_run):
    table = tables.truth_table(RunData(make_run()).filter_ranks("filter"))
    header, rows = table.header, table.cells
    # kept: rows 0, 1, 4, 6; planted: rows 2, 3, 4
    assert rows == [["together", "8", "50.0%", "3", "66.7%", "60.0%", "75.0%"]] and len(header) == 7


def test_pictures(run_of_shards, make_run):
    (facts,) = data_facts.data_facts(run_of_shards)
    lengths = data_facts.text_lengths(run_of_shards, "pairs")
    figure = data_figures.fate_of_candidates(facts)
    bars = [patch for patch in figure.axes[0].patches]
    assert len(bars) == 2 * 4  # two sources; left, and three rules
    ends = {round(bar.get_y(), 6): 0.0 for bar in bars}
    for bar in bars:
        ends[round(bar.get_y(), 6)] += bar.get_width()
    assert list(ends.values()) == pytest.approx([100, 100])
    for drawn in (figure, data_figures.length_histograms(lengths, "pairs"), data_figures.lengths_by_source(lengths, "pairs")):
        assert svg(drawn).startswith("<?xml")
    for ax in data_figures.length_histograms(lengths, "pairs").axes:
        shares = [sum(patch.get_height() for patch in container.patches) if hasattr(container, "patches") else None for container in ax.containers]
        assert all(share is None or share == pytest.approx(100) for share in shares)


def test_no_data_stage(make_run):
    run = RunData(make_run())  # its pairs have no list of shards and no packages
    assert data_facts.data_facts(run) == []
