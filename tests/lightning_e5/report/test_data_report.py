"""The section on the pool says what ``pairs.json`` says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lightning_e5.files.storage import write_json
from lightning_e5.report.data_report import SHOWN_SOURCES, data_sections
from lightning_e5.report.html import fragment
from lightning_e5.report.run_page import write_report
from lightning_e5.results.run import RunData


def source(name: str, candidates: int, dropped: dict[str, int], planted: int = 0) -> dict[str, Any]:
    pairs = candidates - sum(dropped.values())
    return {"name": name, "candidates": candidates, "dropped": dropped, "pairs": pairs, "planted": planted, "shards": []}


def run_of(tmp_path: Path, sources: list[dict[str, Any]], read: list[dict[str, Any]]) -> RunData:
    (tmp_path / "config.yaml").write_text("name: made\nstages: {pairs: {_target_: a.b}, other: {_target_: a.b}}\n")
    write_json(tmp_path / "stages/pairs/pairs.json", {"kind": "pairs", "sources": sources, "read": read})
    return RunData(tmp_path, given={})


def cells(page: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.S)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in rows]


def test_the_table_adds_up(tmp_path: Path) -> None:
    sources = [source("reddit", 2000, {"min_score": 400, "exact duplicate": 100}, planted=3), source("<news>", 10, {"near duplicate": 1})]
    read = [{"name": "dump", "parts": 2, "counts": {"records": 2013, "bad: not JSON": 3}, "bad": [["RC.zst:7", "not JSON"]]}]
    run = run_of(tmp_path, sources, read)
    page = fragment(data_sections(run))
    assert cells(page)[:4] == [
        ["source", "candidates", "dropped: min_score", "dropped: exact duplicate", "dropped: near duplicate", "pairs", "kept"],
        ["reddit", "2,000", "400", "100", "0", "1,500", "75.0%"],
        ["&lt;news&gt;", "10", "0", "0", "1", "9", "90.0%"],
        ["together", "2,010", "400", "100", "1", "1,509", "75.1%"],
    ]
    assert ["dump", "2", "bad: not JSON", "3"] in cells(page) and ["dump", "RC.zst:7", "not JSON"] in cells(page)
    assert "3 pairs got another pair" in page
    write_report(tmp_path, {})
    assert page in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_small_sources_share_a_row(tmp_path: Path) -> None:
    sources = [source(f"s{i}", i + 1, {}) for i in range(SHOWN_SOURCES + 5)]
    rows = cells(fragment(data_sections(run_of(tmp_path, sources, []))))
    assert len(rows) == SHOWN_SOURCES + 3
    assert rows[-2][:2] == ["5 smaller sources", "15"]


def test_a_run_without_a_pool_has_no_section(tmp_path: Path) -> None:
    run = run_of(tmp_path, [], [])
    (tmp_path / "stages/pairs/pairs.json").unlink()
    assert data_sections(run) == []
