"""Every reader of files given truncated, changed, empty and other files: a sentence or counted records, never a traceback."""

from __future__ import annotations

import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import py7zr
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_modules.ccpairs.sources.common_crawl import CcNetPages, WarcPages, WetPages
from data_modules.ccpairs.sources.news import CcNews
from data_modules.ccpairs.sources.papers import AclAnthology, S2ag, S2orc
from data_modules.ccpairs.sources.reddit import RedditComments, RedditSelfTexts
from data_modules.ccpairs.sources.reddit_csv import RedditCsv
from data_modules.ccpairs.sources.signals.texts import BeirTexts
from data_modules.ccpairs.sources.signals.within_text import SimCse
from data_modules.ccpairs.sources.stackexchange import StackExchangePosts
from data_modules.ccpairs.sources.tables import JsonlPairs, ParquetPairs
from data_modules.ccpairs.sources.wikipedia import WikipediaSections
from lightning_e5.errors import UserError
from lightning_e5.types import PairFiles, ReadReport

PASSAGE = "The river rises in the hills above the town and flows slowly to the sea, where an old mill stands at its mouth. "


def json_lines(row: Callable[[int], Any]) -> bytes:
    return "".join(json.dumps(row(n)) + "\n" for n in range(6)).encode()


def warc(kind: str, mime: str, body: str) -> bytes:
    found = b""
    for n in range(6):
        content = body.replace("NUMBER", str(n)).encode()
        found += f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: http://x/{n}\r\nContent-Type: {mime}\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content + b"\r\n\r\n"
    return found


def parquet() -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"query": [f"what is {n}" for n in range(6)], "passage": [f"{PASSAGE}{n}" for n in range(6)]}), out)
    return out.getvalue()


def posts() -> bytes:
    rows = "".join(
        f'<row Id="{2 * n + 1}" PostTypeId="1" Title="What is {n}?" Body="&lt;p&gt;b&lt;/p&gt;" Score="1" />\n'
        f'<row Id="{2 * n + 2}" PostTypeId="2" ParentId="{2 * n + 1}" Score="3" Body="&lt;p&gt;{PASSAGE}{n}&lt;/p&gt;" />\n' for n in range(6)
    )  # fmt: skip
    return f'<?xml version="1.0" encoding="utf-8"?>\n<posts>\n{rows}</posts>\n'.encode()


def seven_zip() -> bytes:
    out = io.BytesIO()
    with py7zr.SevenZipFile(out, "w") as archive:
        archive.writestr(posts().decode(), "Posts.xml")
    return out.getvalue()


def wiki() -> bytes:
    pages = "".join(
        f"<page><title>Page {n}</title><ns>0</ns><id>{n}</id><revision><text>{PASSAGE} {{{{convert|5|km}}}} [[a|b]] {PASSAGE}</text></revision></page>\n" for n in range(6)
    )
    return f"<mediawiki>\n{pages}</mediawiki>\n".encode()


def volume() -> bytes:
    papers = "".join(f'<paper id="{n}"><title>Paper {n}</title><abstract>{PASSAGE}{n}</abstract></paper>\n' for n in range(6))
    return f"<?xml version='1.0'?>\n<collection id='x'><volume id='1'>\n{papers}</volume></collection>\n".encode()


def reddit(path: Path) -> PairFiles:
    other = path.with_name("posts")
    other.write_text(json.dumps({"id": "p", "title": "What is it?", "selftext": ""}) + "\n")
    return RedditComments(str(other), str(path), work_dir=str(path.parent / "work"), buckets=1)


def graph(path: Path) -> PairFiles:
    other = path.with_name("abstracts")
    other.write_bytes(json_lines(lambda n: {"corpusid": n, "abstract": PASSAGE}))
    return S2ag(work_dir=str(path.parent / "work"), papers=str(path), abstracts=str(other), kinds=["title_abstract"])


