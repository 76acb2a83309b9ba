"""The report says what the run's files say, needs nothing else, and shows text as text."""

from __future__ import annotations

import itertools
import re
import shutil

import lxml.html
import pytest
import yaml

from lightning_e5.errors import UserError
from lightning_e5.files.storage import read_json, write_json
from lightning_e5.report.run_page import OPEN_BARS, OPEN_ROWS, write_report
from lightning_e5.results.durations import duration

ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)> $x^2$"


def report(path, metrics=()):
    write_report(path, dict(metrics))
    return (path / "report.html").read_text(encoding="utf-8")


def test_report_shows_results_filter_figures_and_provenance(make_run):
    page = report(make_run(finished=False))
    assert "no difference shown" in page and "the reference" in page
    assert "precision 75.0%" in page.lower() and "recall 60.0%" in page and "67.0%" in page
    assert page.count(' src="data:image/svg+xml;base64,') == 4
    assert "injected mismatch" in page and "abc with uncommitted changes" in page and "1 min 01 s" in page
    assert "keep: filter/ranks.parquet" in page


def opened(page: str) -> lxml.html.HtmlElement:
    """What stands outside of all fold-outs."""
    tree = lxml.html.fromstring(page)
    for details in tree.xpath("//details[not(ancestor::details)]"):
        details.drop_tree()
    return tree


def headings(tree: lxml.html.HtmlElement) -> list[str]:
    return [heading.text_content() for heading in tree.iter("h2")]


def test_what_it_is_the_table_and_the_figures_that_decide_are_open(make_run):
    page = report(make_run())
    tree = opened(page)
    assert headings(tree) == ["Results", "The filter (filter)"]
    assert [p.text_content() for p in tree.xpath("//body/p")][:2] == ["A test.", "Seed 1, 5 stages, 5 min 05 s in all, peak memory 0.5 GB."]
    assert [image.get("alt") for image in tree.iter("img")] == ["nDCG@10 of each model with its 95% interval", "The ranks of pairs among the pool"]
    assert len(tree.xpath("//table")) == 1 and not tree.xpath("//pre")
    folded = [heading for heading in headings(lxml.html.fromstring(page)) if heading not in headings(tree)]
    assert {"Training", "Cosines", "Time and memory", "Environment", "Configuration", "Samples of kept and dropped pairs"} <= set(folded)


def test_a_small_screen_gets_figures_of_its_own_width(make_run):
    for image in opened(report(make_run())).iter("img"):
        (source,) = image.xpath("ancestor::picture//source")
        assert source.get("media") == "(max-width: 640px)" and source.get("srcset") != image.get("src")


@pytest.mark.parametrize("collections", [2, 5, 6, 30])
def test_the_page_stays_short_however_much_was_evaluated(make_run, collections):
    path = make_run(finished=False)
    stage = path / "stages" / "evaluate"
    rows, metrics = read_json(stage / "table.json"), read_json(stage / "metrics.json")
    names = [f"docs{i}" for i in range(collections)]
    write_json(stage / "table.json", [row | {"collection": name} for name in names for row in rows])
    metrics = {key.replace("/docs/", f"/{name}/"): value for name in names for key, value in metrics.items()}
    write_json(stage / "metrics.json", metrics)
    for name, model in itertools.product(names, ("bm25", "first", "second")):
        shutil.copytree(stage / model / "docs", stage / model / name, ignore=shutil.ignore_patterns("cosines.parquet"))
    page = report(path, metrics)
    tree = opened(page)
    assert len(tree.xpath("//tr")) - 1 == min(3 * collections, OPEN_ROWS)
    assert len(list(tree.iter("img"))) == 1 + (3 * collections <= OPEN_BARS)
    assert len(lxml.html.fromstring(page).xpath("//table[contains(., 'recall@100')]//tr[td]")) == 3 * collections  # none is lost
    assert (f"{3 * collections - OPEN_ROWS} more rows" in page) == (3 * collections > OPEN_ROWS)


def test_where_nothing_was_evaluated_or_filtered_the_losses_are_open(make_run):
    path = make_run()
    config = yaml.safe_load((path / "config.yaml").read_text())
    for name in ("evaluate", "filter"):
        shutil.rmtree(path / "stages" / name)
        del config["stages"][name]
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    tree = opened(report(path))
    assert headings(tree) == ["Training"] and len(list(tree.iter("img"))) == 1


def test_report_needs_nothing_from_elsewhere(make_run):
    page = report(make_run())
    assert not re.search(r'(?:src|srcset|href)="(?!data:)', page)
    assert "<script" not in page and "@import" not in page and "url(" not in page


def test_text_stays_text(make_run):
    page = report(make_run(text=ATTACK, description=ATTACK, collection="a<b>$c"))
    assert "<script" not in page and "<img src=x" not in page and "&lt;script&gt;" in page
    assert "a&lt;b&gt;$c" in page and "<b>" not in page


@pytest.mark.parametrize(
    "gone", [["filter"], ["evaluate"], ["noisy", "tuned"], ["filter", "evaluate", "noisy", "tuned"]]
)
def test_report_works_without_a_kind_of_stage(make_run, gone):
    path = make_run()
    config = yaml.safe_load((path / "config.yaml").read_text())
    for name in gone:
        shutil.rmtree(path / "stages" / name)
        del config["stages"][name]
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    page = report(path)
    assert ("Results" in page) == ("evaluate" not in gone)
    assert ("The filter" in page) == ("filter" not in gone)
    assert ("<h2>Training" in page) == ("noisy" not in gone)


def test_report_of_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no config\.yaml"):
        write_report(tmp_path, {})


def test_durations():
    assert [duration(s) for s in (None, 0.04, 59.9, 60, 3599.7, 7380)] == [
        "–", "0.0 s", "59.9 s", "1 min 00 s", "1 h 00 min", "2 h 03 min",
    ]  # fmt: skip
