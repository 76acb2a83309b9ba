"""Stack Exchange dumps as pairs: (question title, answer) and (title and body, answer).

From https://archive.org/details/stackexchange, one ``.7z`` per site with a ``Posts.xml``::

    <row Id="1" PostTypeId="1" AcceptedAnswerId="3" Score="5" Title="How to store beans?" Body="&lt;p&gt;I have beans.&lt;/p&gt;" />
    <row Id="3" PostTypeId="2" ParentId="1" Score="2" Body="&lt;p&gt;Freeze them.&lt;/p&gt;" />

gives ("How to store beans?", "Freeze them.") and ("How to store beans?\\nI have beans.", "Freeze them.").
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from data_modules.ccpairs.formats.buckets import BucketedFile, BucketPart, Buckets, bucket_of
from data_modules.ccpairs.formats.files import expand, file_fingerprint
from data_modules.ccpairs.formats.markup import html_text
from data_modules.ccpairs.formats.xml_records import xml_records
from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError
from lightning_e5.files.storage import empty_directory, sha256_text
from lightning_e5.files.streams import blocks
from lightning_e5.ranges import Count, Range
from lightning_e5.types import PairCandidate, ReadReport

#: Raise this when what is extracted changes.
VERSION = 1
POSTS = "Posts.xml"
#: Raise this when the buckets are laid out otherwise.
_LAYOUT = 2
#: Posts.xml shrinks to about this part of its size.
_COMPRESSION = 6
#: Text shrinks to a tenth, rows that are all alike to a hundredth; up to so many bytes are unpacked whatever they are.
MAX_RATIO = 200
_FREE_BYTES = 2**20
_OTHER_POSTS = {
    "3": "orphaned tag wiki",
    "4": "tag wiki",
    "5": "tag wiki",
    "6": "moderator nomination",
    "7": "wiki placeholder",
    "8": "privilege wiki",
}


@configurable("pair source")
class StackExchangePosts:
    """Pairs (question title, answer) and (question title and body, answer) of a site's Posts.xml.

    Every file is divided by the question's id into buckets on disk, so that memory holds the questions of one bucket.
    Facts: ``score`` (the answer's votes), ``post_score`` (the question's), ``accepted`` (bool), ``site``.

    Args:
        paths: files or patterns of Posts.xml, plain or compressed, or of .7z archives that hold one.
        work_dir: a directory for the buckets, about as large as the compressed files, and for one Posts.xml that is
            unpacked from a .7z at a time; it may be removed afterwards.
        min_score: least votes of an answer.
        queries: ``title``, ``title_body`` or both.
        bucket_bytes: about how much of a Posts.xml makes one bucket; each is a part of its own.
        name: the source's name.

    Source: paper section 3.1, (question title or title and body, upvoted answer).
    """

    def __init__(
        self,
        paths: str | Sequence[str],
        *,
        work_dir: str,
        min_score: Annotated[int, Range(-1e9, 1e9)] = 1,
        queries: Sequence[str] = ("title", "title_body"),
        bucket_bytes: Count = 512 * 2**20,
        name: str = "stackexchange",
    ) -> None:
        if bucket_bytes < 1:
            raise UserError(f"bucket_bytes={bucket_bytes} must be at least 1")
        if isinstance(queries, str) or not queries or set(queries) - {"title", "title_body"}:
            raise UserError(f"queries={queries!r} must be a list of 'title', 'title_body' or both")
        self.name, self.queries = name, tuple(query for query in ("title", "title_body") if query in queries)
        self.settings = {"version": VERSION, "min_score": min_score}
        self._files = []
        for path in expand(paths):
            count = _bucket_count(path, bucket_bytes)
            rows = partial(_post_rows, work_dir=Path(work_dir).expanduser(), min_score=min_score, parts=count)
            self._files.append(BucketedFile(path, 2 * count, {**self.settings, "layout": _LAYOUT}, rows))
        self.work_dir = work_dir

    def parts(self) -> Sequence[BucketPart]:
        counts = [(str(file.path), file.buckets // 2) for file in self._files]
        return [BucketPart(path, part, count) for path, count in counts for part in range(count)]

    def read(self, part: BucketPart, report: ReadReport) -> Iterator[PairCandidate]:
        file = next(file for file in self._files if str(file.path) == part.of)
        own = Buckets(self.work_dir, [file])
        own.make()
        if part.bucket == 0:  # what dividing the file counted belongs to one part
            report.add(own.report(file))
        site = _site(file.path)
        questions: dict[str, dict[str, Any]] = {row["id"]: row for row in own.rows(file, 2 * part.bucket)}
        for row in own.rows(file, 2 * part.bucket + 1):
            question, id = questions.get(row["parent"]), f"{site}/{row['id']}"
            if question is None:
                report.skip(id, "answer without its question")
                continue
            passage = html_text(row["body"])
            texts = self._query_texts(question)
            if not passage or not texts:
                report.skip(id, "empty text")
                continue
            facts = {"score": row["score"], "accepted": question.get("accepted") == row["id"], "site": site}
            if question.get("score") is not None:
                facts["post_score"] = question["score"]
            for text in texts:
                report.counts["pairs"] += 1
                yield PairCandidate(text, passage, self.name, id, facts=facts)

    def _query_texts(self, question: dict[str, Any]) -> list[str]:
        """The question as queries; made once, since it may have many answers."""
        if "texts" not in question:
            title = " ".join(question["title"].split())
            body = html_text(question.pop("body")) if "title_body" in self.queries else ""
            texts = {"title": title, "title_body": f"{title}\n{body}" if body else title}
            question["texts"] = list(dict.fromkeys(texts[query] for query in self.queries)) if title else []
        found: list[str] = question["texts"]
        return found

    def fingerprint(self) -> Mapping[str, Any]:
        return {
            "kind": "stackexchange",
            "name": self.name,
            **self.settings,
            "queries": list(self.queries),
            "buckets": [file.buckets // 2 for file in self._files],
            "files": file_fingerprint([file.path for file in self._files]),
        }


def _bucket_count(path: Path, bucket_bytes: int) -> int:
    """From the file's size alone, so that the parts are known before anything is read."""
    plain = path.stat().st_size * (1 if path.suffix.lower() == ".xml" else _COMPRESSION)
    return max(1, -(-plain // bucket_bytes))


def _site(path: Path) -> str:
    """``coffee`` of coffee.stackexchange.com.7z and of coffee/Posts.xml."""
    stem = path.parent.name if path.name.lower().startswith("posts.xml") else path.name.split(".7z")[0]
    return stem.removesuffix("-Posts").removesuffix(".com").removesuffix(".stackexchange")


def _post_rows(
    path: Path, report: ReadReport, *, work_dir: Path, min_score: int, parts: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Part ``n`` has its questions in bucket ``2 * n`` and its answers in the next, so that neither is read twice."""
    with _plain(path, report, work_dir) as plain:
        name = str(path) if plain == path else f"{path}/{POSTS}"
        for place, post in xml_records(name, blocks(plain), report, root="posts", tag="row", end="/>"):
            kind, key, body = post.get("PostTypeId"), post.get("Id"), post.get("Body", "")
            parent, title, score = post.get("ParentId"), post.get("Title"), _votes(post.get("Score"))
            if kind is None or not key:
                report.reject(place, "post without Id or PostTypeId")
            elif kind in _OTHER_POSTS:
                report.skip(place, _OTHER_POSTS[kind])
            elif kind == "1" and title is None:
                report.reject(place, "question without Title")
            elif kind == "2" and (not parent or score is None):
                report.reject(place, "answer without ParentId or Score")
            elif kind == "1":
                accepted = {"accepted": post.get("AcceptedAnswerId")} if post.get("AcceptedAnswerId") else {}
                if post.get("AnswerCount") == "0":
                    report.skip(place, "question without answers")
                else:
                    yield 2 * bucket_of(key, parts), {"id": key, "title": title, "body": body, "score": score, **accepted}
            elif kind != "2":
                report.skip(place, "other post")
            elif score is not None and score < min_score:
                report.skip(place, "answer below min_score")
            else:
                yield 2 * bucket_of(str(parent), parts) + 1, {"id": key, "parent": parent, "body": body, "score": score}


def _votes(value: str | None) -> int | None:
    try:
        return int(value) if value is not None and len(value) < 13 else None
    except ValueError:
        return None


def _plain(path: Path, report: ReadReport, work_dir: Path) -> AbstractContextManager[Path]:
    return _Unpacked(path, report, work_dir) if path.suffix.lower() == ".7z" else nullcontext(path)


class _Unpacked:
    """The Posts.xml of a .7z for the block's duration, on disk: the archive's library gives whole files or none."""

    def __init__(self, path: Path, report: ReadReport, work_dir: Path) -> None:
        self.path, self.report = path, report
        # One name per archive, whose lock is ours: what a killed process left is found and removed.
        self.directory = work_dir / f"unpacked-{sha256_text(str(path.resolve()))[:16]}"

    def __enter__(self) -> Path:
        import py7zr

        target = empty_directory(self.directory) / POSTS
        try:
            with py7zr.SevenZipFile(self.path) as archive:
                self._check(archive.list())
                archive.extract(path=self.directory, targets=[POSTS])
        except py7zr.exceptions.PasswordRequired:
            raise UserError(f"{self.path}: is encrypted") from None
        except Exception as error:  # of damaged archives the library raises whatever its decoders do
            if isinstance(error, UserError) or (isinstance(error, OSError) and error.errno is not None):
                raise
            size = target.stat().st_size if target.is_file() else 0
            self.report.reject(f"{self.path}: after byte {size} of its plain text", "archive is damaged")
        if not target.is_file() or not target.stat().st_size:  # nothing could be read, and the damage is counted
            target.write_text("<posts></posts>")
        return target

    def _check(self, members: list[Any]) -> None:
        """UserError unless one member is Posts.xml, a file, and of a size that text may have; no other one is written."""
        found = [member for member in members if member.filename == POSTS]
        if not found:
            raise UserError(f"{self.path}: holds no {POSTS}")
        if len(found) > 1 or not found[0].is_file or found[0].is_symlink:
            raise UserError(f"{self.path}: its {POSTS} is there twice, or is a link or folder")
        size, packed = found[0].uncompressed, self.path.stat().st_size
        if size > _FREE_BYTES and size > MAX_RATIO * packed:
            raise UserError(f"{self.path}: its {POSTS} unpacks to {size:,} bytes from {packed:,}, which is no text")
        free = shutil.disk_usage(self.directory).free
        if size > free:
            raise UserError(f"{self.path}: its {POSTS} has {size:,} bytes, and {self.directory} has room for {free:,}")

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