HTML = f"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<html><head><title>Page NUMBER</title></head><body><p>{PASSAGE}</p><p>{PASSAGE}NUMBER</p></body></html>"
#: name of the file -> (its bytes, its reader).
FILES: dict[str, tuple[bytes, Callable[[Path], PairFiles]]] = {
    "a.warc": (warc("response", "application/http", HTML), lambda p: WarcPages(str(p))),
    "a.warc.gz": (gzip.compress(warc("response", "application/http", HTML)), lambda p: WarcPages(str(p))),
    "a.warc.wet": (warc("conversion", "text/plain", f"Page NUMBER\n{PASSAGE}"), lambda p: WetPages(str(p), first_line_is_title=True)),
    "cc.json": (json_lines(lambda n: {"title": f"t{n}", "raw_content": PASSAGE, "language": "en"}), lambda p: CcNetPages(str(p))),
    "news.jsonl": (json_lines(lambda n: {"title": f"t{n}", "maintext": PASSAGE, "url": "u", "language": "en"}), lambda p: CcNews(str(p))),
    "s2orc.jsonl": (json_lines(lambda n: {"corpusid": n, "content": {"text": PASSAGE, "annotations": {"title": '[{"start": 0, "end": 9}]', "abstract": '[{"start": 9, "end": 40}]'}}}), lambda p: S2orc(str(p))),
    "papers.jsonl": (json_lines(lambda n: {"corpusid": n, "title": f"t{n}"}), graph),
    "volume.xml": (volume(), lambda p: AclAnthology(str(p))),
    "a.parquet": (parquet(), lambda p: ParquetPairs(str(p))),
    "a.jsonl": (json_lines(lambda n: {"query": f"q{n}", "passage": PASSAGE}), lambda p: JsonlPairs(str(p))),
    "RC": (json_lines(lambda n: {"id": f"c{n}", "link_id": "t3_p", "body": PASSAGE}), reddit),
    "RS": (json_lines(lambda n: {"id": f"p{n}", "title": "t", "selftext": PASSAGE}), lambda p: RedditSelfTexts(str(p))),
    "a.csv": (("id,title,selftext,score,over_18\n" + "".join(f'p{n},t,"{PASSAGE}\n",1,False\n' for n in range(6))).encode(), lambda p: RedditCsv(str(p))),
    "Posts.xml": (posts(), lambda p: StackExchangePosts(str(p), work_dir=str(p.parent / "work"))),
    "coffee.7z": (seven_zip(), lambda p: StackExchangePosts(str(p), work_dir=str(p.parent / "work"))),
    "wiki.xml": (wiki(), lambda p: WikipediaSections(str(p))),
    "corpus.jsonl": (json_lines(lambda n: {"_id": str(n), "title": "t", "text": PASSAGE}), lambda p: SimCse(BeirTexts(str(p)), seed=1)),
}  # fmt: skip


def read(path: Path, data: bytes, reader: Callable[[Path], PairFiles]) -> tuple[int, ReadReport | UserError]:
    path.write_bytes(data)
    report = ReadReport()
    try:
        source = reader(path)
        return sum(1 for part in source.parts() for _ in source.read(part, report)), report
    except UserError as error:
        assert path.name in str(error) and "\n" not in str(error), error
        return 0, error


@pytest.mark.parametrize("name", FILES)
def test_damaged_files(tmp_path: Path, name: str) -> None:
    data, reader = FILES[name]
    draw, path = random.Random(name), tmp_path / name
    whole, report = read(path, data, reader)
    assert whole >= 6 and isinstance(report, ReadReport) and report.bad == []
    for size in [0, 1, 7, len(data) - 1, *(draw.randrange(len(data)) for _ in range(8))]:
        pairs, report = read(path, data[:size], reader)
        assert pairs <= whole
        lost = size < len(data) - 1 and pairs < whole
        assert not lost or size == 0 or isinstance(report, UserError) or report.bad or report.counts["records"] < 6, (size, report)
    for turn in range(12):
        changed = bytearray(data)
        for _ in range(1 + turn):
            at = draw.randrange(len(data))
            changed[at : at + draw.choice((1, 1, 1, 30))] = draw.randbytes(1)
        read(path, bytes(changed), reader)


@pytest.mark.parametrize("name", FILES)
def test_files_of_other_kinds(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for data in (b"no such thing at all\n" * 3, b"\0" * 5000, bytes(range(256)) * 20, b"<html><body>404</body></html>", b"PK\x03\x04" + b"\0" * 90, b"[]\n", b"{}\n"):
        pairs, report = read(path, data, FILES[name][1])
        assert pairs == 0
        if isinstance(report, ReadReport) and report.counts["records"]:
            assert report.warnings("x", pairs), report


def test_archives_that_unpack_to_more_than_text_does(tmp_path: Path) -> None:
    path = tmp_path / "coffee.7z"
    with py7zr.SevenZipFile(path, "w") as archive:
        archive.writestr("<posts>" + " " * 2**22 + "</posts>", "Posts.xml")
    source = StackExchangePosts(str(path), work_dir=str(tmp_path / "work"))
    with pytest.raises(UserError, match=r"coffee\.7z: its Posts\.xml unpacks to 4,194,319 bytes from [0-9,]+, which is no text"):
        next(iter(source.read(source.parts()[0], ReadReport())))


def test_a_link_in_the_place_of_the_posts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("<posts></posts>")
    (tmp_path / "Posts.xml").symlink_to(tmp_path / "secret")
    path = tmp_path / "coffee.7z"
    with py7zr.SevenZipFile(path, "w") as archive:
        archive.write(tmp_path / "Posts.xml", "Posts.xml")
    source = StackExchangePosts(str(path), work_dir=str(tmp_path / "work"))
    with pytest.raises(UserError, match="or is a link or folder"):
        next(iter(source.read(source.parts()[0], ReadReport())))
