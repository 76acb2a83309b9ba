"""A quick look at own texts, by the heads of the files, before anything is run: what they are taken for, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_modules.own.beir_folder import own_test_split, splits, validation_split
from data_modules.own.documents import PDF, document_files, formats_of
from data_modules.own.formats.pdf import INSTALL, can_read_pdf
from data_modules.own.pair_tables import PairTable, pair_table
from data_modules.own.recognise import recognise
from data_modules.own.tables import count_rows

#: Tables that a sentence each is said of.
_SHOWN_TABLES = 5
#: Stems of tables that are often meant to be kept out of training.
_TESTS = ("test", "dev", "eval", "valid", "validation")


@dataclass(frozen=True, slots=True)
class OwnTexts:
    """What files and folders of own texts are taken for.

    kinds: of ``pairs``, ``documents``, ``collection``, those that are there. pairs, documents, collections: the paths of each.
    columns: table -> its columns in words. has_negatives: whether pairs bring negatives. rows: about how many rows the tables have.
    files: documents. own_test: whether a BEIR folder brings the user's own test queries. lines: sentences for a person.
    """

    kinds: tuple[str, ...]
    pairs: tuple[Path, ...]
    documents: tuple[Path, ...]
    collections: tuple[Path, ...]
    columns: dict[str, str]
    has_negatives: bool
    rows: int
    files: int
    own_test: bool
    lines: tuple[str, ...]

    def stage_arguments(self) -> dict[str, Any]:
        """The arguments ``pairs``, ``documents`` and ``collection`` of the stage `own_pairs`, as a YAML writes them."""
        named = {"pairs": self.pairs, "documents": self.documents, "collection": self.collections}
        return {name: [f"path:{path.resolve()}" for path in paths] for name, paths in named.items() if paths}


def inspect(paths: Path | str | Sequence[Path | str], **options: Any) -> OwnTexts:
    """Look at own texts; reads the heads of tables and the names of documents.

    Args:
        paths: a file or folder, or several.
        options: columns that the user names (``query``, ``passage``, ``negative``, ``score``, ``document``; see `find_columns`).

    Raises:
        UserError: a path is not there, holds no own texts, or a table's columns cannot be told (the sentence names the option that does).
    """
    found = recognise([Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths])
    tables = [pair_table(path, **options) for path in found.pairs]
    counts = [count_rows(table.path, table.format) for table in tables]
    files = [path for folder in found.documents for path in document_files(folder)]
    lines = [_of_table(table, rows) for table, rows in list(zip(tables, counts, strict=True))[:_SHOWN_TABLES]]
    lines += [f"and {len(tables) - _SHOWN_TABLES} further tables, {sum(counts):,} rows in all"] if len(tables) > _SHOWN_TABLES else []
    lines += [
        f"{table.path}: its name says that it is for testing; it is trained on like the others unless it is moved and named by test (--test)"
        for table in tables if len(tables) > 1 and table.path.name.partition(".")[0].lower() in _TESTS
    ]  # fmt: skip
    lines += [_of_documents(folder) for folder in found.documents]
    lines += [_of_collection(folder) for folder in found.collections]
    if found.pairs and found.documents:
        lines.append("tables and documents are both there: both are read as pairs")
    named = {"pairs": found.pairs, "documents": found.documents, "collection": found.collections}
    return OwnTexts(
        tuple(kind for kind, there in named.items() if there), found.pairs, found.documents, found.collections,
        {str(table.path): table.columns.sentence() for table in tables}, any(table.columns.negatives for table in tables),
        sum(counts), len(files), any(own_test_split(folder) for folder in found.collections), tuple(lines),
    )  # fmt: skip


def _of_table(table: PairTable, rows: int) -> str:
    about = "" if table.format.kind == "parquet" else "about "
    return f"{table.path}: {about}{rows:,} rows of pairs ({table.format.sentence()}); {table.columns.sentence()}"


def _of_documents(folder: Path) -> str:
    formats = formats_of(document_files(folder))
    said = f"{folder}: {sum(formats.values()):,} documents ({', '.join(f'{count:,} {ending}' for ending, count in formats.items())})"
    if PDF in formats and not can_read_pdf():
        said += f"; PDF is read once pypdf is there: {INSTALL}"
    return said


def _of_collection(folder: Path) -> str:
    test, validation, there = own_test_split(folder), validation_split(folder), splits(folder)
    trained = "its documents" + (" and the queries of the split 'train'" if "train" in there else "")
    said = f"{folder}: a BEIR folder; {trained} give pairs"
    said += f"; its split {test!r} is the test" if test else "; a test is held out"
    return said + (f", {validation!r} the validation" if validation else "")
