"""Plain text to blocks: underlined lines are headings as in reStructuredText, else paragraphs under the first line where that is a title."""

from __future__ import annotations

import re

from data_modules.own.formats.blocks import Block, Document, one_line
from data_modules.own.formats.rest import has_headings, read_rest

_PARAGRAPH = re.compile(r"\n[ \t]*\n")
_BULLET = re.compile(r"^[-*\u2022+]\s+")
#: Longest first line that may be a title, in characters.
_TITLE_CHARACTERS = 100
#: A larger share of digits, signs and white space than prose has: listings, logs, drawings.
_LETTERS_OF_PROSE = 0.6


def read_plain(text: str) -> Document:
    """The blocks of a plain text file."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if has_headings(text):
        return read_rest(text)
    paragraphs = [part for part in _PARAGRAPH.split(text) if part.strip()]
    blocks = []
    for number, part in enumerate(paragraphs):
        flat = one_line(part)
        if number == 0 and len(paragraphs) > 1 and "\n" not in part.strip() and len(flat) <= _TITLE_CHARACTERS and flat[-1] not in ".,;:!?":
            blocks.append(Block("heading", flat.strip("=-* "), 1))
        elif sum(c.isalpha() for c in part) < _LETTERS_OF_PROSE * len(re.sub(r"\s", "", part)):
            blocks.append(Block("code", part.strip("\n")))
        else:
            blocks.append(Block("prose", _BULLET.sub("", flat)))
    return Document([block for block in blocks if block.text])
