"""Markdown to blocks: CommonMark and tables by markdown-it-py, with what Jekyll, Hugo, MyST and Microsoft's documentation add to it."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

from data_modules.own.formats.blocks import Block, Document, one_line
from data_modules.own.formats.html_pages import html_blocks

_FRONT_MATTER = re.compile(r"\A\ufeff?(---|\+\+\+)[ \t]*\n(.*?)\n(---|\+\+\+|\.\.\.)[ \t]*(?:\n|\Z)", re.S)
_TITLE = re.compile(r"^title[ \t]*[:=][ \t]*(.+?)[ \t]*$", re.M | re.I)
#: Includes, monikers and pictures of Microsoft's documentation; shortcodes of Hugo and tags of Jekyll; comments.
_NO_TEXT = re.compile(
    r"\[!(?:INCLUDE|VIDEO)\b[^\n]*?\]\([^()\n]*\)\]?|\[!VIDEO [^\]\n]*\]|^[ \t]*:::[^\n]*$|\{\{[<%].*?[%>]\}\}|\{%.*?%\}|<!--.*?-->|^[ \t]*\[TOC\][ \t]*$", re.S | re.M | re.I
)
_ALERT = re.compile(r"\A\[!\w+\]\s*")
_ATTRIBUTES = re.compile(r"\s*\{:?\s*[#.][^{}]*\}\s*$")
#: MyST's directives whose content is prose; the others' is code.
_ADMONITIONS = re.compile(r"\{(note|tip|warning|important|caution|hint|danger|attention|error|admonition|seealso|versionadded|versionchanged|deprecated)\}")
_OPTIONS = re.compile(r"\A(?:[ \t]*:[\w-]+:.*\n)+")


def read_markdown(text: str) -> Document:
    """The blocks of a Markdown file; code, pictures, comments and what builds the page are told from prose."""
    text, title = text.replace("\r\n", "\n").replace("\r", "\n"), ""
    if front := _FRONT_MATTER.match(text):
        text = text[front.end() :]
        named = _TITLE.search(front[2])
        title = one_line(named[1].strip("\"'")) if named else ""
    return Document(list(_blocks(text)), title)


@functools.cache
def _parser() -> Any:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": True, "maxNesting": 30}).enable("table")


def _blocks(text: str) -> Iterator[Block]:
    tokens = _parser().parse(_NO_TEXT.sub("", text))
    cells: list[str] = []
    rows: list[str] = []
    linked, level, in_table = 0, 0, False
    for token in tokens:
        if token.type == "heading_open":
            level = int(token.tag[1])
        elif token.type == "heading_close":
            level = 0
        elif token.type == "table_open":
            rows, linked, in_table = [], 0, True
        elif token.type == "tr_open":
            cells = []
        elif token.type == "tr_close":
            rows.append("  ".join(cell for cell in cells if cell))
        elif token.type == "table_close":
            in_table = False
            yield Block("table", "\n".join(rows), linked=linked)
        elif token.type == "inline":
            found, in_links = _inline(token)
            if in_table:
                cells.append(found)
                linked += in_links
            elif level:
                yield Block("heading", _ATTRIBUTES.sub("", found), level)
            elif found := _ALERT.sub("", found):
                yield Block("prose", found, linked=in_links)
        elif token.type in ("fence", "code_block"):
            if token.type == "fence" and _ADMONITIONS.match(token.info.strip()):
                yield from _blocks(_OPTIONS.sub("", token.content))
            elif token.content.strip():
                yield Block("code", token.content.strip("\n"))
        elif token.type == "html_block":
            yield from html_blocks(token.content)


def _inline(token: Any) -> tuple[str, int]:
    """The text of a run of inline marks, and how many of its characters are within links."""
    parts: list[str] = []
    linked = depth = 0
    for child in token.children or ():
        if child.type == "link_open":
            depth += 1
        elif child.type == "link_close":
            depth -= 1
        elif child.type in ("text", "code_inline", "text_special"):
            parts.append(child.content)
            linked += len(child.content) * (depth > 0)
        elif child.type in ("softbreak", "hardbreak") or (child.type == "html_inline" and child.content.lower().startswith("<br")):
            parts.append(" ")
    return one_line("".join(parts)), linked
