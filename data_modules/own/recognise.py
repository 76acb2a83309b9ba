"""What a file or folder of own texts holds, told by its content: a BEIR folder, tables of pairs, documents, or tables and documents."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_modules.own.documents import PDF, READERS, document_files
from data_modules.own.tables import ENDINGS, is_table
from lightning_e5.errors import UserError
from lightning_e5.files.beir_layout import is_beir


@dataclass(frozen=True, slots=True)
class Inputs:
    """Where own texts lie: tables of pairs, folders or files of documents, BEIR folders."""

    pairs: tuple[Path, ...] = ()
    documents: tuple[Path, ...] = ()
    collections: tuple[Path, ...] = ()


def recognise(paths: Sequence[Path]) -> Inputs:
    """What each of some files and folders holds.

    Raises:
        UserError: one is not there, or holds none of the three.
    """
    pairs: list[Path] = []
    documents: list[Path] = []
    collections: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file or directory")
        if is_beir(path):
            collections.append(path)
        elif path.is_file() and is_table(path):
            pairs.append(path)
        elif path.is_file() and path.suffix.lower() in (*READERS, PDF):
            documents.append(path)
        elif path.is_dir() and (tables_of(path) or document_files(path)):
            pairs += tables_of(path)
            documents += [path] if document_files(path) else []
        else:
            raise UserError(
                f"{path}: holds no own texts: neither corpus.jsonl (a BEIR folder), nor tables of pairs ({' '.join(ENDINGS)}), nor documents "
                f"({' '.join((*READERS, PDF))})"
            )
    return Inputs(tuple(pairs), tuple(documents), tuple(collections))


def tables_of(folder: Path) -> list[Path]:
    """The tables below a folder in the order of their paths, hidden ones left out; a single file is its own."""
    if folder.is_file():
        return [folder] if is_table(folder) else []
    found = []
    for top, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(top, name) for name in files if not name.startswith(".") and is_table(Path(name))]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())
