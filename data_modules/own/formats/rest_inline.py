"""Inline marks of reStructuredText to text: roles, literals, links, emphasis, footnotes."""

from __future__ import annotations

import re

from data_modules.own.formats.blocks import one_line

_LITERAL = re.compile(r"``(.+?)``")
_ROLE = re.compile(r":[\w+:-]+:`([^`]+)`(?:__?)?|`([^`]+)`:[\w+:-]+:")
_LINK = re.compile(r"`([^`<]*?)\s*<[^`>]*>`__?|`([^`]+)`__?")
_SIMPLE_LINK = re.compile(r"(?<![\w`])(\w[\w.-]*\w|\w)__?(?![\w`])")
_FOOTNOTE = re.compile(r"\s?\[(?:\d+|#[\w-]*|\*|[A-Za-z][\w-]{0,20})\]_")
_EMPHASIS = re.compile(r"(?<![\w*\\])(\*{1,2})(?=[^\s*])(.+?)(?<=[^\s\\])\1(?![\w*])")
_SUBSTITUTION = re.compile(r"\|([^|\s][^|]*)\|_{0,2}")
_INTERPRETED = re.compile(r"(?<![\w`])`([^`]+)`(?![\w`])")
_TARGET = re.compile(r"\s*<[^<>]*>\s*$")
_ESCAPE = re.compile(r"\\(.)")
#: Roles that name another page or place, whose text is a link.
_LEADING = re.compile(r":(?:\w+:)?(?:ref|doc|pep|rfc|issue|download|term|gh|numref):")
#: Where literals stand while the other marks are taken off.
_KEPT = "\ue000"


def plain(text: str) -> tuple[str, int]:
    """The text without marks, and how many of its characters are within links."""
    literals: list[str] = []
    linked = 0

    def keep(match: re.Match[str]) -> str:
        literals.append(match[1])
        return _KEPT

    def role(match: re.Match[str]) -> str:
        nonlocal linked
        shown = _shown(match[1] or match[2])
        named = re.match(r":(pep|rfc):", match[0])
        shown = f"{named[1].upper()} {shown}" if named and shown.isdigit() else shown
        linked += len(shown) * bool(_LEADING.match(match[0]))
        return shown

    def link(match: re.Match[str]) -> str:
        nonlocal linked
        linked += len(match[1] or match[2] or "")
        return match[1] or match[2] or ""

    text = _LITERAL.sub(keep, text.replace(_KEPT, ""))
    if "`" in text:
        text = _INTERPRETED.sub(lambda m: _shown(m[1]), _LINK.sub(link, _ROLE.sub(role, text)))
    if "_" in text:
        text = _FOOTNOTE.sub("", text)
        text = _SIMPLE_LINK.sub(link_name, text)
    if "*" in text:
        text = _EMPHASIS.sub(r"\2", text)
    if "|" in text:
        text = _SUBSTITUTION.sub(r"\1", text)
    if "\\" in text:
        text = _ESCAPE.sub(lambda m: "" if m[1].isspace() else m[1], text)
    parts = iter(literals)
    return one_line("".join(next(parts) if c == _KEPT else c for c in text)), linked


def link_name(match: re.Match[str]) -> str:
    """``Python_`` -> ``Python``; names with underscores inside (``do_it_``) stay."""
    name = match[1]
    return match[0] if "_" in name or name.isdigit() else name


def _shown(content: str) -> str:
    """What a role shows: its title where it has one, the last part of ``~a.b.c``, no ``!``."""
    titled = _TARGET.sub("", content)
    if titled and titled != content:
        return titled
    content = content.strip("<>").lstrip("!")
    return content[1:].rpartition(".")[2] if content.startswith("~") else content
