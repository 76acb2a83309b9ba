"""WARC, WET and cc_net files, written as Common Crawl's are, and hostile ones."""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from data_modules.ccpairs.sources.common_crawl import CcNetPages, WarcPages, WetPages, language_of
from lightning_e5.errors import UserError
from lightning_e5.types import PairCandidate, ReadReport

SENTENCES = [
    "The river rises in the hills above the town and flows slowly to the sea.",
    "In spring its water is cold, and the farmers lead it over their meadows.",
    "Old mills stand along both banks, and some of them still grind grain today.",
]


def html(title: str = "The river", body: str = "", head: str = "") -> bytes:
    paragraphs = "".join(f"<p>{s}</p>" for s in SENTENCES)
    return (
        f"<!DOCTYPE html><html><head><title>{title}</title>{head}</head><body><nav><a href='/'>Home</a></nav>"
        f"<article><h1>{title}</h1>{paragraphs}{body}</article><footer>Imprint</footer></body></html>"
    ).encode()


def warc(
    path: Path, records: list[tuple[str, bytes]], *, status: str = "200 OK", mime: str = "text/html", **headers: str
) -> Path:
    """A response record per (url, payload), between the request and metadata records that Common Crawl writes."""
    with path.open("wb") as handle:
        writer = WARCWriter(handle, gzip=path.suffix == ".gz")
        writer.write_record(
            writer.create_warcinfo_record(path.name, {"software": "Apache Nutch", "isPartOf": "CC-MAIN-2022-33"})
        )
        for url, payload in records:
            request = StatusAndHeaders("GET / HTTP/1.1", [("Host", "x")], is_http_request=True)
            writer.write_record(writer.create_warc_record(url, "request", http_headers=request))
            answer = StatusAndHeaders(status, [("Content-Type", mime), *headers.items()], protocol="HTTP/1.1")
            writer.write_record(
                writer.create_warc_record(url, "response", payload=io.BytesIO(payload), http_headers=answer)
            )
            writer.write_record(writer.create_warc_record(url, "metadata", payload=io.BytesIO(b"fetchTimeMs: 1\r\n")))
    return path


def wet(path: Path, records: list[tuple[str, bytes]]) -> Path:
    with path.open("wb") as handle:
        writer = WARCWriter(handle, gzip=path.suffix == ".gz")
        writer.write_record(writer.create_warcinfo_record(path.name, {"software": "ia-web-commons"}))
        for url, text in records:
            record = writer.create_warc_record(
                url, "conversion", payload=io.BytesIO(text), warc_content_type="text/plain",
                warc_headers_dict={"WARC-Identified-Content-Language": "eng"},
            )  # fmt: skip
            writer.write_record(record)
    return path


def read(source: WarcPages | WetPages | CcNetPages) -> tuple[list[PairCandidate], ReadReport]:
    report = ReadReport()
    return [pair for part in source.parts() for pair in source.read(part, report)], report


@pytest.mark.parametrize("name", ["a.warc.gz", "a.warc"])
def test_warc_gives_title_and_main_text(tmp_path: Path, name: str) -> None:
    path = warc(tmp_path / name, [("https://a.example/1", html()), ("https://a.example/2", html("Le moulin"))])
    pairs, report = read(WarcPages([str(path)]))
    assert [(p.query, p.passage, p.id, p.source) for p in pairs] == [
        ("The river", "\n".join(SENTENCES), "https://a.example/1", "common_crawl"),
        ("Le moulin", "\n".join(SENTENCES), "https://a.example/2", "common_crawl"),
    ]
    assert pairs[0].facts == {"url": "https://a.example/1", "language": "en"}
    assert report.counts == {"records": 2, "pairs": 2} and report.bad == []


def test_passages_of_a_page(tmp_path: Path) -> None:
    path = warc(tmp_path / "a.warc.gz", [("https://a.example/1", html())])
    pairs, _ = read(WarcPages([str(path)], passage_words=15, passages_per_page=2))
    assert [(p.passage, p.id) for p in pairs] == [
        (SENTENCES[0], "https://a.example/1#0"), (SENTENCES[1], "https://a.example/1#1")
    ]  # fmt: skip


