"""Reddit's rows of every age: ids as strings, numbers and nothing, texts that are gone, programs' comments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_modules.ccpairs.sources.reddit import RedditComments, RedditSelfTexts
from lightning_e5.types import ReadReport

#: 35 * 36**4 + 35 * 36**3 + 1, whose base 36 is zz001.
NUMBER = int("zz001", 36)
POST: dict[str, Any] = {"id": "zz001", "title": "How do I keep a bridge dry?", "selftext": "", "score": 12}


def passages(folder: Path, comments: list[dict[str, Any]], posts: list[dict[str, Any]] | None = None) -> tuple[dict[str, str], ReadReport]:
    files = {"RS": posts or [POST], "RC": [{"id": f"c{n}", "link_id": "t3_zz001", "body": f"Answer {n}.", **row} for n, row in enumerate(comments)]}
    for name, rows in files.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    source, report = RedditComments(str(folder / "RS"), str(folder / "RC"), work_dir=str(folder / "work"), buckets=2), ReadReport()
    pairs = [pair for part in source.parts() for pair in source.read(part, report)]
    return {pair.id: pair.passage for pair in pairs}, report


@pytest.mark.parametrize(
    ("row", "kept"),
    [
        ({"parent_id": "t3_zz001"}, True), ({"parent_id": None}, True), ({}, True), ({"parent_id": ""}, True), ({"parent_id": NUMBER}, True),
        ({"parent_id": "zz001"}, True), ({"parent_id": float(NUMBER)}, True),
        ({"parent_id": 433}, False), ({"parent_id": "t1_c9"}, False), ({"parent_id": "c9"}, False), ({"parent_id": 433.0}, False),
        ({"parent_id": ["t3_zz001"]}, False),
        ({"link_id": "zz001"}, True), ({"link_id": NUMBER}, True), ({"link_id": None, "permalink": "/r/a/comments/zz001/how_do/c0/"}, True),
        ({"id": "t1_c0"}, True), ({"id": None, "name": "t1_c0"}, True), ({"id": int("c0", 36)}, True),
    ],
)  # fmt: skip
def test_ids_of_every_age(tmp_path: Path, row: dict[str, Any], kept: bool) -> None:
    found, report = passages(tmp_path, [row])
    assert found == ({"t1_c0": "Answer 0."} if kept else {})
    assert report.counts["skipped: comment on a comment"] == (not kept) and report.bad == []


@pytest.mark.parametrize("row", [{"link_id": None}, {"link_id": "t1_zz001"}, {"link_id": True}, {"link_id": []}, {"id": None}, {"id": -4}, {"body": None}])
def test_rows_without_what_a_pair_needs_are_bad(tmp_path: Path, row: dict[str, Any]) -> None:
    found, report = passages(tmp_path, [row])
    assert found == {} and [reason for _, reason in report.bad] == ["comment without id, link_id or body"]


def test_posts_with_numbers_or_names_as_ids(tmp_path: Path) -> None:
    for row in ({"id": NUMBER}, {"id": "t3_zz001"}, {"id": None, "name": "t3_zz001"}):
        assert passages(tmp_path, [{}], [{**POST, **row}])[0] == {"t1_c0": "Answer 0."}


def test_texts_that_are_gone_and_programs_are_counted(tmp_path: Path) -> None:
    gone = ["[ Removed by reddit in response to a copyright notice. ]", "[removed by moderator]", "[unavailable]", "Your comment has been removed for rule 1."]
    comments = [{"body": text} for text in gone] + [{"author": "AutoModerator", "body": "Read the rules."}, {"author": "someone", "body": "Paint it."}]
    found, report = passages(tmp_path, comments)
    assert list(found.values()) == ["Paint it."]
    assert report.counts["skipped: deleted or removed"] == 4 and report.counts["skipped: by a bot"] == 1
    assert report.first["skipped: by a bot"] == f"{tmp_path / 'RC'}:5"
    rows = [{**POST, "selftext": "[ Removed by moderator ]"}, {**POST, "selftext": "It rains in.", "title": "[ Removed by Reddit ]"}, {**POST, "selftext": "It rains in."}]
    (tmp_path / "RS").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = ReadReport()
    [pair] = RedditSelfTexts(str(tmp_path / "RS")).read(str(tmp_path / "RS"), report)
    assert pair.passage == "It rains in." and report.counts["skipped: deleted or removed"] == 2
