"""A Wikipedia page's wikitext as sections of plain text; what is no prose (templates, tables, references, files) goes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from data_modules.ccpairs.formats.wiki_links import is_hidden
from data_modules.ccpairs.formats.wiki_templates import HOLE, expanded, filled, one_text

#: Tags whose content is no prose.
_SKIPPED_TAGS = frozenset(
    re.findall(
        r"\w+",
        "ref references table gallery math chem ce score timeline imagemap graph hiero mapframe maplink templatestyles "
        "syntaxhighlight source inputbox categorytree templatedata section style script noinclude indicator",
    )
)
_LINE_TAGS = frozenset(("br", "li", "dt", "dd", "p", "div", "blockquote", "hr", "poem", "center"))
#: Those among them that stand in sentences.
_FORMULAS = frozenset(("math", "chem", "ce", "hiero", "score"))
#: Holes that templates leave; spaces are single when these are used.
_EMPTY_BRACKETS = re.compile(r"\( ?[,;:]* ?\)|\[ ?\]")
_SPACE_BEFORE = re.compile(r" +(?=[,.;:!?)](?:\s|$))")
_AFTER_BRACKET = re.compile(r"\( ?[,;:]+ ?")
#: A comment that is not closed goes on to the end, as MediaWiki reads it.
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.S)
_REFERENCE = re.compile(r"<ref\b[^<>]*/>|<ref\b[^<>/]*>(?:[^<]|<(?!/?ref\b))*</ref\s*>", re.I)
_INDENT = re.compile(r"^([:*#;]{8})[:*#;]+", re.M)
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
#: Bold and italics, and marks whose other half is missing.
_BARE_MARK = re.compile(
    r"'{2,}|\[\[|\]\]|\{\{+|\}\}+|\{\||</?(?:ref|small|big|b|i|u|s|br|sub|sup|span|div|p|nowiki|center|onlyinclude)\b[^<>]{0,200}>",
    re.I,
)
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


def _shortened(wikitext: str) -> str:
    """The wikitext without references, and with its templates' texts: what needs no parser, which is most of many pages."""
    return _INDENT.sub(r"\1", expanded(_REFERENCE.sub("", wikitext.replace(HOLE, ""))))


def sections(wikitext: str) -> Iterator[tuple[str, str]]:
    """(section title, text) of a page, the lead first with the title ``""``; sections may be empty.

    Templates become their text (see `wiki_templates`); a sentence with a formula, or with a template whose text is not
    known, is left out. Tables, references, files, galleries, comments and links to categories are left out; links and bold
    text become their text; a list item or paragraph is one line.
    """
    import mwparserfromhell
    from mwparserfromhell.nodes import Heading

    title, pieces = "", []  # type: str, list[str]
    for node in mwparserfromhell.parse(_shortened(wikitext), skip_style_tags=True).nodes:
        if isinstance(node, Heading):
            yield title, _clean("".join(pieces))
            title, pieces = _clean("".join(_texts(node.title.nodes)).replace(HOLE, "")).replace("\n", " "), []
        else:
            pieces.extend(_texts([node]))
    yield title, _clean("".join(pieces))


def _texts(nodes: Iterable[Any]) -> Iterator[str]:
    """The visible text of nodes; their nesting is limited by the parser (40 levels)."""
    from mwparserfromhell.nodes import ExternalLink, HTMLEntity, Tag, Template, Text, Wikilink

    for node in nodes:
        if isinstance(node, Text):
            yield _BARE_MARK.sub("", str(node.value))
        elif isinstance(node, Wikilink):
            if not is_hidden(str(node.title)):
                yield from _texts((node.title if node.text is None else node.text).nodes)
        elif isinstance(node, ExternalLink):
            if node.title is not None:
                yield from _texts(node.title.nodes)
            elif not node.brackets:
                yield from _texts(node.url.nodes)
        elif isinstance(node, HTMLEntity):
            yield _character(node)
        elif isinstance(node, Template):  # nested deeper than any in use, or with a parameter in it
            yield _BARE_MARK.sub("", one_text(str(node)))
        elif isinstance(node, Tag):
            name = str(node.tag).strip().lower()
            if name in _FORMULAS:
                yield HOLE
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
    if HOLE in text:
        text = "\n".join(filled(line) for line in text.split("\n"))
    text = _SPACE_BEFORE.sub("", _AFTER_BRACKET.sub("(", _EMPTY_BRACKETS.sub("", text)))
    lines = (_SPACES.sub(" ", line).strip() for line in text.split("\n"))
    return "\n".join(line for line in lines if any(c.isalnum() for c in line))
