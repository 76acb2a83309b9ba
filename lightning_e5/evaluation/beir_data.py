"""Retrieval data in BEIR's layout: ``corpus.jsonl[.gz]``, ``queries.jsonl[.gz]`` and ``qrels/<split>.tsv``.

Strict where the usual loaders are lenient: a damaged line stops with its file and number.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_e5.errors import UserError
from lightning_e5.text import normalise_text
from lightning_e5.types import Qrels

_HEADER = ["query-id", "corpus-id", "score"]


@dataclass(frozen=True, slots=True)
class RetrievalData:
    """One split of a retrieval data set.

    ``corpus``: document id -> "title text"; ``queries``: query id -> text, only the judged ones (with a line in
    ``qrels``); ``dangling``: how many judged (query, document) pairs name a document that is not in the corpus;
    ``same_text``: queries whose text is that of the document of their id without its title.
    """

    name: str
    split: str
    corpus: dict[str, str]
    queries: dict[str, str]
    qrels: Qrels
    dangling: int = 0
    same_text: frozenset[str] = frozenset()


def load_beir(
    folder: Path | str, split: str = "test", name: str | None = None, *, with_title: bool = True
) -> RetrievalData:
    """Read one split of a folder in BEIR's layout.

    Args:
        folder: holds ``corpus.jsonl``, ``queries.jsonl`` (or their ``.gz``) and ``qrels/``.
        split: the file of ``qrels/`` without ``.tsv``.
        name: the data set's name; the folder's by default.
        with_title: put a document's title before its text.

    Raises:
        UserError: with file and line, for anything missing, malformed or named twice, and for a set without
            documents, without a relevant judgement, or with a judged query that has no text or an empty one. Empty
            documents are read: public collections hold some.
    """
    folder = Path(folder)
    corpus = load_corpus(folder, with_title=with_title)
    texts = _read_texts(_either(folder, "queries.jsonl"), with_title=False)
    qrels_path = folder / "qrels" / f"{split}.tsv"
    qrels = _read_qrels(qrels_path, texts)
    if not any(grade > 0 for grades in qrels.values() for grade in grades.values()):
        raise UserError(f"{qrels_path}: 0 queries with a relevant judgement (a score above 0)")
    dangling = sum(document not in corpus for grades in qrels.values() for document in grades)
    queries = {query: text for query, text in texts.items() if query in qrels}
    for query, text in queries.items():
        if not text.strip():
            rows = _text_rows(_either(folder, "queries.jsonl"), with_title=False)
            where = next(place for place, key, _, _ in rows if key == query)
            raise UserError(f"{where}: the query {query!r} is judged and its text is empty")
    same = _same_text(folder, corpus, queries) if with_title else frozenset()
    return RetrievalData(name or folder.resolve().name, split, corpus, queries, qrels, dangling, same)


def is_beir(folder: Path | str) -> bool:
    """Whether a folder has a corpus in BEIR's layout."""
    return any((Path(folder) / name).is_file() for name in ("corpus.jsonl", "corpus.jsonl.gz"))


def load_corpus(folder: Path | str, *, with_title: bool = True) -> dict[str, str]:
    """The documents of a folder in BEIR's layout, ``title text`` (or ``text``) by id; UserError as `load_beir`."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such directory")
    corpus = _read_texts(_either(folder, "corpus.jsonl"), with_title=with_title)
    if not corpus:
        raise UserError(f"{folder}: the corpus has 0 documents")
    return corpus


def collection_texts(folder: Path | str, *, corpus: bool = True) -> Iterator[str]:
    """Every query of a folder in BEIR's layout, judged or not, then every document's text without and with its title.

    The texts are streamed, so ids are not compared. UserError as `load_beir`.
    """
    folder = Path(folder)
    for _, _, _, text in _text_rows(_either(folder, "queries.jsonl"), with_title=False):
        yield text
    for _, _, title, text in _text_rows(_either(folder, "corpus.jsonl"), with_title=True) if corpus else ():
        yield text
        if title.strip():
            yield f"{title} {text}".strip()


def _either(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise UserError(f"{folder / name}: no such file (nor {name}.gz)")


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line) of a UTF-8 file, split on a line feed only: a text may hold U+2028 and its like."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as handle:
        number = 0
        try:
            for number, raw in enumerate(handle, 1):
                line = raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
                if line.strip():
                    yield number, line
        except UnicodeDecodeError as error:
            raise UserError(f"{path}:{number}: not valid UTF-8 ({error.reason})") from None
        except (EOFError, gzip.BadGzipFile, gzip.zlib.error) as error:  # type: ignore[attr-defined]
            raise UserError(f"{path}: damaged gzip file after line {number} ({error})") from None


def _text_rows(path: Path, *, with_title: bool) -> Iterator[tuple[str, str, str, str]]:
    """(place, id, title, text) of each row of a corpus or queries file; the title is "" where it is not asked for."""
    for number, line in text_lines(path):
        where = f"{path}:{number}"
        row = json_object(line, where)
        key = row.get("_id")
        if not isinstance(key, str) or not key:
            raise UserError(f"{where}: lacks the key '_id' (a non-empty string)")
        if not isinstance(row.get("text"), str):
            raise UserError(f"{where}: lacks the key 'text' (a string)")
        title = (row.get("title") or "") if with_title else ""
        if not isinstance(title, str):
            raise UserError(f"{where}: the key 'title' is not a string")
        yield where, key, title, row["text"]


def _read_texts(path: Path, *, with_title: bool) -> dict[str, str]:
    texts: dict[str, str] = {}
    for where, key, title, text in _text_rows(path, with_title=with_title):
        if key in texts:
            raise UserError(f"{where}: the id {key!r} was there before")
        texts[key] = f"{title} {text}".strip()
    return texts


def json_object(line: str, where: str) -> dict[str, Any]:
    """A line's JSON object; UserError names ``where`` for anything else."""
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: not a JSON object")
    return row


def _same_text(folder: Path, corpus: dict[str, str], queries: dict[str, str]) -> frozenset[str]:
    """The queries that have the text of the document of their id, its title left aside; the corpus is read again for these."""
    ends = {key: text for key, text in queries.items() if key in corpus and normalise_text(corpus[key]).endswith(normalise_text(text))}
    if not ends:
        return frozenset()
    rows = _text_rows(_either(folder, "corpus.jsonl"), with_title=False)
    return frozenset(key for _, key, _, text in rows if key in ends and normalise_text(text) == normalise_text(ends[key]))


def _read_qrels(path: Path, queries: dict[str, str]) -> Qrels:
    qrels: Qrels = {}
    lines = text_lines(path)
    _, header = next(lines, (0, ""))
    if header.split("\t") != _HEADER:
        raise UserError(f"{path}:1: lacks the header {' '.join(_HEADER)} (separated by tabs)")
    for number, line in lines:
        where = f"{path}:{number}"
        columns = line.split("\t")
        if len(columns) != 3:
            raise UserError(f"{where}: has {len(columns)} columns separated by tabs, not 3")
        query, document, text = columns
        try:
            grade = int(text)
        except ValueError:
            raise UserError(f"{where}: the score {text!r} is not an integer") from None
        if query not in queries:
            raise UserError(f"{where}: the query {query!r} has no text in the queries file")
        if document in qrels.setdefault(query, {}):
            raise UserError(f"{where}: the document {document!r} was judged for the query {query!r} before")
        qrels[query][document] = grade
    return qrels
