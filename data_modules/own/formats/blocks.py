"""What every document format is read to: a title, and blocks in their order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Block:
    """A heading, a paragraph or list item of prose, a block of code, or a table.

    level: of a heading, 1 is the highest. linked: how many of the text's characters are the text of a link.
    """

    kind: Literal["heading", "prose", "code", "table"]
    text: str
    level: int = 0
    linked: int = 0


@dataclass(frozen=True, slots=True)
class Document:
    """A file's blocks; title: what the file says of itself beside its headings (front matter, ``<title>``), or empty."""

    blocks: Sequence[Block] = field(default_factory=list)
    title: str = ""


def names(text: str) -> frozenset[str]:
    """The words of a text, for lists of names."""
    return frozenset(text.split())


def one_line(text: str) -> str:
    """A text with each run of white space as one space."""
    return _SPACE.sub(" ", text).strip()
