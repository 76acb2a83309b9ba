"""Stack Exchange's dumps: the join, what is skipped, archives, hostile XML, bounded memory."""

from __future__ import annotations

import gzip
import html
import random
import time
import tracemalloc
from pathlib import Path
from typing import Any

import py7zr
import pytest

from data_modules.ccpairs.formats import buckets
from data_modules.ccpairs.formats.markup import html_text
from data_modules.ccpairs.sources.stackexchange import StackExchangePosts
from lightning_e5.errors import UserError
from lightning_e5.files.lines import json_rows
from lightning_e5.types import PairCandidate, ReadReport


def row(key: int, kind: int, body: str = "", **more: Any) -> str:
    attributes = {
        "Id": key,
        "PostTypeId": kind,
        "CreationDate": "2015-01-27T20:09:32.720",
        "Score": 5,
        "Body": body,
        **more,
    }
    escaped = {
        name: html.escape(str(value)).replace("\n", "&#xA;") for name, value in attributes.items() if value is not None
    }
    return "  <row " + " ".join(f'{name}="{value}"' for name, value in escaped.items()) + " />"


def document(rows: list[str]) -> bytes:
    lines = ['<?xml version="1.0" encoding="utf-8"?>', "<posts>", *rows, "</posts>"]
    return "\ufeff".encode() + "\r\n".join(lines).encode("utf-8", "surrogateescape")


ROWS = [
    row(1, 1, "<p>I have <b>beans</b>.</p>\n\n<pre><code>a = 1\n  b = 2\n</code></pre>", Title="How to store a &lt;b&gt;?", AcceptedAnswerId=3, AnswerCount=3),
    row(2, 2, "<p>In a <a href='x'>jar</a> &amp; dark.</p>\n<ul><li>one</li><li>two</li></ul>", ParentId=1, Score=2),
    row(3, 2, "<p>Freeze them.</p>", ParentId=1, Score=1),
    row(4, 2, "<p>Bad advice.</p>", ParentId=1, Score=0),
    row(5, 2, "<p>Early answer</p>", ParentId=6),
    row(6, 1, "", Title="Late question"),
    row(7, 1, "<p>x</p>", Title="Nobody knows", AnswerCount=0),
    row(8, 2, "<p>No such question</p>", ParentId=99),
    row(9, 4, "<p>tag</p>"),
    row(10, 5, "<p>tag</p>"),
    row(11, 7, ""),
]  # fmt: skip


def write(path: Path, data: bytes) -> str:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(data)
    return str(path)


def read(path: str, tmp_path: Path, **settings: Any) -> tuple[list[PairCandidate], ReadReport]:
    source = StackExchangePosts(path, work_dir=str(tmp_path / "work"), **settings)
    report = ReadReport()
    return [pair for part in source.parts() for pair in source.read(part, report)], report


def test_questions_are_joined_to_their_answers(tmp_path: Path) -> None:
    path = write(tmp_path / "coffee" / "Posts.xml", document(ROWS))
    pairs, report = read(path, tmp_path)
    question = "How to store a &lt;b&gt;?"
    body = f"{question}\nI have beans.\na = 1\n  b = 2"
    jar, cold = "In a jar & dark.\none\ntwo", "Freeze them."
    assert [(p.query, p.passage, p.id) for p in pairs] == [
        (question, jar, "coffee/2"),
        (body, jar, "coffee/2"),
        (question, cold, "coffee/3"),
        (body, cold, "coffee/3"),
        ("Late question", "Early answer", "coffee/5"),  # its two queries are one, it has no body
    ]
    assert pairs[0].facts == {"score": 2, "post_score": 5, "accepted": False, "site": "coffee"}
    assert pairs[2].facts["accepted"] is True
    assert report.counts == {
        "records": 11,
        "pairs": 5,
        "skipped: answer below min_score": 1,
        "skipped: question without answers": 1,
        "skipped: answer without its question": 1,
        "skipped: tag wiki": 2,
        "skipped: wiki placeholder": 1,
    }
    titles, _ = read(path, tmp_path, queries=["title"], min_score=2)
    assert [(p.query, p.id) for p in titles] == [(question, "coffee/2"), ("Late question", "coffee/5")]
    with pytest.raises(UserError, match="queries="):
        read(path, tmp_path, queries=["body"])


@pytest.mark.parametrize("name", ["coffee/Posts.xml.gz", "coffee.stackexchange.com.7z"])
def test_archives_give_the_same_pairs(tmp_path: Path, name: str) -> None:
    expected = read(write(tmp_path / "coffee" / "Posts.xml", document(ROWS)), tmp_path)[0]
    path = tmp_path / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(document(ROWS)))
    else:
        with py7zr.SevenZipFile(path, "w") as archive:
            archive.writestr("<users/>", "Users.xml")
            archive.writestr(document(ROWS), "Posts.xml")
    assert read(str(path), tmp_path)[0] == expected
    assert not list((tmp_path / "work").glob("unpacked-*"))


