"""Retrieval data on disk, read by one rule for evaluation and training: BEIR's ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/<split>.tsv``.

As in `lightning_e5.files.rows`, a bad row is a `UserError` without a report and is counted in one.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lightning_e5.errors import UserError
from lightning_e5.files.lines import text_lines
from lightning_e5.files.rows import check_text, json_objects, number_of, refuse
from lightning_e5.types import Qrels, ReadReport

#: Names of the columns of judgements in a header; BEIR's own come first.
_QUERY = ("query-id", "query_id", "queryid", "qid", "query", "topic")
_DOCUMENT = ("corpus-id", "corpus_id", "corpusid", "docid", "doc-id", "doc_id", "document", "pid")
_SCORE = ("score", "relevance", "rel", "label", "grade", "judgement", "judgment")
_ITERATION = ("iter", "iteration", "q0")
#: Grades fit the C integers of trec_eval.
_HIGHEST = 2**31 - 1
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class StoredText(NamedTuple):
    """One row of a corpus or queries file; a title or text that is null is empty."""

    place: str
    id: str
    title: str
    text: str

    def with_title(self) -> str:
        """``title text``, as documents are embedded."""
        return f"{self.title} {self.text}".strip()


class Judgements(NamedTuple):
    """``qrels``, and how many lines said again what a line before them said."""

    qrels: Qrels
    repeated: int


def is_beir(folder: Path | str) -> bool:
    """Whether a folder has a corpus in BEIR's layout."""
    return any((Path(folder) / name).is_file() for name in ("corpus.jsonl", "corpus.jsonl.gz"))


def either(folder: Path, name: str) -> Path:
    """A folder's file of a name, or that with ``.gz``; UserError where there is neither."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    there = next((path for path in (folder / name, folder / f"{name}.gz") if path.exists()), None)
    raise UserError(f"{there}: is no regular file" if there else f"{folder / name}: no such file (nor {Path(name).name}.gz)")


def stored_texts(path: Path, report: ReadReport | None = None) -> Iterator[StoredText]:
    """The rows of a corpus or queries file, in its order; an ``_id`` that is an integer is its digits.

    Raises:
        UserError: another kind of file; without a report also a row without ``_id`` or ``text``, or with one that is of another type.
    """
    for place, row in json_objects(path, report):
        key, title, text = row.get("_id"), row.get("title"), row.get("text", 0)
        if isinstance(key, int) and not isinstance(key, bool):
            key = str(key)
        if not isinstance(key, str) or not key.strip():
            refuse(report, place, "lacks the key '_id' (a string that is not empty, or an integer)")
        elif _CONTROL.search(key):
            refuse(report, place, "the '_id' holds a control character", f" ({key[:60]!r}), which lists of judgements and results cannot hold")
        elif text is not None and not isinstance(text, str):
            refuse(report, place, "lacks the key 'text' (a string)")
        elif title is not None and not isinstance(title, str):
            refuse(report, place, "the key 'title' is not a string")
        else:
            yield StoredText(place, key, title or "", text or "")


def read_judgements(path: Path, report: ReadReport | None = None) -> Judgements:
    """Read judgements: BEIR's three columns (query, document, score) or TREC's four (query, iteration, document, score).

    Columns are separated by tabs, or by white space where no tab is in the first line. A header is read where there is one,
    and decides the columns' order. A score may be written as ``1`` or ``1.0``. The same judgement twice counts once.

    Raises:
        UserError: another kind of file; without a report also a line of another number of columns, a score that is no whole
            number of 32 bits, or a document that is judged twice for a query with different scores.
    """
    check_text(path, "TSV (query, document and score)")
    lines = text_lines(path, report, whole=True)
    number, first = next(lines, (0, ""))
    if not number:
        raise UserError(f"{path}: has no judgement")
    separator = "\t" if "\t" in first else None
    head = first.split(separator)
    begin = [(number, first)] if number_of(head[-1]) is not None else []
    query_at, document_at, score_at = _columns(f"{path}:{number}", head, header=not begin)
    qrels: Qrels = {}
    repeated = 0
    for number, line in itertools.chain(begin, lines):
        place, cells = f"{path}:{number}", line.split(separator)
        if report is not None:
            report.counts["records"] += 1
        if len(cells) != len(head):
            refuse(report, place, "another number of columns than in the first line", f" ({len(cells)}, not {len(head)})")
            continue
        query, document, score = cells[query_at], cells[document_at], number_of(cells[score_at])
        grades = qrels.get(query, {})
        if score is None or score != int(score) or abs(score) > _HIGHEST:
            detail = f" of 32 bits ({cells[score_at][:40]!r})"
            refuse(report, place, "the score is not a whole number", detail)
        elif not query.strip() or not document.strip() or _CONTROL.search(query + document):
            refuse(report, place, "an id is empty or holds a control character", f" ({query[:40]!r}, {document[:40]!r})")
        elif document not in grades:
            qrels.setdefault(query, {})[document] = int(score)
        elif grades[document] == int(score):
            repeated += 1
        else:
            detail = f" (document {document[:40]!r}, query {query[:40]!r}: {grades[document]}, then {int(score)})"
            refuse(report, place, "the document was judged before with another score", detail)
    return Judgements(qrels, repeated)


def _columns(place: str, head: Sequence[str], *, header: bool) -> tuple[int, int, int]:
    """Where query, document and score stand; by the header's names, or by how many columns there are."""
    if not header and len(head) in (3, 4):
        return (0, 1, 2) if len(head) == 3 else (0, 2, 3)
    names = [name.strip().lower() for name in head]
    found = [[place for place, name in enumerate(names) if name in known] for known in (_QUERY, _DOCUMENT, _SCORE, _ITERATION)]
    if not header or [len(places) for places in found[:3]] != [1, 1, 1] or sum(map(len, found)) != len(names):
        raise UserError(
            f"{place}: is neither the header {_QUERY[0]} {_DOCUMENT[0]} {_SCORE[0]} nor a judgement "
            "(query, document and whole number, or TREC's query, 0, document and whole number)"
        )
    return found[0][0], found[1][0], found[2][0]
