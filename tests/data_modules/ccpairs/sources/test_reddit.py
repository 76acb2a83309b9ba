"""Reddit's dumps: the join by post, what is skipped, the CSV, hostile records, bounded memory."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import random
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import zstandard

from data_modules.ccpairs.formats import buckets
from data_modules.ccpairs.formats.markup import reddit_text
from data_modules.ccpairs.sources.reddit import RedditComments, RedditSelfTexts
from data_modules.ccpairs.sources.reddit_csv import RedditCsv
from lightning_e5.errors import UserError
from lightning_e5.types import PairCandidate, PairFiles, ReadReport

POST: dict[str, Any] = {"author": "a", "created_utc": 1, "is_self": True, "over_18": False, "subreddit": "books"}


def post(key: str, title: str, selftext: str = "", **more: Any) -> dict[str, Any]:
    return {**POST, "id": key, "title": title, "selftext": selftext, "score": 10, **more}


def comment(key: str, post_id: str, body: str, parent: str | None = None, **more: Any) -> dict[str, Any]:
    return {"id": key, "link_id": f"t3_{post_id}", "parent_id": parent or f"t3_{post_id}", "body": body, "score": 3, **more}


def dump(path: Path, rows: list[Any]) -> str:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(zstandard.ZstdCompressor().compress(b"".join(line + b"\n" for line in lines)))
    return str(path)


def read(source: PairFiles, parts: list[Any] | None = None) -> tuple[list[PairCandidate], ReadReport]:
    report = ReadReport()
    return [pair for part in parts or source.parts() for pair in source.read(part, report)], report


def test_comments_are_joined_to_their_posts(tmp_path: Path) -> None:
    posts = dump(
        tmp_path / "RS_2020-01.zst",
        [
            post("p1", "Which book &amp; why?", "I liked [Dune](https://en.wikipedia.org/wiki/Dune_(novel\\)).", over_18=True),
            post("p2", "A link", is_self=False),
            post("p3", "[deleted by user]", "[removed]"),
            post("p4", "Gone text", "[deleted]", score=None),
            {**POST, "id": [7], "title": "wrong id"},
            b'{"id": "cut',
        ],
    )
    comments = dump(
        tmp_path / "RC_2020-01.zst",
        [
            comment("c1", "p1", "&gt; why?\n\nBecause &amp;#x200B;**of** it.", score=0),
            comment("c2", "p1", "a reply", "t1_c1"),
            comment("c3", "p1", "[deleted]"),
            comment("c4", "p2", "[removed]"),
            comment("c5", "p2", "x" * 5000, score=None),
            comment("c6", "p3", "comment on a deleted post"),
            comment("c7", "zz", "comment on an unknown post"),
            comment("c8", "p4", "Good"),
            {"id": "c9", "body": "no link"},
        ],
    )
    source = RedditComments(posts, [comments], work_dir=str(tmp_path / "work"), buckets=3)
    pairs, report = read(source)
    by_id = {pair.id: pair for pair in pairs}
    assert set(by_id) == {"t1_c1", "t1_c5", "t1_c8"}
    assert by_id["t1_c1"].query.split("\n")[0] == "Which book & why?"
    assert by_id["t1_c1"].passage == "why?\nBecause of it."
    assert by_id["t1_c1"].facts == {"score": 0, "post_score": 10, "over_18": True, "subreddit": "books"}
    assert by_id["t1_c5"].query == "A link" and len(by_id["t1_c5"].passage) == 5000
    assert "score" not in by_id["t1_c5"].facts
    assert by_id["t1_c8"].query == "Gone text" and "post_score" not in by_id["t1_c8"].facts
    assert report.counts == {
        "records": 15, "pairs": 3, "bad: post without id or title": 1, "bad: not JSON": 1, "bad: comment without id, link_id or body": 1,
        "skipped: deleted or removed": 3, "skipped: comment on a comment": 1, "skipped: comment without its post": 2,
    }  # fmt: skip
    assert (f"{posts}:6", "not JSON") in report.bad
    bare = RedditComments(posts, comments, work_dir=str(tmp_path / "work"), buckets=1, with_selftext=False, top_level_only=False)
    found = {pair.id: pair.query for pair in read(bare)[0]}
    assert found["t1_c1"] == found["t1_c2"] == "Which book & why?"


def many(tmp_path: Path) -> tuple[list[str], list[str]]:
    draw = random.Random(5)
    posts = [post(f"p{n}", f"title {n}", "text" * (n % 3)) for n in range(300)]
    comments = [comment(f"c{n}", f"p{draw.randrange(330)}", f"body {n}") for n in range(2000)]
    draw.shuffle(comments)
    return [dump(tmp_path / f"RS_{n}.zst", posts[n::2]) for n in range(2)], [dump(tmp_path / f"RC_{n}.zst", comments[n::3]) for n in range(3)]


def test_the_same_pairs_whatever_the_order_of_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    posts, comments = many(tmp_path)
    one = RedditComments(posts, comments, work_dir=str(tmp_path / "one"), buckets=5)
    expected, report = read(one)
    assert len(expected) == report.counts["pairs"] == 2000 - report.counts["skipped: comment without its post"]
    monkeypatch.setattr(buckets, "FLUSH_BYTES", 5000)  # many small frames
    other = RedditComments(posts, comments, work_dir=str(tmp_path / "other"), buckets=5)
    backwards = {part: read(other, [part]) for part in reversed(other.parts())}
    assert [pair for part in one.parts() for pair in backwards[part][0]] == expected
    summed = ReadReport()
    for part in one.parts():
        summed.add(backwards[part][1])
    assert summed.counts == report.counts
    fewer = RedditComments(posts, comments, work_dir=str(tmp_path / "one"), buckets=2)
    assert sorted(p.id for p in read(fewer)[0]) == sorted(p.id for p in expected)


def _in_process(source: RedditComments, part: Any, out: str) -> None:
    Path(out).write_bytes(pickle.dumps(read(source, [part])[0]))


def test_processes_share_the_work(tmp_path: Path) -> None:
    posts, comments = many(tmp_path)
    source = RedditComments(posts, comments, work_dir=str(tmp_path / "shared"), buckets=3)
    context = multiprocessing.get_context("fork")
    outs = [str(tmp_path / f"out{n}") for n in range(3)]
    tasks = [pickle.loads(pickle.dumps((source, part, out))) for part, out in zip(source.parts(), outs, strict=True)]
    workers = [context.Process(target=_in_process, args=task) for task in tasks]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    together = [pair for out in outs for pair in pickle.loads(Path(out).read_bytes())]
    assert together == read(RedditComments(posts, comments, work_dir=str(tmp_path / "alone"), buckets=3))[0]


def test_what_a_killed_process_left_is_made_again_and_damage_is_noticed(tmp_path: Path) -> None:
    posts, comments = many(tmp_path)
    work = tmp_path / "work"
    source = RedditComments(posts, comments, work_dir=str(work), buckets=2)
    expected = read(source)[0]
    [first] = work.glob("RC_0-*/")
    (first / "manifest.json").unlink()
    (first / "bucket-00000.jsonl.zst").write_bytes(b"half")
    assert read(source)[0] == expected
    file = first / "bucket-00000.jsonl.zst"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"remove .* to have it made again"):
        read(source)


def test_fingerprints_follow_files_and_settings(tmp_path: Path) -> None:
    posts, comments = many(tmp_path)
    prints = [
        json.dumps(RedditComments(posts, comments, work_dir=str(tmp_path), **settings).fingerprint())
        for settings in ({}, {}, {"buckets": 2}, {"top_level_only": False}, {"with_selftext": False})
    ]
    assert len(set(prints)) == 4
    before = RedditSelfTexts(posts).fingerprint()
    dump(Path(posts[0]), [post("p", "new")])
    assert RedditSelfTexts(posts).fingerprint() != before


def test_memory_does_not_grow_with_the_dump(tmp_path: Path) -> None:
    body = "longer words " * 85
    posts = dump(tmp_path / "RS.zst", [post(f"p{n}", f"title {n}") for n in range(200)])
    comments = tmp_path / "RC.zst"
    with comments.open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as writer:
        for n in range(24_000):  # 28 MB
            writer.write(json.dumps(comment(f"c{n}", f"p{n % 200}", body)).encode() + b"\n")
    source = RedditComments(posts, str(comments), work_dir=str(tmp_path / "work"), buckets=4)
    flush, buckets.FLUSH_BYTES = buckets.FLUSH_BYTES, 2**20
    tracemalloc.start()
    try:
        report = ReadReport()
        pairs = sum(1 for part in source.parts()[:1] for _ in source.read(part, report))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        buckets.FLUSH_BYTES = flush
    assert 4_000 < pairs < 9_000
    assert peak < 9_000_000


def test_self_texts(tmp_path: Path) -> None:
    path = dump(
        tmp_path / "RS.zst",
        [
            post("p1", "Title", "Body\n\nmore"), post("p2", "Link"), post("p3", "Gone", " [removed] "), post("p4", "Long", "x" * 200_001),
            post("p5", "Lone \ud83d", "y"), post("p6", "Zero width", "&amp;#x200B;"),
        ],
    )
    pairs, report = read(RedditSelfTexts([path], name="reddit"))
    found = [(p.query, p.passage, p.id, p.source) for p in pairs]
    assert found == [("Title", "Body\nmore", "t3_p1", "reddit"), ("Lone \ufffd", "y", "t3_p5", "reddit")]
    assert pairs[0].facts == {"score": 10, "over_18": False, "subreddit": "books"}
    assert report.counts["skipped: post without text"] == report.counts["skipped: deleted or removed"] == 1
    assert report.counts["skipped: empty text"] == report.counts["cleaned: lone surrogates"] == 1
    assert report.bad == [(f"{path}:4", "text longer than Reddit allows")]


HEADER = "created_utc,score,domain,id,title,permalink,selftext,over_18,is_self,name\n"


def test_csv_cells_may_have_many_lines(tmp_path: Path) -> None:
    path = tmp_path / "linguistics.csv"
    path.write_bytes(
        HEADER.encode()
        + b"1.0,773,i.com,a1,A link,http://www.reddit.com/r/linguistics/comments/a1/,,False,False,t3_a1\n"
        + b'2.0,-5,self,a2,"Why ""I\'m""?",http://www.reddit.com/r/linguistics/comments/a2/,"First &lt;b&gt;\n\nSecond, line",True,True,t3_a2\n'
        + b"3.0,7,self,a3,too,few\n"
        + b'4.0,8,self,a4,Bad bytes,x,"caf\xe9\nmore",False,True,t3_a4\n'
        + "5.0,n/a,self,a5,„Good”,x,ünï,False,True,t3_a5\r\n".encode()
        + b'6.0,1,self,a6,Open quote,x,"never closed\n'
        + b"line of it\n" * 30_000
        + b"7.0,1,self,a7,Last,x,Text,False,True,t3_a7\n"
    )
    pairs, report = read(RedditCsv(str(path)))
    assert [(p.query, p.passage) for p in pairs][:2] == [('Why "I\'m"?', "First <b>\nSecond, line"), ("„Good”", "ünï")]
    assert pairs[0].facts == {"score": -5, "over_18": True, "subreddit": "linguistics"}
    assert pairs[1].facts == {"over_18": False}
    assert report.bad[:3] == [(f"{path}:6", "wrong number of columns"), (f"{path}:7", "not UTF-8"), (f"{path}:10", "not CSV")]
    assert (pairs[-1].query, pairs[-1].passage) == ("Last", "Text")  # the open quote swallowed no more than a cell


def test_csv_without_a_column_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    for text in (HEADER.replace("selftext", "body"), "", "\x00\n"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"x\.csv: lacks the column"):
            read(RedditCsv(str(path)))


@pytest.mark.parametrize(
    ("markdown", "text"),
    [
        ('a [link](http://x.org/a_(b)) and [two](/r/x "t").', "a link and two."),
        ("&amp;lt;tag&amp;gt; &amp;nbsp;x &copy=1 AT&amp;T", "<tag> x &copy=1 AT&T"),
        ("# Head\n\n&gt;&gt; quote\n***\n* item **bold** *it* 2*3*4", "Head\nquote\n* item bold it 2*3*4"),
        ("&gt;!spoiler!&lt; \\*not\\* ~~old~~", "spoiler *not* old"),
        ("[[a]](x) [b] (c) [d]", "[[a]](x) [b] (c) [d]"),
    ],
)
def test_markdown_to_text(markdown: str, text: str) -> None:
    assert reddit_text(markdown) == text


PIECES = ["[", "[a](", "[a](x ", "**a ", "*", "*a ", "> ", "- ", "\n", " ", "&", "&amp;", "~~", "\\", "[a]((", "# ", "(", '[a](x "']


@pytest.mark.parametrize("piece", PIECES)
def test_no_text_takes_long(piece: str) -> None:
    start = time.process_time()
    reddit_text(piece * (200_000 // len(piece)))
    assert time.process_time() - start < 5


def test_parts_have_the_names_that_manifests_hold(tmp_path: Path) -> None:
    posts, comments = many(tmp_path)
    assert [str(part) for part in RedditComments(posts, comments, work_dir=str(tmp_path), buckets=2).parts()] == ["posts 0 of 2", "posts 1 of 2"]
