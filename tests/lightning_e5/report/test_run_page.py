"""The report says what the run's files say, needs nothing else, and shows text as text."""

from __future__ import annotations

import re
import shutil

import pytest
import yaml

from lightning_e5.errors import UserError
from lightning_e5.report.run_page import write_report
from lightning_e5.results.durations import duration

ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)> $x^2$"


def report(path, metrics=()):
    write_report(path, dict(metrics))
    return (path / "report.html").read_text(encoding="utf-8")


def test_report_shows_results_filter_figures_and_provenance(make_run):
    page = report(make_run(finished=False))
    assert "no difference shown" in page and "the reference" in page
    assert "precision 75.0%" in page.lower() and "recall 60.0%" in page and "67.0%" in page
    assert page.count('src="data:image/svg+xml;base64,') == 4
    assert "injected mismatch" in page and "abc with uncommitted changes" in page and "1 min 01 s" in page
    assert "keep: filter/ranks.parquet" in page


def test_report_needs_nothing_from_elsewhere(make_run):
    page = report(make_run())
    assert not re.search(r'(?:src|href)="(?!data:)', page)
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
