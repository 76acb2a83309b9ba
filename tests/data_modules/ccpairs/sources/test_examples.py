"""The record at the top of each reader gives the pairs that are said there."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from data_modules.ccpairs.sources import (
    acl_anthology,
    common_crawl,
    news,
    papers,
    reddit,
    reddit_csv,
    stackexchange,
    wikipedia,
)
from lightning_e5.types import PairFiles, ReadReport

Write = Callable[[str, str], str]


def lines_of(module: ModuleType) -> list[str]:
    blocks = re.findall(r"::\n\n((?:    .*\n|\n)+)", module.__doc__ or "")
    return [line[4:] for block in blocks for line in block.rstrip().split("\n")]


def said_by(module: ModuleType) -> list[Any]:
    """The tuples of two strings in the module's text."""
    found = re.findall(r'\("(?:[^"\\]|\\.)*",\s"(?:[^"\\]|\\.)*"\)', (module.__doc__ or "").replace("\n", "\\n").replace('",\\n', '",\n'))
    return [ast.literal_eval(pair) for pair in found]


def source(module: ModuleType, write: Write, work: str) -> list[PairFiles]:
    lines = lines_of(module)
    if module is acl_anthology:
        return [acl_anthology.AclAnthology(write("2020.acl.xml", "\n".join(lines) + "</volume></collection>"))]
    if module is common_crawl:
        row = next(number for number, line in enumerate(lines) if line.startswith("{"))
        return [common_crawl.CcNetPages(write("cc.json", " ".join(lines[row:])))]
    if module is news:
        return [news.CcNews(write("news.jsonl", " ".join(lines)))]
    if module is papers:
        return [papers.S2orc(write("orc.jsonl", "".join(lines[4:])), work_dir=work, kinds=["title_abstract", "title_citation"])]
    if module is reddit:
        posts = write("RS", lines[0])
        return [reddit.RedditComments(posts, write("RC", lines[1]), work_dir=work, buckets=1), reddit.RedditSelfTexts(posts)]
    if module is reddit_csv:
        return [reddit_csv.RedditCsv(write("books.csv", "\n".join(lines) + "\n"))]
    if module is stackexchange:
        return [stackexchange.StackExchangePosts(write("Posts.xml", "\n".join(["<posts>", *lines, "</posts>"])), work_dir=work)]
    return [wikipedia.WikipediaSections(write("wiki.xml", "\n".join(["<mediawiki>", *lines, "</mediawiki>"])), min_passage_chars=1)]


@pytest.mark.parametrize("module", [acl_anthology, common_crawl, news, papers, reddit, reddit_csv, stackexchange, wikipedia], ids=lambda m: m.__name__.split(".")[-1])
def test_the_record_gives_the_pairs(module: ModuleType, tmp_path: Path) -> None:
    def write(name: str, text: str) -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    report = ReadReport()
    pairs = [(p.query, p.passage) for s in source(module, write, str(tmp_path / "work")) for part in s.parts() for p in s.read(part, report)]
    assert pairs == said_by(module) and pairs and not report.bad
