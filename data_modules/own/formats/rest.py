"""reStructuredText to blocks, the dialect of Sphinx among it, without running directives.

Docutils knows none of Sphinx's directives and roles, drops what is in them, and takes minutes for a folder that takes seconds here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from data_modules.own.formats.blocks import Block, Document, names
from data_modules.own.formats.rest_inline import plain

_UNDERLINE = re.compile(r"([=\-~^\"'`#*+:._<>!$%&@])\1{2,}\s*")
_DIRECTIVE = re.compile(r"\.\.[ \t]+(?:\|[^|]+\|[ \t]+)?([\w.+-]+(?::[\w.+-]+)*)[ \t]*::(?:[ \t]+(.*))?$")
_FIELD = re.compile(r":([^:\n]{1,80}):(?:[ \t]+(.*))?$")
_BULLET = re.compile(r"(?:[-*+\u2022]|(?:\d{1,3}|[A-Za-z]|#|[ivxlc]{1,5})[.)]|\((?:\d{1,3}|[a-z])\))[ \t]+(?=\S)")
_TABLE = re.compile(r"(?:\+[-=+]{3,}|={2,}(?:[ \t]+={2,})+)\s*")
_HEADER = re.compile(r"[A-Z][\w-]{1,30}:[ \t]")

#: Directives whose content is code, whose content is no text of the page, and that describe an object whose name they take.
CODE = names(
    "code code-block sourcecode literalinclude highlight doctest testcode testsetup testcleanup testoutput parsed-literal ipython prompt "
    "productionlist math plot graphviz mermaid jupyter-execute"
)
NO_TEXT = names(
    "toctree contents sectnum index image figure module moduleauthor sectionauthor codeauthor currentmodule include raw meta tabularcolumns role "
    "default-role default-domain autosummary automodule autoclass autofunction automethod autodata seealso highlightlang target-notes footer header "
    "sphinx ifconfig todo todolist replace unicode date program tabbed card grid button-ref youtube bibliography availability impl-detail"
    " audit-event audit-event-table"
)
OBJECTS = names(
    "function class method attribute data exception describe option envvar opcode cmdoption decorator decoratormethod staticmethod classmethod "
    "coroutinefunction coroutinemethod awaitablefunction awaitablemethod abstractmethod property macro type member var struct union enum enumerator "
    "pdbcommand object confval setting directive rst:directive 2to3fixer monitoring-event module-function"
)
#: Fields that describe an argument or result; all others are facts about the file.
_DESCRIBING = re.compile(r"(?:param(?:eter)?|arg(?:ument)?|key(?:word)?|raises?|except(?:ion)?|returns?|var|ivar|cvar)\b")


def read_rest(text: str) -> Document:
    """The blocks of a reStructuredText file; of a PEP's header its title."""
    lines = [line.expandtabs(8).rstrip() for line in text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    title = ""
    while lines and not lines[0]:
        lines.pop(0)
    if lines and _HEADER.match(lines[0]) and not (len(lines) > 1 and _UNDERLINE.fullmatch(lines[1])):
        header, lines = _until_blank(lines)
        title = next((line.partition(":")[2].strip() for line in header if line.lower().startswith("title:")), "")
    return Document(list(_Reader().blocks(lines, 0)), title)


def has_headings(text: str) -> bool:
    """Whether a plain text has a line that is underlined as a heading is."""
    lines = text.split("\n")
    return any(_is_heading(lines, at) for at in range(len(lines) - 1))


def _until_blank(lines: list[str]) -> tuple[list[str], list[str]]:
    end = next((i for i, line in enumerate(lines) if not line), len(lines))
    return lines[:end], lines[end:]


def _is_heading(lines: Sequence[str], at: int) -> bool:
    """Whether the line is one of text with an underline of at least (nearly) its length, after a blank line or an overline."""
    text, under = lines[at], lines[at + 1]
    if not text.strip() or text.startswith("  ") or _UNDERLINE.fullmatch(text) or not _UNDERLINE.fullmatch(under):
        return False
    before = lines[at - 1] if at else ""
    overlined = bool(_UNDERLINE.fullmatch(before)) and before[0] == under[0]
    return (overlined or (not before.strip() and not text.startswith(" "))) and len(under.strip()) >= 0.8 * len(text.strip())


class _Reader:
    """Reads lines from the outside in; the styles of underlines get their levels in the order in which they come."""

    def __init__(self) -> None:
        self.styles: list[str] = []
        self.level = 0

    def blocks(self, lines: Sequence[str], depth: int) -> Iterator[Block]:
        """The blocks of some lines, whose indentation is taken off. depth: of nested objects."""
        at = 0
        while at < len(lines):
            line = lines[at]
            if not line or _UNDERLINE.fullmatch(line):  # an overline, or a transition
                at += 1
            elif depth == 0 and at + 1 < len(lines) and _is_heading(lines, at):
                yield self._heading(lines, at)
                at += 2
            elif line.startswith(".."):
                body, end = _indented(lines, at + 1)
                yield from self._explicit(line, body, depth)
                at = end
            elif line.startswith(" "):
                body, at = _indented(lines, at)
                yield from self.blocks(body, depth + 1)
            elif (field := _FIELD.match(line)) is not None:
                body, at = _indented(lines, at + 1)
                if _DESCRIBING.match(field[1]):
                    words = field[1].split()
                    yield from _prose([(words[-1] + ": " if len(words) > 1 else "") + (field[2] or ""), *body])
            elif _TABLE.match(line):
                end = next((i for i in range(at, len(lines)) if not lines[i] and (line.startswith("+") or _TABLE.match(lines[i - 1]))), len(lines))
                yield from _table(lines[at:end])
                at = end
            else:
                found, at = self._paragraph(lines, at, depth)
                yield from found

    def _heading(self, lines: Sequence[str], at: int) -> Block:
        overlined = at > 0 and bool(_UNDERLINE.fullmatch(lines[at - 1]))
        style = lines[at + 1][0] * (2 if overlined else 1)
        if style not in self.styles:
            self.styles.append(style)
        self.level = self.styles.index(style) + 1
        return Block("heading", plain(lines[at])[0], self.level)

    def _explicit(self, line: str, body: list[str], depth: int) -> Iterator[Block]:
        """A directive; targets, footnotes, substitutions and comments have no text of the page."""
        found = _DIRECTIVE.match(line)
        if found is None:
            return
        name, argument = found[1].lower(), (found[2] or "").strip()
        short = name.rpartition(":")[2]
        if short in CODE:
            code = _without_options(body)
            yield from [Block("code", "\n".join(code).strip("\n"))] if any(code) else []
        elif short in OBJECTS or name in OBJECTS:
            # All signatures of one description; the first stands for it.
            signature = plain(argument or next((line for line in body if line), ""))[0]
            rest = body
            while rest and rest[0] and argument:
                rest = rest[1:]  # further signatures and options
            if signature:
                yield Block("heading", signature[:200].rstrip("\\ "), 7 + depth)
            yield from self.blocks(rest if argument else _without_options(body), depth + 1)
        elif short not in NO_TEXT:
            kept = _without_options(body)
            if short in ("csv-table", "list-table", "table"):
                yield from _table(kept)
            else:  # admonitions and the like: their text is the page's
                said = [argument] if argument and short in ("note", "warning", "tip", "important", "caution", "hint", "danger", "attention", "error") else []
                yield from self.blocks([*said, *kept], depth + 1)

    def _paragraph(self, lines: Sequence[str], at: int, depth: int) -> tuple[list[Block], int]:
        """A paragraph, a list item with its continuation, or a term with its definition, and the number of the next line."""
        bullet = _BULLET.match(lines[at])
        if bullet is not None:
            body, end = _indented(lines, at + 1)
            return list(self.blocks([lines[at][bullet.end() :], *body], depth + 1)), end
        end = at
        while end < len(lines) and lines[end] and not lines[end].startswith((" ", ".. ")) and not (end > at and _BULLET.match(lines[end])):
            end += 1
        paragraph = list(lines[at:end])
        if paragraph[0].startswith(">>>"):
            while end < len(lines) and lines[end]:
                end += 1
            return [Block("code", "\n".join(lines[at:end]))], end
        if end < len(lines) and lines[end].startswith(" ") and not paragraph[-1].endswith("::"):
            body, end = _indented(lines, end)
            return self._defined(paragraph, body, depth), end
        if paragraph[-1].endswith("::"):
            kept = paragraph[-1].removesuffix("::").rstrip()
            paragraph[-1] = kept if not kept or paragraph[-1].endswith(" ::") else f"{kept}:"
            body, end = _indented(lines, end)
            code = [Block("code", "\n".join(body).strip("\n"))] if any(body) else []
            return [*_prose(paragraph), *code], end
        return list(_prose([line.removeprefix("| ") for line in paragraph])), end

    def _defined(self, paragraph: Sequence[str], body: Sequence[str], depth: int) -> list[Block]:
        """A definition: the term stands before its text."""
        term, linked = plain(" ".join(paragraph))
        found = list(self.blocks(body, depth + 1))
        if found and found[0].kind == "prose":
            return [Block("prose", f"{term}: {found[0].text}", linked=linked + found[0].linked), *found[1:]]
        return [*_prose(paragraph), *found]


def _indented(lines: Sequence[str], at: int) -> tuple[list[str], int]:
    """The indented or blank lines from ``at`` on without their common indentation, and the number of the next line."""
    end = at
    while end < len(lines) and (not lines[end] or lines[end].startswith(" ")):
        end += 1
    body = list(lines[at:end])
    while body and not body[-1]:
        body.pop()
    indent = min((len(line) - len(line.lstrip()) for line in body if line), default=0)
    return [line[indent:] for line in body], end


def _without_options(body: list[str]) -> list[str]:
    rest = list(body)
    while rest and _FIELD.match(rest[0]):
        rest.pop(0)
    return rest


def _prose(lines: Sequence[str]) -> Iterator[Block]:
    text, linked = plain(" ".join(line for line in lines if line))
    if text:
        yield Block("prose", text, linked=linked)


def _table(lines: Sequence[str]) -> Iterator[Block]:
    rows, linked = [], 0
    for line in lines:
        if line and not _TABLE.match(line):
            text, links = plain(line.replace("|", "  ").removeprefix("* - ").removeprefix("  - "))
            rows += [text] if text else []
            linked += links
    if rows:
        yield Block("table", "\n".join(rows), linked=linked)
