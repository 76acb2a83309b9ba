"""Pages packed in every way, and damaged ones: each costs itself alone, the archive is read to its end."""

from __future__ import annotations

import gzip
import random
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import brotli
import pytest
import zstandard

from data_modules.ccpairs.formats.web_archive import Page, pages
from data_modules.ccpairs.formats.web_content import BadContentError, unpacked
from lightning_e5.types import ReadReport

HTML = ("<html><body>" + "".join(f"<p>Line {n} of the page about rivers and mills.</p>" for n in range(60)) + "</body></html>").encode()


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress, "Deflate": raw_deflate, "br": brotli.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}  # fmt: skip


def chunked(body: bytes, size: int = 100) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x;name=x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def record(body: bytes, *headers: str, number: int = 0, more: str = "") -> bytes:
    http = "\r\n".join(["HTTP/1.1 200 OK", "Content-Type: text/html", *headers, "", ""]).encode() + body
    warc = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://x/{number}\r\n{more}Content-Length: {len(http)}\r\n\r\n"
    return warc.encode() + http + b"\r\n\r\n"


def read(path: Path, data: bytes, max_bytes: int = 2**20) -> tuple[list[Page], ReadReport]:
    path.write_bytes(data)
    report = ReadReport()
    return list(pages(str(path), report, "response", max_bytes)), report


@pytest.mark.parametrize("name", PACK)
@pytest.mark.parametrize("in_chunks", [False, True])
def test_packed_pages_are_unpacked(tmp_path: Path, name: str, in_chunks: bool) -> None:
    body = PACK[name](HTML)
    headers = [f"Content-Encoding: {name}", *(["Transfer-Encoding: chunked"] if in_chunks else [])]
    found, report = read(tmp_path / "a.warc", record(chunked(body) if in_chunks else body, *headers) + record(HTML, *headers))
    assert [page.content for page in found] == [HTML, HTML]  # the second one was unpacked before it was stored
    assert report.bad == [] and report.counts["records"] == 2


def test_packed_twice_and_not_at_all(tmp_path: Path) -> None:
    twice = record(brotli.compress(gzip.compress(HTML)), "Content-Encoding: gzip", "Content-Encoding: br")
    plain = record(HTML, "Content-Encoding: identity", "Transfer-Encoding: chunked")
    found, _ = read(tmp_path / "a.warc", twice + plain + record(b"", "Content-Encoding: br"))
    assert [page.content for page in found] == [HTML, HTML, b""]


@pytest.mark.parametrize(
    ("body", "headers", "reason"),
    [
        (b"\xff" * 100, ["Content-Encoding: br"], "damaged br content"),
        (b"\xff" * 100, ["Content-Encoding: gzip"], "damaged gzip content"),
        (b"\xff" * 100, ["Content-Encoding: zstd"], "damaged zstd content"),
        (b"\xff" * 100, ["Content-Encoding: deflate"], "damaged deflate content"),
        (b"abc", ["Content-Encoding: sdch"], "unknown content encoding"),
        (b"abc", ["Content-Encoding: br, br, br, br, br"], "too many content encodings"),
        (brotli.compress(HTML)[:-9], ["Content-Encoding: br"], "br content breaks off"),
        (gzip.compress(HTML)[:-9], ["Content-Encoding: gzip"], "gzip content breaks off"),
        (chunked(HTML)[:-60], ["Transfer-Encoding: chunked"], "chunks break off"),
        (chunked(HTML).replace(b"\r\n64;", b"\r\nzz;", 3), ["Transfer-Encoding: chunked"], "damaged chunks"),
    ],
)  # fmt: skip
def test_a_damaged_page_costs_itself_alone(tmp_path: Path, body: bytes, headers: list[str], reason: str) -> None:
    path = tmp_path / "a.warc"
    found, report = read(path, record(HTML, number=1) + record(body, *headers) + record(HTML, number=3))
    assert [page.url for page in found] == ["http://x/1", "http://x/3"]
    assert report.bad == [(f"{path}:2", reason)] and report.counts["records"] == 3


def test_a_page_that_was_cut_when_it_was_stored_is_used(tmp_path: Path) -> None:
    body = chunked(gzip.compress(HTML))[:-100]
    found, report = read(tmp_path / "a.warc", record(body, "Content-Encoding: gzip", "Transfer-Encoding: chunked", more="WARC-Truncated: length\r\n"))
    assert HTML.startswith(found[0].content) and len(found[0].content) > 100 and report.bad == []


def test_a_damaged_header_costs_what_is_before_the_next_record(tmp_path: Path) -> None:
    good = [record(HTML, number=n) for n in range(4)]
    for damaged in (good[1][1:], good[1].replace(b"WARC/1.0", b"WARX/1.0"), good[1].replace(b"Content-Length: ", b"Content-Length: x")):
        path = tmp_path / "a.warc"
        found, report = read(path, good[0] + damaged + good[2] + good[3])
        assert [page.url[-1] for page in found] == ["0", "2", "3"]
        assert [place for place, _ in report.bad] == [f"{path}:2"]


def test_bombs_are_unpacked_up_to_the_limit(tmp_path: Path) -> None:
    zeros = b"0" * 2**24
    for name, pack in PACK.items():
        packed = record(brotli.compress(zeros, quality=1) if name == "br" else pack(zeros), f"Content-Encoding: {name}")
        tracemalloc.start()
        try:
            found, report = read(tmp_path / "a.warc", packed + record(HTML), 2**18)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert len(found) == 1 and report.counts["skipped: page too long"] == 1
        assert peak < (36 if name == "zstd" else 4) * 2**20, name


def test_any_damage_is_counted_and_what_stands_apart_from_it_is_read(tmp_path: Path) -> None:
    draw = random.Random(3)
    names = [*PACK, "identity"]
    for turn in range(150):
        records = []
        for n in range(5):
            name = draw.choice(names)
            body = PACK.get(name, bytes)(HTML)
            headers = [f"Content-Encoding: {name}"]
            if draw.random() < 0.5:
                body, headers = chunked(body, draw.randrange(1, 3000)), [*headers, "Transfer-Encoding: chunked"]
            records.append(record(body, *headers, number=n))
        damaged, content = bytearray(records[2]), records[2].index(b"HTTP/")
        for _ in range(draw.randrange(1, 6)):  # in the content: the lengths stand in the header
            at = draw.randrange(content, len(damaged) - 4)
            damaged[at] = draw.randrange(256)
        found, report = read(tmp_path / "a.warc", b"".join([*records[:2], bytes(damaged), *records[3:]]))
        assert [page.url[-1] for page in found if page.url[-1] != "2"] == ["0", "1", "3", "4"], turn
        assert len(found) + sum(n for name, n in report.counts.items() if ": " in name) == 5
        whole = bytearray(b"".join(records))
        for _ in range(draw.randrange(1, 20)):
            whole[draw.randrange(len(whole))] = draw.randrange(256)
        read(tmp_path / "b.warc", bytes(whole[: draw.randrange(len(whole) + 1)]))


def test_random_bodies_give_content_or_a_reason() -> None:
    draw = random.Random(4)
    for _ in range(300):
        for name in PACK:
            try:
                unpacked(draw.randbytes(draw.randrange(60)), name, draw.choice(["", "chunked"]), 1000)
            except BadContentError:
                continue
