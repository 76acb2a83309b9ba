"""Retrieval data in BEIR's layout: ``corpus.jsonl[.gz]``, ``queries.jsonl[.gz]`` and ``qrels/<split>.tsv[.gz]``.

Strict where the usual loaders are lenient: a damaged line stops with its file and number. What a set merely lacks (a judged
document or query without a text) is left out, counted and said.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lightning_e5.errors import UserError
from lightning_e5.files.beir_layout import either, read_judgements, stored_texts
from lightning_e5.files.storage import atomic_path, write_text
from lightning_e5.files.stored_corpus import RepeatedId, StoredCorpus
from lightning_e5.text import normalise_text
from lightning_e5.types import Qrels

#: A corpus whose file is larger (a hundred thousand passages, say) is read from scratch files; and how much larger than packed a file is.
STORED_BYTES = 2**26
_UNPACKED = 3


@dataclass(frozen=True, slots=True)
class RetrievalData:
    """One split of a retrieval data set.

    ``corpus``: document id -> "title text", in memory, or for a large one in scratch files (`StoredCorpus`); ``queries``: query id -> text, only the judged ones (with a line in
    ``qrels``); ``missing_documents``: how many judged (query, document) pairs name a document that is not in the corpus;
    ``left_out``: what else was not used -> how much of it (``queries_without_text``: judged queries that the queries file
    lacks or has no text of; ``repeated_judgements``: lines that say again what another one says; ``documents_without_text``:
    of NanoBEIR's sets alone);
    ``same_text``: queries whose text is that of the document of their id without its title.
    """

    name: str
    split: str
    corpus: Mapping[str, str]
    queries: dict[str, str]
    qrels: Qrels
    missing_documents: int = 0
    same_text: frozenset[str] = frozenset()
    left_out: Mapping[str, int] = field(default_factory=dict)


def load_beir(
    folder: Path | str, split: str = "test", name: str | None = None, *, with_title: bool = True, scratch: Path | None = None
) -> RetrievalData:
    """Read one split of a folder in BEIR's layout.

    Args:
        folder: holds ``corpus.jsonl``, ``queries.jsonl`` (or their ``.gz``) and ``qrels/``.
        split: the file of ``qrels/`` without ``.tsv``.
        name: the data set's name; the folder's by default.
        with_title: put a document's title before its text.
        scratch: see `load_corpus`.

    Raises:
        UserError: with file and line, for anything malformed, a text's id there twice, or a document judged twice with
            different scores; for a file that is missing, and a set without documents or without a relevant judgement of a
            query that has a text. Empty documents are read: public collections hold some.
    """
    folder = Path(folder)
    corpus = load_corpus(folder, with_title=with_title, scratch=scratch)
    texts_path = either(folder, "queries.jsonl")
    texts = _read_texts(texts_path, with_title=False)
    qrels_path = either(folder, f"qrels/{split}.tsv")
    judged, repeated = read_judgements(qrels_path)
    qrels = {query: grades for query, grades in judged.items() if texts.get(query)}
    left_out = Counter(queries_without_text=len(judged) - len(qrels), repeated_judgements=repeated)
    if not any(grade > 0 for grades in qrels.values() for grade in grades.values()):
        without = f" (of {left_out['queries_without_text']} judged queries {texts_path.name} has no text)" if len(qrels) < len(judged) else ""
        raise UserError(f"{qrels_path}: 0 queries with a relevant judgement (a score above 0){without}")
    missing = sum(document not in corpus for grades in qrels.values() for document in grades)
    queries = {query: text for query, text in texts.items() if query in qrels}
    same = _same_text(folder, corpus, queries) if with_title else frozenset()
    return RetrievalData(name or folder.resolve().name, split, corpus, queries, qrels, missing, same, dict(+left_out))


def write_beir(folder: Path, data: RetrievalData) -> None:
    """Write a data set to a folder that `load_beir` reads, its texts gzipped; equal data give equal bytes."""
    _write_lines(folder / "corpus.jsonl.gz", ({"_id": key, "title": "", "text": text} for key, text in data.corpus.items()))
    _write_lines(folder / "queries.jsonl.gz", ({"_id": key, "text": text} for key, text in data.queries.items()))
    lines = [f"{query}\t{document}\t{grade}\n" for query, grades in data.qrels.items() for document, grade in grades.items()]
    write_text(folder / f"qrels/{data.split}.tsv", "query-id\tcorpus-id\tscore\n" + "".join(lines))


def load_corpus(folder: Path | str, *, with_title: bool = True, scratch: Path | None = None) -> Mapping[str, str]:
    """The documents of a folder in BEIR's layout, ``title text`` (or ``text``) by id; UserError as `load_beir`.

    Those of a file of more than `STORED_BYTES` lie in files in the folder ``scratch``, or a temporary one (in ``TMPDIR``).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: {'is a file, not a directory' if folder.exists() else 'no such directory'}")
    path = either(folder, "corpus.jsonl")
    large = path.stat().st_size * (_UNPACKED if path.suffix == ".gz" else 1) > STORED_BYTES
    corpus = _stored_corpus(path, scratch, with_title=with_title) if large else _read_texts(path, with_title=with_title)
    if not corpus:
        raise UserError(f"{folder}: the corpus has 0 documents")
    return corpus


def collection_texts(folder: Path | str, *, corpus: bool = True) -> Iterator[str]:
    """Every query of a folder in BEIR's layout, judged or not, then every document's text without and with its title.

    The texts are streamed, so ids are not compared. UserError as `load_beir`.
    """
    folder = Path(folder)
    for row in stored_texts(either(folder, "queries.jsonl")):
        yield row.text
    for row in stored_texts(either(folder, "corpus.jsonl")) if corpus else ():
        yield row.text
        if row.title.strip():
            yield row.with_title()


def _write_lines(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as lines,
    ):
        lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _read_texts(path: Path, *, with_title: bool) -> dict[str, str]:
    texts: dict[str, str] = {}
    for row in stored_texts(path):
        if row.id in texts:
            raise UserError(f"{row.place}: the id {row.id!r} was there before")
        texts[row.id] = row.with_title() if with_title else row.text.strip()
    return texts


def _stored_corpus(path: Path, scratch: Path | None, *, with_title: bool) -> StoredCorpus:
    try:
        return StoredCorpus(((row.id, row.with_title() if with_title else row.text.strip()) for row in stored_texts(path)), scratch)
    except RepeatedId as again:
        row = next(itertools.islice(stored_texts(path), again.row, None))
        raise UserError(f"{row.place}: {again}") from None


def _same_text(folder: Path, corpus: Mapping[str, str], queries: dict[str, str]) -> frozenset[str]:
    """The queries that have the text of the document of their id, its title left aside; the corpus is read again for these."""
    ends = {key: text for key, text in queries.items() if key in corpus and normalise_text(corpus[key]).endswith(normalise_text(text))}
    if not ends:
        return frozenset()
    rows = stored_texts(either(folder, "corpus.jsonl"))
    return frozenset(row.id for row in rows if row.id in ends and normalise_text(row.text) == normalise_text(ends[row.id]))