def test_what_is_no_page_is_counted(tmp_path: Path) -> None:
    url = "https://a.example/1"
    for settings, reason in (
        ({"status": "404 Not Found"}, "skipped: status not 200"),
        ({"mime": "application/pdf"}, "skipped: no HTML"),
    ):
        pairs, report = read(WarcPages([str(warc(tmp_path / "a.warc.gz", [(url, html())], **settings))]))
        assert pairs == [] and report.counts == {"records": 1, reason: 1}
    for payload, reason in (
        (b"", "skipped: no main text"),
        (b"\x00\xff\xfe" * 500, "skipped: no main text"),
        (html(""), "skipped: no query"),
        (html(body="x" * 100_000), "skipped: page too long"),
    ):
        path = warc(tmp_path / "b.warc.gz", [(url, payload), (url, html())])
        pairs, report = read(WarcPages([str(path)], max_page_bytes=50_000))
        assert len(pairs) == 1 and report.counts == {"records": 2, reason: 1, "pairs": 1}


def test_encodings_and_content_that_is_compressed_twice(tmp_path: Path) -> None:
    latin = html("Schloß Ärger").decode().encode("latin-1")
    path = warc(tmp_path / "a.warc.gz", [("https://a.example", latin)], mime="text/html; charset=iso-8859-1")
    assert [p.query for p in read(WarcPages([str(path)]))[0]] == ["Schloß Ärger"]
    path = warc(tmp_path / "b.warc.gz", [("https://a.example", gzip.compress(html()))], **{"Content-Encoding": "gzip"})
    assert [p.query for p in read(WarcPages([str(path)]))[0]] == ["The river"]


def test_hostile_pages_do_not_stop_the_archive(tmp_path: Path) -> None:
    pages = [
        html(body="<div>" * 39_000 + "deep"),
        b"<html><body>" + b"<p>" * 100_000 + b"x" * 1000,
        html("\ud800".encode("utf-8", "surrogatepass").decode("latin-1")),
        b'<!DOCTYPE x [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;">]>' + html(body="&b;" * 1000),
        html("The last"),
    ]
    path = warc(tmp_path / "a.warc.gz", [(f"https://a.example/{i}", page) for i, page in enumerate(pages)])
    pairs, report = read(WarcPages([str(path)]))
    assert report.counts["skipped: too many tags"] == 1
    assert pairs[-1].query == "The last" and report.counts["records"] == len(pages)
    for pair in pairs:
        (pair.query + pair.passage).encode()


