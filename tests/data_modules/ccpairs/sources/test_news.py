"""CC-News articles in JSON lines, in the fields of news-please and of the data set cc_news."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_modules.ccpairs.sources.news import CcNews
from lightning_e5.errors import UserError
from lightning_e5.types import PairCandidate, ReadReport


def read(folder: Path, rows: list[Any], **settings: Any) -> tuple[list[PairCandidate], ReadReport]:
    path = folder / "news.jsonl"
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    source, report = CcNews([str(path)], **settings), ReadReport()
    return [pair for part in source.parts() for pair in source.read(part, report)], report


PLEASE = {
    "title": "Rain\nahead", "maintext": "It will rain.\nTake a coat.", "description": "Weather of the week", "language": "en",
    "url": "https://n.example/1", "date_publish": "2020-01-01 00:00:00", "authors": [], "image_url": None,
}  # fmt: skip
CC_NEWS = {
    "title": "Sun",
    "text": "The sun shines.",
    "domain": "n.example",
    "description": "",
    "url": "https://n.example/2",
}


def test_titles_and_highlights(tmp_path: Path) -> None:
    pairs, report = read(tmp_path, [PLEASE, CC_NEWS])
    assert [(p.query, p.passage, p.id, dict(p.facts)) for p in pairs] == [
        ("Rain ahead", "It will rain.\nTake a coat.", "https://n.example/1", {"url": "https://n.example/1", "language": "en"}),
        ("Weather of the week", "It will rain.\nTake a coat.", "https://n.example/1#highlight", {"url": "https://n.example/1", "language": "en"}),
        ("Sun", "The sun shines.", "https://n.example/2", {"url": "https://n.example/2"}),
    ]  # fmt: skip
    assert report.counts == {"records": 2, "pairs": 3}


def test_kinds_and_passages(tmp_path: Path) -> None:
    pairs, _ = read(tmp_path, [PLEASE], kinds=["title"], passage_words=3, passages_per_page=5)
    assert [(p.passage, p.id[-2:]) for p in pairs] == [("It will rain.", "#0"), ("Take a coat.", "#1")]
    pairs, _ = read(tmp_path, [{**PLEASE, "highlight": "Best part"}], kinds="highlight")
    assert [p.query for p in pairs] == ["Best part"]
    with pytest.raises(UserError, match="kinds: 'titles'"):
        read(tmp_path, [PLEASE], kinds=["titles"])


def test_bad_articles_are_counted_with_their_place(tmp_path: Path) -> None:
    rows = [
        {**PLEASE, "title": None, "description": None},
        {**PLEASE, "title": 5},
        {**PLEASE, "maintext": ["a"]},
        {"title": "no text"},
        b'{"title": "\xff"}',
        b"null",
        CC_NEWS,
    ]
    pairs, report = read(tmp_path, rows)
    assert [p.query for p in pairs] == ["Sun"]
    path = tmp_path / "news.jsonl"
    assert report.bad == [
        (f"{path}:2", "title is no string"),
        (f"{path}:3", "maintext is no string"),
        (f"{path}:5", "not UTF-8"),
        (f"{path}:6", "not a JSON object"),
    ]
    assert report.counts["skipped: no query"] == 1 and report.counts["skipped: no passage"] == 1
