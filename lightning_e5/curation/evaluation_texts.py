"""The texts of the evaluation collections that training pairs must not hold, from the files as they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir_data import collection_texts, json_object, text_lines

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
            ``.jsonl`` or ``.tsv`` file (or its ``.gz``) with one or more of `TEXT_KEYS`: labelled texts (``text``), NLI
            (``premise``, ``hypothesis``), questions (``question``), STS (a TSV with the header ``score sentence1
            sentence2``, tabs, no quoting). The first row or the header says which keys a file has.
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
        stem = path.name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".tsv")
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
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "jsonl":
        return _jsonl_texts(path)
    if kind == "tsv":
        return _tsv_texts(path)
    raise UserError(f"{path}: is no folder in BEIR's layout, .jsonl or .tsv file (or .gz of these)")


def _jsonl_texts(path: Path) -> Iterator[str]:
    keys: list[str] = []
    for number, line in text_lines(path):
        row = json_object(line, f"{path}:{number}")
        keys = keys or [key for key in TEXT_KEYS if key in row]
        if not keys:
            raise UserError(f"{path}:{number}: has none of the keys {', '.join(TEXT_KEYS)}")
        for key in keys:
            if not isinstance(row.get(key), str):
                raise UserError(f"{path}:{number}: lacks the key {key!r} (a string)")
            yield row[key]


def _tsv_texts(path: Path) -> Iterator[str]:
    lines = text_lines(path)
    header = next(lines, (1, ""))[1].split("\t")
    columns = [index for index, name in enumerate(header) if name in TEXT_KEYS]
    if not columns:
        raise UserError(f"{path}:1: the header has none of the columns {', '.join(TEXT_KEYS)} (separated by tabs)")
    for number, line in lines:
        values = line.split("\t")
        if len(values) != len(header):
            raise UserError(f"{path}:{number}: has {len(values)} columns separated by tabs, not {len(header)}")
        yield from (values[index] for index in columns)
