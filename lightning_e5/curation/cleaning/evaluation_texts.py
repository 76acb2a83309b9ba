"""The texts of the evaluation collections that training pairs must not hold, from the files as they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir.data import collection_texts
from lightning_e5.files.rows import table_rows

#: Keys of JSONL rows and columns of TSV files that hold a text; others (labels, scores, answers) are passed over.
TEXT_KEYS = ("text", "query", "question", "premise", "hypothesis", "sentence1", "sentence2")


@dataclass(frozen=True, slots=True)
class EvaluationText:
    """One text of an evaluation collection."""

    collection: str
    text: str


def evaluation_texts(paths: Sequence[Path | str], *, corpora: bool = True) -> Iterator[EvaluationText]:
    """Read every text of the named collections, one after another, in constant memory; empty texts are passed over.

    Args:
        paths: of each a folder in BEIR's layout (all queries, and the documents both with and without title), or a
            JSONL, TSV, CSV or Parquet file (as `lightning_e5.files.rows.table_rows` reads them, all splits of it) with one or more
            of `TEXT_KEYS`: labelled texts (``text``), NLI (``premise``, ``hypothesis``), questions (``question``), STS
            (``sentence1``, ``sentence2``). The first row or the header says which keys a file has.
        corpora: also the documents of BEIR folders, not their queries alone.

    Raises:
        UserError: with file and line, for a path that is none of these, a row without a text, and a file without rows.
    """
    for path, name in zip(paths, collection_names(paths), strict=True):
        found = 0
        for text in _texts(Path(path), corpora):
            found += 1
            if text.strip():
                yield EvaluationText(name, text)
        if not found:
            raise UserError(f"{path}: holds no text")


def collection_names(paths: Sequence[Path | str]) -> list[str]:
    """A name for each path: the folder's, or ``folder/file`` without endings; the path itself where two would be equal."""
    names = []
    for path in map(Path, paths):
        stem = path.name.removesuffix(".gz")
        for ending in (".jsonl", ".tsv", ".csv", ".parquet"):
            stem = stem.removesuffix(ending)
        names.append(path.name if stem == path.name else "/".join(p for p in (path.parent.name, stem) if p))
    counts = Counter(names)
    names = [name if counts[name] == 1 else str(path) for path, name in zip(paths, names, strict=True)]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{twice[0]}: is named twice among the evaluation collections")
    return names


def _texts(path: Path, corpora: bool) -> Iterator[str]:
    if path.is_dir():
        return collection_texts(path, corpus=corpora)
    if not path.exists():
        raise UserError(f"{path}: no such file or directory")
    if not any(path.name.lower().removesuffix(".gz").endswith(f".{ending}") for ending in ("jsonl", "tsv", "csv", "parquet")):
        raise UserError(f"{path}: is no folder in BEIR's layout, .jsonl, .tsv, .csv (or .gz of these) or .parquet file")
    return _table_texts(path)


def _table_texts(path: Path) -> Iterator[str]:
    keys: list[str] = []
    for place, row in table_rows(path):
        keys = keys or [key for key in TEXT_KEYS if key in row]
        if not keys:
            raise UserError(f"{place}: has none of the keys {', '.join(TEXT_KEYS)} (has: {', '.join(map(str, row))[:200]})")
        for key in keys:
            if not isinstance(row.get(key), str):
                raise UserError(f"{place}: lacks the key {key!r} (a string)")
            yield row[key]
