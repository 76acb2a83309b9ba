"""The filter's section: with few and many sources, with and without truth, capped, in rounds; text stays text."""

from __future__ import annotations

import functools
import operator
import re
from pathlib import Path

import numpy as np
import pytest

from data_modules.pair_store import shard_name
from lightning_e5.errors import UserError
from lightning_e5.files.parquet import write_parquet
from lightning_e5.files.storage import write_json
from lightning_e5.report.figures import drawing as figures
from lightning_e5.report.figures import filters as filter_figures
from lightning_e5.report.filter_report import OPEN_SOURCES, filter_section
from lightning_e5.report.html import fragment
from lightning_e5.report.run_page import report_page
from lightning_e5.results.run import RunData

ATTACK = "</td><script>alert(1)</script> $x^2$"


def filtered(run: Path, *, sources: int, truth: bool = True, exact_up_to: int | None = None, round_two: bool = False, sharded: bool = True) -> RunData:
    """The run with another filter: ``sources`` sources of 20 pairs and more."""
    draw = np.random.default_rng(0)
    (run / "stages" / "pairs" / "pairs.parquet").unlink()
    listed, rows, all_ranks, all_columns = [], [], [], []
    for number in range(sources):
        name, count = (ATTACK if number == 0 else f"source/{number}"), 20 + number
        rank = np.maximum(1, (10 ** draw.uniform(-1, 4, count)).astype(np.int64))
        planted = rank > 500
        if exact_up_to is not None:
            rank = np.minimum(rank, exact_up_to + 1)
        if round_two:
            rank[::4] = 0
        columns = {
            "query": [f"{ATTACK} q{number}-{i}" for i in range(count)],
            "passage": [f"passage {number}-{i} " + "long " * 90 for i in range(count)],
            "source": [name] * count,
        } | ({"planted": planted.tolist()} if truth else {})
        file = shard_name(name, 0)
        if sharded:
            write_parquet(run / "stages" / "pairs" / file, columns)
        facts = {"candidates": count, "dropped": {}, "pairs": count, "planted": int(planted.sum())}
        listed.append({"name": name, "shards": [{"file": file, "rows": count}], **facts})
        keep = (rank <= 2) & (rank > 0)
        row = {"source": name, "pairs": count, "ranked": int((rank > 0).sum()), "kept": int(keep.sum()), "kept_share": float(keep.mean())}
        row |= {"median_rank": int(np.median(rank)), "pool": 100}
        rows.append(row | ({"planted": 1, "precision": 0.5, "recall": 0.25, "removed_mismatches": 1.0, "kept_pairs": 0.1} if truth else {}))
        all_ranks.append(rank)
        all_columns.append(columns)
    if sharded:
        write_json(run / "stages" / "pairs" / "pairs.json", {"sources": listed, "read": []})
    else:
        write_parquet(run / "stages" / "pairs" / "pairs.parquet", {k: functools.reduce(operator.iadd, (c[k] for c in all_columns), []) for k in all_columns[0]})
    rank = np.concatenate(all_ranks)
    write_parquet(run / "stages" / "filter" / "ranks.parquet", {"rank": rank, "keep": (rank <= 2) & (rank > 0)})
    write_json(run / "stages" / "filter" / "sources.json", {"k": 2, "pool": "global", "exact_up_to": exact_up_to, "sources": rows})
    return RunData(run)


@pytest.mark.parametrize("sharded", [True, False])
def test_kept_of_each_source_and_samples_side_by_side(make_run, sharded):
    run = filtered(make_run(), sources=3, sharded=sharded)
    page = fragment([filter_section(run, "filter")])
    for row in run.filter_ranks("filter").sources:
        assert f'<td class="number">{row["kept"]}</td><td class="number">{row["kept_share"]:.1%}</td>' in page
    assert page.count("<img ") == 2 and page.count("data:image/svg+xml") == 4
    assert "source/2" in page and "injected mismatch" in page and "precision" in page
    samples = run.filter_samples("filter")
    assert [s.keep for s in samples] == [True] * 5 + [False] * 5
    assert all(f"passage {s.query.split(' q')[1]} " in s.passage and (s.rank <= 2) == s.keep for s in samples)
    assert all(s.source in page.replace("&lt;", "<").replace("&gt;", ">") for s in samples)
    assert "<script" not in page and "&lt;script&gt;" in page


@pytest.mark.parametrize("sources", [1, 2, 90])
@pytest.mark.parametrize("truth", [True, False])
def test_any_number_of_sources_with_and_without_truth(make_run, sources, truth):
    run = filtered(make_run(), sources=sources, truth=truth)
    page = report_page(run)
    assert ("Kept of each source" in page) == (sources > 1)
    assert ("the other 50 sources" in page) == (sources == 90)
    assert "no injected label noise" in page or truth
    assert "<script" not in page
    section = fragment([filter_section(run, "filter")])
    (opened,) = re.findall(r"Kept of each source</h2>.*?</table>", section, re.S) or [""]
    named = set(re.findall(r"<td>(source/\d+)</td>", opened))
    assert len(named) == min(sources, OPEN_SOURCES) - (1 if sources in (1, 2) else 0)  # source 0 is the smallest
    assert ">precision</th>" in section or not truth or sources == 1


def test_capped_ranks_are_one_class_and_earlier_rounds_are_named(make_run):
    run = filtered(make_run(), sources=2, exact_up_to=100, round_two=True)
    page = fragment([filter_section(run, "filter")])
    missing = int((run.filter_ranks("filter").rank_N == 0).sum())
    assert "Ranks were counted up to 100" in page and f"{missing} pairs were not ranked" in page
    assert all(s.rank > 0 for s in run.filter_samples("filter"))


def test_pictures_do_not_change_and_one_source_has_none(make_run):
    run = filtered(make_run(), sources=5)
    drawn = [figures.svg(draw(run, "filter")) for draw in (filter_figures.kept_per_source, filter_figures.filter_ranks) for _ in range(2)]
    assert drawn[0] == drawn[1] and drawn[2] == drawn[3]
    assert filter_figures.kept_per_source(filtered(make_run("other"), sources=1), "filter") is None


def test_ranks_of_other_pairs_are_refused(make_run):
    run = filtered(make_run(), sources=2)
    write_parquet(run.path / "stages" / "filter" / "ranks.parquet", {"rank": np.ones(3, np.int64), "keep": [True] * 3})
    with pytest.raises(UserError, match="has 3 rows, its pairs 41"):
        run.filter_ranks("filter")


def test_rank_classes_hold_every_rank_once_and_break_at_k_and_the_cap():
    for k in (1, 2, 3, 4, 7, 10, 50):
        for largest, cap in ((1, None), (2, None), (5, None), (99, None), (100, None), (12345, None), (101, 101), (51, 51), (1001, 1001)):
            edges = filter_figures._rank_edges(k, largest, cap)
            assert edges == sorted(set(edges)) and edges[0] == 1 and edges[-1] > largest and k + 1 in edges
            assert cap is None or cap in edges
