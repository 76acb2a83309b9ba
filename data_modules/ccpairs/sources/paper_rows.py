"""Title, abstract and citations of a paper's row, in every layout that Semantic Scholar has given papers in.

A row of S2ORC has its texts under keys (2019, 2020), or as offsets into one text (``content``, from 2022 on; ``body``, from
2025 on), the lists of offsets themselves written as JSON strings; the Open Research Corpus and the API have names of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from data_modules.ccpairs.sources.pair_text import one_line
from data_modules.ccpairs.sources.paper_index import PaperId, paper_id
from lightning_e5.types import ReadReport

_IDS = ("paper_id", "corpusid", "corpusId", "paperId", "id")
_ABSTRACTS = ("abstract", "paperAbstract")
_CITED_IDS = ("outbound_citations", "outCitations")
#: Where a text with annotations may lie.
_ANNOTATED = ("content", "body")


class _DamagedError(Exception):
    """A row's part of the wrong kind; its message is the reason."""


def row_id(row: Mapping[str, Any]) -> Any:
    """The paper's id as it stands there; None where it has none."""
    return next((row[key] for key in _IDS if row.get(key) is not None), None)


def title_and_abstract(row: Mapping[str, Any], place: str, report: ReadReport) -> tuple[str, str] | None:
    """Both on one line each, ``""`` where the paper has none; None, and a bad record, where the row is none of a paper."""
    try:
        return _title_and_abstract(row)
    except _DamagedError as damage:
        report.reject(place, str(damage))
        return None


def cited_papers(row: Mapping[str, Any], place: str, report: ReadReport) -> list[tuple[PaperId | None, str]]:
    """(id, title) of the cited papers, either of which may be unknown, each id once."""
    try:
        return list(_cited(row))
    except _DamagedError as damage:
        report.reject(place, str(damage))
        return []


def _title_and_abstract(row: Mapping[str, Any]) -> tuple[str, str]:
    annotated = _annotated(row)
    inner = row["metadata"] if isinstance(row.get("metadata"), dict) else {}
    has_text = any(key in rows for rows in (row, inner) for key in ("title", *_ABSTRACTS))
    if annotated is None and not has_text:
        raise _DamagedError("neither title nor abstract, so no row of papers")
    title = next((found for rows in (row, inner) if (found := _text(rows.get("title"), "title"))), "")
    parses = (row, inner, *(row[key] for key in ("grobid_parse", "latex_parse") if isinstance(row.get(key), dict)))
    abstract = next((found for rows in parses for key in _ABSTRACTS if (found := _text(rows.get(key), "abstract"))), "")
    if annotated is not None:
        title = title or " ".join(text for _, _, text, _ in _spans(annotated, "title", most=1))
        abstract = abstract or " ".join(text for _, _, text, _ in _spans(annotated, "abstract"))
    return one_line(title), one_line(abstract)


def _text(value: Any, what: str) -> str:
    """A string, or paragraphs with ``text``."""
    if value is None or isinstance(value, str):
        return value or ""
    if what == "abstract" and isinstance(value, list):
        texts = [part.get("text") if isinstance(part, dict) else part for part in value]
        return " ".join(text for text in texts if isinstance(text, str))
    raise _DamagedError(f"{what} is no {'string' if what == 'title' else 'text'}")


def _annotated(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The part of a row that holds a text and its annotations."""
    for key in _ANNOTATED:
        part = row.get(key)
        if isinstance(part, dict) and isinstance(part.get("annotations"), dict):
            return part
    return None


def _spans(part: Mapping[str, Any], kind: str, most: int | None = None) -> Iterator[tuple[int, int, str, Mapping[str, Any]]]:
    """(start, end, text, attributes) of the annotations of a kind, in their order."""
    text, listed = part.get("text"), part["annotations"].get(kind)
    if isinstance(listed, str):
        try:
            listed = json.loads(listed)
        except (ValueError, RecursionError):
            raise _DamagedError(f"annotations of {kind} are not JSON") from None
    if not isinstance(text, str) or not isinstance(listed, list | None):
        raise _DamagedError("text or annotations of the wrong kind")
    for entry in (listed or [])[:most]:
        try:
            start, end = int(entry["start"]), int(entry["end"])
        except (KeyError, TypeError, ValueError):
            raise _DamagedError(f"an annotation of {kind} has no offsets") from None
        if not 0 <= start < end <= len(text):
            raise _DamagedError(f"an annotation of {kind} lies outside of the text")
        attributes = entry.get("attributes")
        yield start, end, text[start:end], attributes if isinstance(attributes, dict) else {}


def _cited(row: Mapping[str, Any]) -> Iterator[tuple[PaperId | None, str]]:
    known: set[PaperId | None] = set()
    for paper, title in (*_entries(row), *_references(row), *_bibliography(row)):
        known.add(paper)
        yield paper, title
    for key in _CITED_IDS:
        outbound = row.get(key) or []
        if not isinstance(outbound, list):
            raise _DamagedError(f"{key} is no list")
        for value in outbound:
            paper = paper_id(value)
            if paper is not None and paper not in known:
                known.add(paper)
                yield paper, ""


def _entries(row: Mapping[str, Any]) -> Iterator[tuple[PaperId | None, str]]:
    entries = row.get("bib_entries") or {}
    if not isinstance(entries, dict):
        raise _DamagedError("bib_entries is no object")
    for entry in entries.values():
        if isinstance(entry, dict):
            title = entry.get("title")
            yield paper_id(entry.get("link") or entry.get("links")), one_line(title) if isinstance(title, str) else ""


def _references(row: Mapping[str, Any]) -> Iterator[tuple[PaperId | None, str]]:
    """The API's."""
    for entry in row["references"] if isinstance(row.get("references"), list) else ():
        if isinstance(entry, dict):
            title = entry.get("title")
            yield paper_id(row_id(entry)), one_line(title) if isinstance(title, str) else ""


def _bibliography(row: Mapping[str, Any]) -> Iterator[tuple[PaperId | None, str]]:
    """The annotated entries, each with the first annotated title within it."""
    second = row.get("bibliography")
    part = second if isinstance(second, dict) and isinstance(second.get("annotations"), dict) else _annotated(row)
    if part is None:
        return
    kinds = ("bibentry", "bib_entry")
    entries = [span for kind in kinds for span in _spans(part, kind)]
    titles = sorted((start, end, text) for kind in ("bibtitle", "bib_title") for start, end, text, _ in _spans(part, kind))
    at = 0
    for start, end, _, attributes in sorted(entries, key=lambda entry: entry[:2]):
        while at < len(titles) and titles[at][0] < start:
            at += 1
        title = titles[at][2] if at < len(titles) and titles[at][1] <= end else ""
        yield paper_id(attributes.get("matched_paper_id")), one_line(title)
