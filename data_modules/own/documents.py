"""A folder of documents as pairs, file by file."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from data_modules.own.formats.blocks import Document
from data_modules.own.formats.html_pages import read_html
from data_modules.own.formats.markdown import read_markdown
from data_modules.own.formats.notebooks import read_notebook
from data_modules.own.formats.pdf import INSTALL, can_read_pdf, read_pdf
from data_modules.own.formats.plain_text import read_plain
from data_modules.own.formats.rest import read_rest
from data_modules.own.own_pair import OwnPair
from data_modules.own.sections import section_pairs
from lightning_e5.errors import UserError
from lightning_e5.files.charset import decode_page
from lightning_e5.progress import progress
from lightning_e5.types import ReadReport

#: Ending -> reader of the file's text; PDF is read from the file itself.
READERS: dict[str, Callable[[str], Document]] = {
    **dict.fromkeys((".md", ".markdown", ".mdx", ".qmd"), read_markdown),
    ".rst": read_rest,
    **dict.fromkeys((".html", ".htm", ".xhtml"), read_html),
    **dict.fromkeys((".txt", ".text"), read_plain),
    ".ipynb": read_notebook,
}
PDF = ".pdf"
#: What the reasons of files begin with that are no document of their kind.
UNREADABLE = "unreadable document: "
#: Folders that hold no documents of the user's, and files without content: licences, lists of names or changes, generated indices.
_NO_FOLDERS = frozenset(("node_modules", "__pycache__", "_static", "_modules", "_sources", "site-packages", "venv"))
_NO_FILES = re.compile(
    r"(?:un)?licen[cs]e(?:[-_.].*)?|copying(?:[-_.].*)?|notice|authors|contributors|code_of_conduct|top_level|entry_points|sources|requirements.*|genindex.*|py-modindex|modindex|search"
    r"|robots|cmakelists|change[-_ ]?logs?|changes|history",
    re.I,
)
#: A larger file is no document (but a PDF, most of which is no text).
_MOST_BYTES, _MOST_PDF_BYTES = 16 * 2**20, 256 * 2**20


def document_files(folder: Path) -> list[Path]:
    """The documents below a folder in the order of their paths, or the one file; hidden folders and those of tools are left out."""
    if folder.is_file():
        return [folder] if folder.suffix.lower() in (*READERS, PDF) else []
    found = []
    for top, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _NO_FOLDERS)
        found += [Path(top, name) for name in files if not name.startswith(".") and Path(name).suffix.lower() in (*READERS, PDF)]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def document_pairs(folder: Path, report: ReadReport) -> Iterator[OwnPair]:
    """The pairs of all documents below a folder; what gives none is in ``report`` by rule and first place.

    ``records`` counts the documents, and ``format: .md`` and the like those of each ending.

    Raises:
        UserError: there is no such folder, or no document in it.
    """
    if not folder.exists():
        raise UserError(f"{folder}: no such file or directory")
    files = document_files(folder)
    if not files:
        raise UserError(f"{folder}: has no document ({' '.join((*READERS, PDF))})")
    root = folder if folder.is_dir() else folder.parent
    pdf = can_read_pdf()
    with progress(len(files), f"read {folder.name}", "document") as bar:
        for path in files:
            name, ending = path.relative_to(root).as_posix(), path.suffix.lower()
            bar(1)
            report.counts["records"] += 1
            report.counts[f"format: {ending}"] += 1
            if _NO_FILES.fullmatch(path.name.partition(".")[0]):
                report.skip(str(path), "licence, list of names or changes, generated index")
            elif ending == PDF and not pdf:
                report.skip(str(path), f"PDF without pypdf ({INSTALL})")
            elif (document := _read(path, report)) is not None:
                yield from section_pairs(document, name, report)


def formats_of(files: list[Path]) -> dict[str, int]:
    """Ending -> number of files, the most frequent first."""
    return dict(Counter(path.suffix.lower() for path in files).most_common())


def _read(path: Path, report: ReadReport) -> Document | None:
    """A file's blocks; None, and the reason in the report, where it cannot be read."""
    ending = path.suffix.lower()
    try:
        most = _MOST_PDF_BYTES if ending == PDF else _MOST_BYTES
        if path.stat().st_size > most:
            report.skip(str(path), f"document of over {most // 2**20} MiB")
            return None
        if ending == PDF:
            return read_pdf(path)
        content = path.read_bytes()
        if b"\0" in content[:4096] and not content.startswith((b"\xff\xfe", b"\xfe\xff")):
            report.skip(str(path), f"{UNREADABLE}no text (it holds null bytes)")
            return None
        return READERS[ending](decode_page(content))
    except OSError as error:
        report.skip(str(path), f"{UNREADABLE}cannot be opened ({error.strerror})")
    except ValueError as error:  # our readers' own reasons
        report.skip(str(path), f"{UNREADABLE}{str(error)[:200]}")
    except RecursionError:
        report.skip(str(path), f"{UNREADABLE}nested too deep")
    return None
