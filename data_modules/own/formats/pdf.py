"""PDF files to blocks by pypdf (the extra ``pdf``): the text of their pages, in the order in which it is printed."""

from __future__ import annotations

import importlib.util
import logging
import re
from pathlib import Path

from data_modules.own.formats.blocks import Block, Document, one_line

INSTALL = "pip install pypdf"
_HYPHEN = re.compile(r"(\w)-\n(?=[a-z])")
_PARAGRAPH = re.compile(r"\n[ \t]*\n|(?<=[.!?:])[ \t]*\n(?=[A-Z\u2022])")


def can_read_pdf() -> bool:
    """Whether pypdf is installed."""
    return importlib.util.find_spec("pypdf") is not None


def read_pdf(path: Path) -> Document:
    """The paragraphs of a PDF's pages; ValueError with the reason where it cannot be read (damaged, or with a password)."""
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it warns of every oddity that it copes with
    try:
        reader = PdfReader(path)
        pages = [page.extract_text() or "" for page in reader.pages]
        title = one_line(str(reader.metadata.title or "")) if reader.metadata else ""
    except (PyPdfError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, IndexError) as error:
        raise ValueError(f"not a readable PDF ({(str(error).splitlines() or [type(error).__name__])[0]})") from None
    found = [one_line(_HYPHEN.sub(r"\1", part)) for page in pages for part in _PARAGRAPH.split(page)]
    return Document([Block("prose", text) for text in found if text], title)
