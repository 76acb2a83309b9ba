"""Reddit posts in CSV files as pairs (title, text of the post).

From https://github.com/umbrae/reddit-top-2.5-million, ``data/*.csv``::

    created_utc,score,domain,id,title,permalink,selftext,over_18,is_self,name
    2.0,7,self,a2,"Which book?",http://www.reddit.com/r/books/comments/a2/,"I liked Dune.",False,True,t3_a2

gives ("Which book?", "I liked Dune.").
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_modules.ccpairs.formats.files import FileParts, expand, file_fingerprint
from data_modules.ccpairs.sources.pair_text import one_line
from data_modules.ccpairs.sources.reddit import VERSION, self_text_pairs
from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError
from lightning_e5.files.lines import MAX_LINE_BYTES, lines
from lightning_e5.ranges import Count
from lightning_e5.types import PairCandidate, ReadReport

#: Longest cell in characters; a post has at most 40,000.
_MAX_CELL_CHARS = 2**17
_SUBREDDIT_IN_PATH = re.compile(r"/r/([A-Za-z0-9_]+)/")
_CSV_COLUMNS = ("id", "title", "selftext", "score", "over_18")


@configurable("pair source")
class RedditCsv(FileParts):
    """Pairs (title, the post's own text) of CSV files with Reddit's names in the first row; cells may have many lines.

    Args:
        paths: files or patterns of CSV files with the columns id, title, selftext, score and over_18.
        max_line_bytes: longer lines are rejected.
        name: the source's name.

    Raises:
        UserError: while reading, when a file lacks a column.
    """

    def __init__(
        self, paths: str | Sequence[str], *, max_line_bytes: Count = MAX_LINE_BYTES, name: str = "reddit-csv"
    ) -> None:
        self.name, self._paths, self.max_line_bytes = name, expand(paths), max_line_bytes

    def read(self, part: str, report: ReadReport) -> Iterator[PairCandidate]:
        for place, row in _csv_rows(part, report, self.max_line_bytes):
            row["over_18"] = {"true": True, "false": False}.get(row["over_18"].lower())
            found = _SUBREDDIT_IN_PATH.search(row.get("permalink") or "")
            if found and not row.get("subreddit"):
                row["subreddit"] = found[1]
            yield from self_text_pairs(place, row, self.name, report)

    def fingerprint(self) -> Mapping[str, Any]:
        files = file_fingerprint(self._paths)
        return {
            "kind": "reddit-csv",
            "name": self.name,
            "version": VERSION,
            "max_line_bytes": self.max_line_bytes,
            "files": files,
        }


def _csv_rows(path: str, report: ReadReport, max_line_bytes: int) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(_MAX_CELL_CHARS)  # bounds what a quote that is never closed can swallow
    line = 0

    def text_lines() -> Iterator[str]:
        nonlocal line
        for line, data in lines(path, report, max_line_bytes):
            yield data.decode("utf-8-sig" if line == 1 else "utf-8", "surrogateescape") + "\n"

    reader = csv.reader(text_lines())
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise UserError(f"{path}: its first row is not CSV ({error})") from None
    missing = [column for column in _CSV_COLUMNS if column not in header]
    if missing:
        raise UserError(f"{path}: lacks the column {missing[0]!r} (has: {one_line(', '.join(header))[:200] or 'nothing'})")
    while True:
        place = f"{path}:{line + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            report.counts["records"] += 1
            report.reject(place, "not CSV")
            continue
        if not cells:
            continue
        report.counts["records"] += 1
        if len(cells) != len(header):
            report.reject(place, "wrong number of columns")
        elif any("\ud800" <= c <= "\udfff" for cell in cells if not cell.isascii() for c in cell):
            report.reject(place, "not UTF-8")
        else:
            yield place, dict(zip(header, cells, strict=True))
