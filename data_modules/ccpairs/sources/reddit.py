"""Reddit dumps as pairs: (post, comment) and (title, text of the post).

Pushshift's monthly files (https://files.pushshift.io/reddit, closed since 2023; copies lie at https://academictorrents.com). A
line of ``RS_2020-01.zst`` and one of ``RC_2020-01.zst``::

    {"id": "p1", "title": "Which book?", "selftext": "I liked Dune.", "score": 10, "over_18": false, "subreddit": "books"}
    {"id": "c1", "link_id": "t3_p1", "parent_id": "t3_p1", "body": "Try Hyperion.", "score": 3, "author": "a"}

give ("Which book?\\nI liked Dune.", "Try Hyperion.") and ("Which book?", "I liked Dune.").
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from data_modules.ccpairs.formats.buckets import BucketedFile, BucketPart, Buckets, bucket_of
from data_modules.ccpairs.formats.files import FileParts, expand, file_fingerprint
from data_modules.ccpairs.formats.markup import reddit_text
from data_modules.ccpairs.removed import is_by_bot, is_removed
from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError
from lightning_e5.files.lines import MAX_LINE_BYTES, json_rows
from lightning_e5.ranges import Count, Range
from lightning_e5.types import PairCandidate, ReadReport

#: Raise this when what is extracted changes.
VERSION = 2
_KIND = re.compile(r"t[1-6]_")
_POST_IN_PATH = re.compile(r"/comments/([a-z0-9]{1,13})(?:/|$)")
_POST_FACTS: tuple[str, ...] = ("post_score", "over_18", "subreddit")
#: Reddit allows 40,000 characters; written as entities, each may take five.
MAX_BODY_CHARS = 200_000


@configurable("pair source")
class RedditComments:
    """Pairs (post, comment) of Pushshift's dumps: the title, with the post's own text where it has one, and a comment.

    Posts and comments are divided by the post's id into buckets on disk, so that memory holds the posts of one bucket
    and no more. Facts: ``score`` and ``post_score`` (votes, where known), ``over_18`` (of the post), ``subreddit``.

    Args:
        submissions: files or patterns of posts (``RS_*``), one JSON object per line, plain or compressed.
        comments: files or patterns of comments (``RC_*``).
        work_dir: a directory for the buckets, about as large as the files; it may be removed afterwards.
        buckets: parts of the work; a bucket's posts are held in memory (2**30 posts in 1,024 buckets: about 1 GB each).
        top_level_only: leave out comments on comments.
        with_selftext: put the post's own text below its title in the query.
        max_line_bytes: longer lines are rejected.
        name: the source's name.

    Source: paper section 3.1, (post, upvoted comment); the limits on votes and length are heuristics, not applied here.
    """

    def __init__(
        self,
        submissions: str | Sequence[str],
        comments: str | Sequence[str],
        *,
        work_dir: str,
        buckets: Annotated[int, Range(1, 65536)] = 64,
        top_level_only: bool = True,
        with_selftext: bool = True,
        max_line_bytes: Count = MAX_LINE_BYTES,
        name: str = "reddit",
    ) -> None:
        if buckets < 1:
            raise UserError(f"buckets={buckets} must be at least 1")
        self.name, self.count, self.with_selftext = name, buckets, with_selftext
        self.settings = {"version": VERSION, "top_level_only": top_level_only, "max_line_bytes": max_line_bytes}
        post_rows = partial(_post_rows, buckets=buckets, max_line_bytes=max_line_bytes)
        comment_rows = partial(
            _comment_rows, buckets=buckets, max_line_bytes=max_line_bytes, top_level_only=top_level_only
        )
        posts = {"rows": "posts", "version": VERSION, "max_line_bytes": max_line_bytes}
        comments_by = {"rows": "comments", **self.settings}
        self._posts = [BucketedFile(path, buckets, posts, post_rows) for path in expand(submissions)]
        self._comments = [BucketedFile(path, buckets, comments_by, comment_rows) for path in expand(comments)]
        self._buckets = Buckets(work_dir, [*self._posts, *self._comments])

    def parts(self) -> Sequence[BucketPart]:
        return [BucketPart("posts", bucket, self.count) for bucket in range(self.count)]

    def read(self, part: BucketPart, report: ReadReport) -> Iterator[PairCandidate]:
        bucket = part.bucket
        self._buckets.make()
        if bucket == 0:  # what dividing the files counted belongs to one part
            for file in self._buckets.files:
                report.add(self._buckets.report(file))
        posts: dict[str, dict[str, Any]] = {}
        for file in self._posts:
            for row in self._buckets.rows(file, bucket):
                posts[row["post"]] = row  # of a post in two dumps, the later one counts
        for file in self._comments:
            for row in self._buckets.rows(file, bucket):
                post = posts.get(row["post"])
                if post is None:
                    report.skip(f"comment {row['id']}", "comment without its post")
                    continue
                if "query" not in post:  # made once: a post may have thousands of comments
                    _make_query(post, self.with_selftext)
                passage, query = reddit_text(row["body"]), post["query"]
                if not passage or not query:
                    report.skip(f"comment {row['id']}", "empty text")
                    continue
                facts = {**post["facts"], "score": row["score"]} if "score" in row else {**post["facts"]}
                report.counts["pairs"] += 1
                yield PairCandidate(query, passage, self.name, f"t1_{row['id']}", facts=facts)

    def fingerprint(self) -> Mapping[str, Any]:
        return {
            "kind": "reddit-comments",
            "name": self.name,
            **self.settings,
            "with_selftext": self.with_selftext,
            "buckets": self.count,
            "submissions": file_fingerprint([file.path for file in self._posts]),
            "comments": file_fingerprint([file.path for file in self._comments]),
        }


@configurable("pair source")
class RedditSelfTexts(FileParts):
    """Pairs (title, the post's own text) of Pushshift's submissions; posts that are links have none.

    Args:
        paths: files or patterns of posts (``RS_*``), one JSON object per line, plain or compressed.
        max_line_bytes: longer lines are rejected.
        name: the source's name.
    """

    def __init__(
        self, paths: str | Sequence[str], *, max_line_bytes: Count = MAX_LINE_BYTES, name: str = "reddit-selftexts"
    ) -> None:
        self.name, self._paths, self.max_line_bytes = name, expand(paths), max_line_bytes

    def read(self, part: str, report: ReadReport) -> Iterator[PairCandidate]:
        for place, row in json_rows(part, report, self.max_line_bytes):
            yield from self_text_pairs(place, row, self.name, report)

    def fingerprint(self) -> Mapping[str, Any]:
        files = file_fingerprint(self._paths)
        return {
            "kind": "reddit-selftexts",
            "name": self.name,
            "version": VERSION,
            "max_line_bytes": self.max_line_bytes,
            "files": files,
        }


def self_text_pairs(place: str, row: Mapping[str, Any], source: str, report: ReadReport) -> Iterator[PairCandidate]:
    """The pair (title, own text) of a post's row, if it has one; else the report says why not."""
    title, body, key = row.get("title"), row.get("selftext"), _own_id(row, "t3_")
    if not isinstance(title, str) or not key:
        report.reject(place, "post without id or title")
    elif not isinstance(body, str) or not body.strip():
        report.skip(place, "post without text")
    elif max(len(body), len(title)) > MAX_BODY_CHARS:
        report.reject(place, "text longer than Reddit allows")
    elif is_removed(body) or is_removed(title):
        report.skip(place, "deleted or removed")
    elif is_by_bot(row.get("author"), body):
        report.skip(place, "by a bot")
    elif not (query := _one_line(title)) or not (passage := reddit_text(body)):
        report.skip(place, "empty text")
    else:
        report.counts["pairs"] += 1
        yield PairCandidate(query, passage, source, f"t3_{key}", facts=_facts(row, "score"))


def _post_rows(
    path: Path, report: ReadReport, buckets: int, max_line_bytes: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    for place, row in json_rows(path, report, max_line_bytes):
        title, key = row.get("title"), _own_id(row, "t3_")
        if not isinstance(title, str) or not key:
            report.reject(place, "post without id or title")
            continue
        body = row.get("selftext")
        body = body if isinstance(body, str) and not is_removed(body) else ""
        if max(len(body), len(title)) > MAX_BODY_CHARS:
            report.reject(place, "text longer than Reddit allows")
        elif is_removed(title):
            report.skip(place, "deleted or removed")
        else:
            yield bucket_of(key, buckets), {"post": key, "title": title, "body": body, **_facts(row, "post_score")}


def _comment_rows(
    path: Path, report: ReadReport, buckets: int, max_line_bytes: int, top_level_only: bool
) -> Iterator[tuple[int, dict[str, Any]]]:
    for place, row in json_rows(path, report, max_line_bytes):
        post, body, key = _post_id(row), row.get("body"), _own_id(row, "t1_")
        if not post or not isinstance(body, str) or not key:
            report.reject(place, "comment without id, link_id or body")
        elif len(body) > MAX_BODY_CHARS:
            report.reject(place, "text longer than Reddit allows")
        elif is_removed(body):
            report.skip(place, "deleted or removed")
        elif is_by_bot(row.get("author"), body):
            report.skip(place, "by a bot")
        elif top_level_only and not _is_on_the_post(row.get("parent_id"), post):
            report.skip(place, "comment on a comment")
        else:
            score = _votes(row.get("score"))
            known = {} if score is None else {"score": score}
            yield bucket_of(post, buckets), {"post": post, "id": key, "body": body, **known}


def _id(value: Any, kind: str) -> str:
    """An id without its kind (``t1_`` of comments, ``t3_`` of posts), a number as the base 36 that it stands for; else ``""``."""
    if isinstance(value, str):
        id = value.strip().removeprefix(kind)
        return "" if id[2:3] == "_" and _KIND.match(id) else id
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63:
        return np.base_repr(value, 36).lower()
    if isinstance(value, float) and value.is_integer():  # a table with a missing id makes numbers of all others
        return _id(int(value), kind)
    return ""


def _own_id(row: Mapping[str, Any], kind: str) -> str:
    return _id(row.get("id"), kind) or _id(row.get("name"), kind)


def _post_id(row: Mapping[str, Any]) -> str:
    """The id of a comment's post: its ``link_id``, or the one in its address."""
    found = _id(row.get("link_id"), "t3_")
    if not found and isinstance(row.get("permalink"), str) and (match := _POST_IN_PATH.search(row["permalink"])):
        found = match[1]
    return found


def _is_on_the_post(parent: Any, post: str) -> bool:
    """Whether a comment answers the post: its parent is one, or is not given, as in dumps from 2022 on for such comments."""
    if parent is None or parent == "":
        return True
    if isinstance(parent, str) and parent.startswith("t3_"):
        return True
    return _id(parent, "t3_") == post


def _facts(row: Mapping[str, Any], score_name: str) -> dict[str, Any]:
    """The votes, flag and subreddit of a post, those that it has."""
    facts: dict[str, Any] = {}
    if (score := _votes(row.get("score"))) is not None:
        facts[score_name] = score
    if isinstance(row.get("over_18"), bool):
        facts["over_18"] = row["over_18"]
    if isinstance(row.get("subreddit"), str) and row["subreddit"]:
        facts["subreddit"] = row["subreddit"]
    return facts


def _votes(value: Any) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,12}\s*", value):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _one_line(text: str) -> str:
    return " ".join(reddit_text(text).split())


def _make_query(post: dict[str, Any], with_selftext: bool) -> None:
    """Put the post as a query, and what its comments' facts say of it, in the place of its texts."""
    title = _one_line(post.pop("title"))
    body = post.pop("body")
    post["query"] = "\n".join(text for text in (title, reddit_text(body) if with_selftext else "") if text)
    post["facts"] = {key: post[key] for key in _POST_FACTS if key in post}
