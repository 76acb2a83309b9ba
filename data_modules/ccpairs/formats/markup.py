"""Markup to text: Reddit's Markdown and HTML fragments, one line per paragraph, code kept as text."""

from __future__ import annotations

import html
import re

_API_ESCAPE = re.compile(r"&(?:lt|gt|amp|quot|#39);")
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z]\w{1,31});")
_INVISIBLE = re.compile("[\u200b\u2060\ufeff\u00ad]")
_LINK = re.compile(r"!?\[([^\[\]]{0,2000})\]\((?:[^()\s]|\([^()\s]*\))*(?:\s+\"[^\"\n]*\")?\s*\)")
_QUOTE_OR_HEADING = re.compile(r"^[ \t]*(?:>!?[ \t]?)*(?:#{1,6}[ \t]+)?", re.M)
_RULE = re.compile(r"^[ \t]*(?:[-*_][ \t]*){3,}$", re.M)
_BOLD = re.compile(r"(\*\*|~~)(?=\S)([^\n]{1,500}?)(?<=\S)\1")
_ITALIC = re.compile(r"(?<![\w*\\])\*(?=[^\s*])([^*\n]{1,500})(?<=\S)\*(?![\w*])")
_ESCAPED = re.compile(r"\\([\\`*_{}\[\]()#+.!~^>|-])")
#: Runs of white space within a line that are not already one space.

_BLOCKS = frozenset(
    re.findall(
        r"\w+",
        "address article aside blockquote center dd details div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 "
        "h5 h6 header hr li main nav ol p pre section summary table tbody tfoot thead tr ul",
    )
)
_SKIPPED = frozenset(("head", "img", "noscript", "object", "script", "style", "svg", "template", "title"))


def reddit_text(markdown: str) -> str:
    """A Reddit body or title as text.

    Entities become characters (Reddit's own ``&amp;`` first, then those of the Markdown below), links are reduced to
    their text, the marks of quotes, headings, bold and italics are taken off, blank lines are left out.
    """
    text = markdown.replace("\r\n", "\n").replace("\r", "\n")
    if "&" in text:  # most comments have no mark at all, and there are billions of them
        text = _API_ESCAPE.sub(lambda m: html.unescape(m[0]), text)
        text = _ENTITY.sub(lambda m: html.unescape(m[0]), text)
    if not text.isascii():
        text = _INVISIBLE.sub("", text)
    if "](" in text:
        text = _LINK.sub(r"\1", text)
    text = _RULE.sub("", text)
    if ">" in text or "#" in text:
        text = _QUOTE_OR_HEADING.sub("", text).replace("!<", "")
    if "*" in text or "~~" in text:
        text = _ITALIC.sub(r"\1", _BOLD.sub(r"\2", text))
    if "\\" in text:
        text = _ESCAPED.sub(r"\1", text)
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def html_text(fragment: str) -> str:
    """An HTML fragment as text: one line per paragraph, list item and table row; ``pre`` keeps its own lines.

    Nothing is fetched and no declared entity is expanded; broken HTML is read as browsers read it.
    """
    import lxml.etree
    import lxml.html

    parser = lxml.html.HTMLParser(
        encoding="utf-8", no_network=True, huge_tree=False, remove_comments=True, remove_pis=True
    )
    try:
        root = lxml.html.document_fromstring(f"<div>{fragment}</div>".encode("utf-8", "replace"), parser=parser)
    except (lxml.etree.ParserError, lxml.etree.XMLSyntaxError):  # nothing in it
        return ""
    pieces: list[str] = ["\n"]
    in_pre = skipped = 0

    def add(text: str | None) -> None:
        if not text or skipped:
            return
        if not in_pre:
            folded = " ".join(text.split())
            text = f"{' ' if text[0].isspace() else ''}{folded}{' ' if folded and text[-1].isspace() else ''}"
            if pieces[-1].endswith(("\n", " ")):
                text = text.lstrip(" ")
        if text:
            pieces.append(text)

    for event, element in lxml.etree.iterwalk(root, events=("start", "end")):
        tag = element.tag
        if event == "start":
            if tag in _BLOCKS or tag == "br":
                pieces.append("\n")
            elif tag in ("td", "th"):
                add(" ")
            in_pre += tag == "pre"
            skipped += tag in _SKIPPED
            add(element.text)
        else:
            in_pre -= tag == "pre"
            skipped -= tag in _SKIPPED
            if tag in _BLOCKS:
                pieces.append("\n")
            add(element.tail)
    return "\n".join(line.rstrip() for line in "".join(pieces).split("\n") if line.strip()).strip("\n")
