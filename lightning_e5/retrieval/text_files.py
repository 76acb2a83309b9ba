"""A folder of documents as passages to search: Markdown, reStructuredText, plain text and HTML files, cut between paragraphs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from lightning_e5.errors import UserError
from lightning_e5.files.charset import decode_page
from lightning_e5.files.lines import as_utf8
from lightning_e5.files.streams import DamagedFile

#: Endings that are read.
ENDINGS = (".md", ".markdown", ".rst", ".txt", ".text", ".html", ".htm")
#: Letters of a passage: a paragraph is added to it as long as it stays below.
PASSAGE_LETTERS = 800
#: A larger file is no document.
_MOST_BYTES = 16 * 2**20
_BLANK = re.compile(r"\n[ \t]*\n")


def load_text_files(folder: Path | str, without_text: list[Path] | None = None) -> dict[str, str]:
    """The passages of every document below a folder, hidden folders left out: ``path:line`` -> text.

    Args:
        folder: that the paths start from.
        without_text: gets the documents that give no passage (empty ones, pages of scripts and pictures alone).

    Raises:
        UserError: no such folder, no document in it, or one that is no text (HTML in any encoding, else UTF-8, or UTF-16 with its mark) or is above 16 MiB.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such directory")
    files = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in ENDINGS and p.is_file() and not _is_hidden(p.relative_to(folder))]
    passages = dict[str, str]()
    for path in files:
        found = {f"{path.relative_to(folder)}:{line}": text for line, text in _passages(path)}
        if not found and without_text is not None:
            without_text.append(path)
        passages |= found
    if not passages and files:
        raise UserError(f"{folder}: none of its {len(files):,} documents gives a text, the first is {files[0]}")
    if not passages:
        raise UserError(f"{folder}: neither a folder in BEIR layout (has no corpus.jsonl) nor one with documents ({' '.join(ENDINGS)})")
    return passages


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _passages(path: Path) -> Iterator[tuple[int, str]]:
    """(first line, text) of the passages of a file: its paragraphs, neighbouring ones together."""
    if path.stat().st_size > _MOST_BYTES:
        raise UserError(f"{path}: has {path.stat().st_size:,} bytes; a document has at most {_MOST_BYTES:,}")
    text = _text_of_html(decode_page(path.read_bytes())) if path.suffix.lower() in (".html", ".htm") else _plain_text(path)
    first, parts, letters, line = 1, list[str](), 0, 1
    for paragraph in _BLANK.split(text):
        if parts and letters + len(paragraph) > PASSAGE_LETTERS:
            yield first, "\n\n".join(parts)
            parts, letters = [], 0
        if paragraph.strip():
            first = first if parts else line + _leading_lines(paragraph)
            parts.append(paragraph.strip())
            letters += len(paragraph)
        line += paragraph.count("\n") + 2
    if parts:
        yield first, "\n\n".join(parts)


def _plain_text(path: Path) -> str:
    try:
        return b"".join(as_utf8([path.read_bytes()], path)).decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid UTF-8 (byte {error.start}: {error.reason})") from None
    except DamagedFile as damage:
        raise UserError(str(damage)) from None


def _leading_lines(paragraph: str) -> int:
    return paragraph[: len(paragraph) - len(paragraph.lstrip())].count("\n")


def _text_of_html(page: str) -> str:
    """The visible text, a line per block."""
    from lxml import html
    from lxml.etree import LxmlError, strip_elements

    if not page.strip():
        return ""
    try:
        # What the page says of its encoding was true of its bytes.
        tree = html.document_fromstring(page.encode("utf-8", "replace"), parser=html.HTMLParser(encoding="utf-8"))
    except (LxmlError, ValueError):
        return ""
    strip_elements(tree, "script", "style", "head", with_tail=False)
    blocks = {"p", "div", "li", "tr", "pre", "section", "article", "table", "ul", "ol", "h1", "h2", "h3", "h4", "h5", "h6", "br"}
    for element in tree.iter():
        if element.tag in blocks:
            element.tail = "\n\n" + (element.tail or "")
    return str(tree.text_content())
