"""A Wikipedia page's wikitext as sections of plain text; what is no prose (templates, tables, references, files) goes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

#: Tags whose content is no prose.
_SKIPPED_TAGS = frozenset(
    re.findall(
        r"\w+",
        "ref references table gallery math chem ce score timeline imagemap graph hiero mapframe maplink templatestyles "
        "syntaxhighlight source inputbox categorytree templatedata section style script noinclude indicator",
    )
)
_LINE_TAGS = frozenset(("br", "li", "dt", "dd", "p", "div", "blockquote", "hr", "poem", "center"))
#: ``File:``, ``Category:``, ``de:`` ... a link into another name space or language is no part of the sentence.
_OTHER_SPACE = re.compile(r"^\s*(?:file|image|media|category|[a-z]{2,3}(?:-[a-z-]{2,12})?|simple)\s*:", re.I)
#: Holes that templates leave; spaces are single when these are used.
_EMPTY_BRACKETS = re.compile(r"\( ?[,;:]* ?\)|\[ ?\]")
_SPACE_BEFORE = re.compile(r" +(?=[,.;:!?)](?:\s|$))")
_AFTER_BRACKET = re.compile(r"\( ?[,;:]+ ?")
#: A comment that is not closed goes on to the end, as MediaWiki reads it.
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.S)
#: Marks that open and close; an address in one bracket closes with one.
_MARK = re.compile(
    r"(?P<open>\[\[|\{\{|\{\||\[(?=https?:|ftp:|mailto:|//)|<(?P<tag>[A-Za-z][A-Za-z0-9]*)(?=[\s>/]))"
    r"|(?P<close>\]\]|\}\}|\|\}(?!\})|\]|</(?P<end>[A-Za-z][A-Za-z0-9]*)\s*>|/>)"
)
_OPENED_BY = {"]]": "[[", "}}": "{{", "|}": "{|", "]": "["}
#: Tags that need no end.
_SINGLE_TAGS = frozenset(("br", "hr", "wbr", "img", "meta", "link", "li", "dt", "dd", "p", "tr", "td", "th"))
#: The parser gives up at 40 levels, and reads on to the page's end for each mark that is never closed.
_MAX_NESTING = 40
_MAX_UNCLOSED = 12
_BOLD_OR_ITALIC = re.compile(r"'{2,}")
_MAGIC_WORD = re.compile(r"__[A-Z]{3,}__")
_SPACES = re.compile(r"[^\S\n]+")


def is_tangled(wikitext: str) -> bool:
    """Whether marks are left open or nested so often that the parser, whose time then grows with the square of the length
    and more, would take minutes; no page that anyone reads is like that."""
    stack: list[str] = []
    unclosed = position = 0
    while mark := _MARK.search(wikitext, position):
        position = mark.end()
        if mark["open"]:
            tag = (mark["tag"] or "").lower()
            if tag not in _SINGLE_TAGS:
                stack.append(f"<{tag}" if tag else mark["open"])
        elif mark["close"] == "]]" and stack and stack[-1] == "[":  # [[File:a|[https://b c]]]
            stack.pop()
            position = mark.start() + 1
        else:
            opened_by = f"<{mark['end'].lower()}" if mark["end"] else _OPENED_BY.get(mark["close"])
            if opened_by is None:  # "/>" ends the tag just opened, if there is one
                if stack and stack[-1].startswith("<"):
                    stack.pop()
            elif opened_by in stack:
                while stack.pop() != opened_by:
                    unclosed += 1
        if unclosed > _MAX_UNCLOSED or len(stack) > _MAX_NESTING:
            return True
    return unclosed + len(stack) > _MAX_UNCLOSED


def without_comments(wikitext: str) -> str:
    """The wikitext without its comments."""
    return _COMMENT.sub("", wikitext)


def sections(wikitext: str) -> Iterator[tuple[str, str]]:
    """(section title, text) of a page, the lead first with the title ``""``; sections may be empty.

    Templates, tables, references, files, galleries, formulas, comments and links to categories are left out; links and
    bold text become their text; a list item or paragraph is one line.
    """
    import mwparserfromhell
    from mwparserfromhell.nodes import Heading

    title, pieces = "", []  # type: str, list[str]
    for node in mwparserfromhell.parse(wikitext, skip_style_tags=True).nodes:
        if isinstance(node, Heading):
            yield title, _clean("".join(pieces))
            title, pieces = _clean("".join(_texts(node.title.nodes))).replace("\n", " "), []
        else:
            pieces.extend(_texts([node]))
    yield title, _clean("".join(pieces))


def _texts(nodes: Iterable[Any]) -> Iterator[str]:
    """The visible text of nodes; their nesting is limited by the parser (40 levels)."""
    from mwparserfromhell.nodes import ExternalLink, HTMLEntity, Tag, Text, Wikilink

    for node in nodes:
        if isinstance(node, Text):
            yield _BOLD_OR_ITALIC.sub("", str(node.value))
        elif isinstance(node, Wikilink):
            if not _OTHER_SPACE.match(str(node.title)):
                yield from _texts((node.title if node.text is None else node.text).nodes)
        elif isinstance(node, ExternalLink):
            if node.title is not None:
                yield from _texts(node.title.nodes)
            elif not node.brackets:
                yield from _texts(node.url.nodes)
        elif isinstance(node, HTMLEntity):
            yield _character(node)
        elif isinstance(node, Tag):
            name = str(node.tag).strip().lower()
            if name not in _SKIPPED_TAGS:
                if name in _LINE_TAGS and not node.wiki_markup:
                    yield "\n"
                if node.contents is not None:
                    yield from _texts(node.contents.nodes)
                if name in _LINE_TAGS and not node.wiki_markup:
                    yield "\n"


def _character(node: Any) -> str:
    try:
        character: str = node.normalize()
    except (ValueError, OverflowError):
        return ""
    return "\ufffd" if "\ud800" <= character <= "\udfff" else character


def _clean(text: str) -> str:
    text = _SPACES.sub(" ", _MAGIC_WORD.sub("", text))
    text = _SPACE_BEFORE.sub("", _AFTER_BRACKET.sub("(", _EMPTY_BRACKETS.sub("", text)))
    lines = (_SPACES.sub(" ", line).strip() for line in text.split("\n"))
    return "\n".join(line for line in lines if any(c.isalnum() for c in line))