def test_damaged_and_other_7z(tmp_path: Path) -> None:
    path = tmp_path / "coffee.7z"
    with py7zr.SevenZipFile(path, "w") as archive:
        archive.writestr("<users/>", "Users.xml")
    with pytest.raises(UserError, match=r"holds no Posts\.xml"):
        read(str(path), tmp_path)
    draw = random.Random(3)
    texts = [f"<p>{draw.random()}</p>" for _ in range(8_000)]
    rows = [
        r
        for n, text in enumerate(texts)
        for r in (row(2 * n, 1, text, Title=f"t{n}"), row(2 * n + 1, 2, text, ParentId=2 * n))
    ]
    with py7zr.SevenZipFile(path, "w") as archive:
        archive.writestr(document(rows), "Posts.xml")
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])  # a 7z's directory is at its end
    pairs, report = read(str(path), tmp_path)
    assert pairs == [] and report.counts["bad: archive is damaged"] == 1
    path.write_bytes(whole[: len(whole) // 2] + b"\0" * 500 + whole[len(whole) // 2 + 500 :])
    pairs, report = read(str(path), tmp_path)
    assert report.counts["bad: archive is damaged"] == 1
    assert len(pairs) < 16_000


def test_parts_are_independent_buckets(tmp_path: Path) -> None:
    rows = [row(n, 1, f"<p>body {n}</p>", Title=f"title {n}") for n in range(300)]
    rows += [row(1000 + n, 2, f"<p>answer {n}</p>", ParentId=n * 7 % 300) for n in range(900)]
    path = write(tmp_path / "a" / "Posts.xml", document(rows))
    expected, _ = read(path, tmp_path)
    assert len(expected) == 1800
    source = StackExchangePosts(path, work_dir=str(tmp_path / "w"), bucket_bytes=40_000)
    assert len(source.parts()) > 3
    found = {part: list(source.read(part, ReadReport())) for part in reversed(source.parts())}
    assert found == {part: list(source.read(part, ReadReport())) for part in source.parts()}
    assert sorted(map(str, (p for pairs in found.values() for p in pairs))) == sorted(map(str, expected))
    assert source.fingerprint() != StackExchangePosts(path, work_dir=str(tmp_path), min_score=3).fingerprint()


@pytest.mark.parametrize("bucket_bytes", [2**29, 20_000])
def test_the_join_is_that_of_a_dictionary(tmp_path: Path, bucket_bytes: int) -> None:
    draw = random.Random(3)
    rows, answers = [], []
    questions: dict[str, str] = {}
    earlier: dict[str, str] = {}
    for n in range(1000):
        if draw.random() < 0.3:
            key = draw.randrange(150)  # of a question given twice the later one counts, also for answers before it
            questions[str(key)] = f"title {n}"
            earlier.setdefault(str(key), f"title {n}")
            rows.append(row(key, 1, "", Title=f"title {n}"))
        else:
            answers.append((str(draw.randrange(170)), f"answer {n}"))
            rows.append(row(1000 + n, 2, f"<p>answer {n}</p>", ParentId=answers[-1][0]))
    path = write(tmp_path / "a" / "Posts.xml", document(rows))
    pairs, report = read(path, tmp_path, bucket_bytes=bucket_bytes)
    found, expected = (
        [(p.query, p.passage) for p in pairs],
        [(questions[k], text) for k, text in answers if k in questions],
    )
    assert report.counts["skipped: answer without its question"] == len(answers) - len(expected) > 0
    assert sorted(found) == sorted(expected) and (found == expected) == (bucket_bytes == 2**29)
    assert sorted(found) != sorted((earlier[k], text) for k, text in answers if k in earlier)
    directory = next((tmp_path / "work").glob("Posts-*/"))
    assert len(list(directory.glob("bucket-*"))) >= 2
    for file in directory.glob("bucket-*"):
        kinds = {"title" in kept for _, kept in json_rows(file, ReadReport())}
        assert kinds == {int(file.name[7:12]) % 2 == 0}


def test_a_bad_row_costs_itself_alone(tmp_path: Path) -> None:
    bad = [
        row(20, 2, "caf\udce9", ParentId=1),  # one byte that is not UTF-8
        row(21, 2, "&#xD83D;", ParentId=1).replace("&amp;#", "&#"),  # a lone surrogate
        row(22, 2, "<p>not <closed", ParentId=1).replace(" />", ""),
        row(23, 2, "&bomb;", ParentId=1).replace("&amp;", "&"),
        row(24, 2, "x" * 5_000_000, ParentId=1),
        row(25, 2, "no parent"),
        row(26, 2, "no score", ParentId=1, Score=None),
        row(27, 1, "no title"),
        '  <row Id="28" />',
        row(29, 2, '"/> within', ParentId=1).replace("&quot;/&gt;", "/>"),
    ]
    path = write(tmp_path / "Posts.xml", document([*ROWS[:1], *bad, *ROWS[1:3]]))
    pairs, report = read(path, tmp_path)
    assert {p.id.split("/")[1] for p in pairs} == {"2", "3"}
    assert report.bad == [
        (f"{path}:4", "not UTF-8"),
        (f"{path}:5", "not well-formed XML"),
        (f"{path}:6", "record without its end"),
        (f"{path}:7", "not well-formed XML"),
        (f"{path}:8", "record too long"),
        (f"{path}:9", "answer without ParentId or Score"),
        (f"{path}:10", "answer without ParentId or Score"),
        (f"{path}:11", "question without Title"),
        (f"{path}:12", "post without Id or PostTypeId"),
        (f"{path}:13", "not well-formed XML"),
    ]


def test_a_file_that_breaks_off_is_used_up_to_there(tmp_path: Path) -> None:
    whole = document(ROWS)
    path = write(tmp_path / "Posts.xml", whole[: whole.index(b'<row Id="3"') + 40])
    pairs, report = read(path, tmp_path)
    assert {p.passage for p in pairs} == {"In a jar & dark.\none\ntwo"}
    assert report.bad == [(f"{path}:5", "file breaks off")]
    path = write(tmp_path / "Posts.xml", whole[: whole.index(b'  <row Id="3"')])
    assert read(path, tmp_path)[1].bad == [(f"{path}:5", "file breaks off")]
    packed = gzip.compress(document(ROWS[:3]), mtime=0) + gzip.compress(document(ROWS), mtime=0)[:-200]
    path = write(tmp_path / "Posts.xml.gz", packed)
    pairs, report = read(path, tmp_path)
    assert {p.passage for p in pairs} >= {"Freeze them."}
    [(place, reason)] = report.bad
    assert reason == "archive breaks off" and "after byte" in place


def test_entity_bombs_and_other_documents_are_refused(tmp_path: Path) -> None:
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    bomb = (
        f'<?xml version="1.0"?><!DOCTYPE posts [<!ENTITY e0 "ha">{entities}]><posts><row Id="1" Body="&e11;"/></posts>'
    )
    outside = '<!DOCTYPE posts SYSTEM "file:///etc/passwd"><posts></posts>'
    hidden = f"<!--{'x' * 500_000}-->{bomb[21:]}"
    for text in (bomb, outside, hidden):
        with pytest.raises(UserError, match=r"Posts\.xml: declares a document type"):
            read(write(tmp_path / "Posts.xml", text.encode()), tmp_path)
    for text in ('<users><row Id="1"/></users>', "", "\x00" * 5000, "{}" * 2_000_000):
        with pytest.raises(UserError, match="does not begin with <posts>"):
            read(write(tmp_path / "Posts.xml", text.encode()), tmp_path)
    assert read(write(tmp_path / "Posts.xml", b"<posts />"), tmp_path) == ([], ReadReport())


def test_memory_does_not_grow_with_the_dump(tmp_path: Path) -> None:
    path = tmp_path / "big" / "Posts.xml"
    path.parent.mkdir()
    body = f"<p>{'longer words ' * 380}</p>"
    with path.open("wb") as file:
        file.write(b"<posts>\n" + "\n".join(row(n, 1, "<p>b</p>", Title=f"t{n}") for n in range(100)).encode())
        for n in range(5_000):  # 25 MB
            file.write(row(1000 + n, 2, body, ParentId=n % 100).encode() + b"\n")
        file.write(b"</posts>")
    source = StackExchangePosts(str(path), work_dir=str(tmp_path / "work"), queries=["title"])
    report = ReadReport()
    flush, buckets.FLUSH_BYTES = buckets.FLUSH_BYTES, 2**20
    tracemalloc.start()
    try:
        pairs = sum(1 for _ in source.read(source.parts()[0], report))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        buckets.FLUSH_BYTES = flush
    assert pairs == 5_000 and not report.bad
    assert peak < 9_000_000


@pytest.mark.parametrize(
    ("fragment", "text"),
    [
        ("<p>a  b\nc</p><p>d<br>e</p>", "a b c\nd\ne"),
        ("<pre><code>if x:\n\n    y &lt; 1\n</code></pre>after", "if x:\n    y < 1\nafter"),
        ("x<script>alert(1)</script><img src='http://x'/> <!-- c -->y", "x y"),
        ("<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>", "a b\nc"),
        ("<p>unclosed <b>bold <i>both</p> &nbsp; &bogus; \ud800", "unclosed bold both\n&bogus; ?"),
        ("", ""),
        ("<!DOCTYPE x [<!ENTITY a 'b'>]>&a;", "]>&a;"),
    ],
)
def test_html_to_text(fragment: str, text: str) -> None:
    assert html_text(fragment) == text


@pytest.mark.parametrize("piece", ["<div>", "<b>", "<a ", "&", "<!--", "</p>", "<pre>", "<td>", "<ul><li>", "\n "])
def test_no_html_takes_long(piece: str) -> None:
    start = time.process_time()
    html_text(piece * (400_000 // len(piece)))
    assert time.process_time() - start < 5