def test_truncated_archives_are_used_up_to_their_end(tmp_path: Path) -> None:
    records = [(f"https://a.example/{i}", html(f"Page {i}")) for i in range(5)]
    for name in ("a.warc.gz", "a.warc"):
        path = warc(tmp_path / name, records)
        whole = path.read_bytes()
        mark = b"\x1f\x8b\x08" if name.endswith("gz") else b"WARC/1.0"
        members = [i for i in range(len(whole)) if whole.startswith(mark, i)]
        # 1 warcinfo, then (request, response, metadata) per page: member 9 is the third page's metadata record.
        path.write_bytes(whole[: members[8] + (members[9] - members[8]) // 2])
        pairs, report = read(WarcPages([str(path)]))
        assert [p.query for p in pairs] == ["Page 0", "Page 1"], name
        assert report.counts["bad: archive breaks off"] == 1, (name, report)


def test_damaged_archives_end_with_their_place(tmp_path: Path) -> None:
    path = warc(tmp_path / "a.warc.gz", [(f"https://a.example/{i}", html(f"Page {i}")) for i in range(5)])
    whole = bytearray(path.read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 200] = b"\xff" * 200
    path.write_bytes(whole)
    pairs, report = read(WarcPages([str(path)]))
    assert 1 <= len(pairs) <= 3 and len(report.bad) == 1 and str(path) in report.bad[0][0]


@pytest.mark.parametrize(
    "data",
    [
        b"no archive at all\n" * 3,
        b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: many\r\n\r\nHTTP/1.1 200 OK\r\n\r\nx",
        b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://x\r\nContent-Length: 99999999999\r\n\r\nHTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n",
        b"WARC/1.0\r\nContent-Length: -5\r\n\r\n",
        b"WARC/1.0\r\n" + b"X-Endless: header\r\n" * 100_000,
        b"\0" * 3_000_000,
        b"http://x 1.2.3.4 20200101000000 text/html 10\nHTTP/1.0 2",
    ],
)
def test_what_is_no_warc_is_reported(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.warc"
    path.write_bytes(data)
    pairs, report = read(WarcPages([str(path)]))
    assert pairs == [] and len(report.bad) == 1, report


def test_an_empty_archive_and_a_wrong_suffix(tmp_path: Path) -> None:
    (tmp_path / "a.warc").write_bytes(b"")
    assert read(WarcPages([str(tmp_path / "a.warc")])) == ([], ReadReport())
    (tmp_path / "b.warc.gz").write_bytes(b"WARC/1.0\r\n")
    with pytest.raises(UserError, match="does not begin as a gzip file"):
        read(WarcPages([str(tmp_path / "b.warc.gz")]))


def test_memory_is_bounded_by_the_longest_page(tmp_path: Path) -> None:
    zeros = b"0" * 2**20
    path = tmp_path / "bomb.warc.gz"
    with gzip.open(path, "wb", compresslevel=1) as handle:  # a header line of 64 MiB
        handle.write(b"WARC/1.0\r\nWARC-Type: ")
        for _ in range(64):
            handle.write(zeros)
    big = warc(tmp_path / "big.warc.gz", [("https://a.example", zeros * 64), ("https://a.example/2", html())])
    read(WarcPages([str(warc(tmp_path / "warm.warc.gz", [("https://a.example", html())]))]))  # load the libraries
    tracemalloc.start()
    try:
        assert len(read(WarcPages([str(path)]))[1].bad) == 1
        pairs, report = read(WarcPages([str(big)]))
        assert len(pairs) == 1 and report.counts["skipped: page too long"] == 1
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()


def test_wet_first_line_is_the_title_only_when_asked(tmp_path: Path) -> None:
    text = ("\n\nThe river | A town\n" + "\n".join(SENTENCES) + "\n").encode()
    records = [
        ("https://a.example/1", text),
        ("https://a.example/2", b"caf\xe9"),
        ("https://a.example/3", b"one line"),
        ("https://a.example/4", b""),
    ]
    path = wet(tmp_path / "a.warc.wet.gz", records)
    with pytest.raises(UserError, match="first_line_is_title: WET files hold no titles"):
        WetPages([str(path)])
    pairs, report = read(WetPages([str(path)], first_line_is_title=True))
    assert [(p.query, p.passage, dict(p.facts)) for p in pairs] == [
        ("The river | A town", "\n".join(SENTENCES), {"url": "https://a.example/1", "language": "en"})
    ]
    assert report.counts == {
        "records": 4, "pairs": 1, "bad: not UTF-8": 1, "skipped: no passage": 1, "skipped: no query": 1
    }  # fmt: skip


def test_cc_net(tmp_path: Path) -> None:
    row = {
        "url": "https://a.example/1", "date_download": "2022-08-08T00:00:00Z", "digest": "sha1:X", "length": 200, "nlines": 3,
        "source_domain": "a.example", "title": "The river", "raw_content": "\n".join(SENTENCES), "original_nlines": 9,
        "language": "en", "language_score": 0.99, "perplexity": 231.4, "bucket": "head",
    }  # fmt: skip
    rows: list[Any] = [
        row,
        {**row, "bucket": "tail"},
        {**row, "title": ""},
        {**row, "raw_content": None},
        {**row, "perplexity": "low"},
        {**row, "title": ["x"]},
        {**row, "language": None, "perplexity": None},
    ]
    path = tmp_path / "en_head_0000.json.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in rows).encode()))
    pairs, report = read(CcNetPages([str(path)], buckets=["head", "middle"]))
    assert [(p.query, p.passage) for p in pairs] == [("The river", "\n".join(SENTENCES))] * 2
    assert pairs[0].facts == {"url": "https://a.example/1", "language": "en", "perplexity": 231.4, "bucket": "head"}
    assert pairs[1].facts == {"url": "https://a.example/1", "language": "en", "bucket": "head"}
    assert report.counts == {
        "records": 7, "pairs": 2, "skipped: bucket": 1, "skipped: no query": 1, "skipped: no passage": 1,
        "bad: perplexity is no number": 1, "bad: title is no string": 1,
    }  # fmt: skip
    assert report.bad == [(f"{path}:5", "perplexity is no number"), (f"{path}:6", "title is no string")]
    with pytest.raises(UserError, match="buckets: 'heads' is none of its values; did you mean 'head'"):
        CcNetPages([str(path)], buckets=["heads"])


def test_languages() -> None:
    assert language_of("Der Fluss entspringt in den Hügeln oberhalb der Stadt und fließt langsam zum Meer.") == "de"
    assert language_of("Le fleuve prend sa source dans les collines et coule lentement vers la mer.") == "fr"
