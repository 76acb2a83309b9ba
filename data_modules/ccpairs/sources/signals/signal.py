"""What every self-supervised pair construction shares: documents in, pairs out, every draw a function of (seed, part, document)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_modules.ccpairs.sources.pair_text import candidate
from data_modules.ccpairs.sources.signals.texts import TextFiles
from lightning_e5.errors import UserError
from lightning_e5.rng import generator
from lightning_e5.types import PairCandidate, ReadReport

#: Raise this when the constructed pairs change.
VERSION = 1
#: What is counted where a document gives no pair.
TOO_SHORT = "document too short"
#: A full stop and its like, closing quotes and brackets, then white space before a new beginning; a full stop that stands
#: alone, as in texts cut into tokens, whatever follows.
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]* (?=[\"'(\[]*[A-Z0-9])|(?<= [.!?]) ")


def sentences(text: str) -> list[str]:
    """The text's sentences, each on one line: cut at line ends, and after ``.``, ``!`` or ``?`` that stand alone or before
    a capital or digit.

    Abbreviations before a name are cut too; for training pairs that is near enough.
    """
    found: list[str] = []
    for number, written in enumerate(text.split("\n")):
        # In a run of spaces a pattern of many would try each. A line's end is a space before the next line.
        line, start = " " * (number > 0 or written[:1].isspace()) + " ".join(written.split()), 0
        for match in _SENTENCE_END.finditer(line):
            end = match.start() + len(match.group().rstrip())  # closing quotes belong to the sentence before
            found.append(line[start:end].strip())
            start = match.end()
        found.append(line[start:].strip())
    return [sentence for sentence in found if sentence]


def blocks(pieces: Sequence[str], words: int) -> list[list[str]]:
    """Consecutive pieces (sentences) in blocks of at most so many words; a longer piece is a block of its own."""
    found: list[list[str]] = []
    used = 0
    for piece in pieces:
        count = len(piece.split())
        if not found or used + count > words:
            found.append([])
            used = 0
        found[-1].append(piece)
        used += count
    return found


class Signal:
    """A source of self-supervised pairs, constructed of texts; subclasses say how.

    Args:
        texts: the documents.
        name: the pairs' source.
        seed: of every draw.
        settings: all other arguments, by name; the integers among them must be at least 1.
    """

    #: What heuristics may ask for, of every pair.
    facts: Mapping[str, Any] = {}

    def __init__(self, texts: TextFiles, name: str, seed: int, **settings: Any) -> None:
        for key, value in settings.items():
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise UserError(f"{key}: {value} is not >= 1")
        self.texts, self.name, self.seed, self._settings = texts, name, seed, settings

    def parts(self) -> Sequence[str]:
        """Those of the texts."""
        return self.texts.parts()

    def fingerprint(self) -> dict[str, Any]:
        """The texts and all settings."""
        settings = {"kind": type(self).__name__, "seed": self.seed, **self._settings}
        return {"version": VERSION, "texts": self.texts.fingerprint(), "settings": settings}

    def read(self, part: str, report: ReadReport) -> Iterator[PairCandidate]:
        """The pairs of one part, document by document; documents that give none are counted."""
        index = list(self.parts()).index(part)
        for number, (id, text) in enumerate(self.texts.read(part, report)):
            given = False
            for query, passage in self.pairs(text, generator(self.seed, type(self).__name__, index, number)):
                given = True
                yield from candidate(report, query, passage, source=self.name, id=id, facts=self.facts)
            if not given:
                report.skip(f"{part}: document {id or number}", TOO_SHORT)

    def pairs(self, text: str, draw: np.random.Generator) -> Iterator[tuple[str, str]]:
        """(query, passage) pairs of one document; none where it is too short."""
        raise NotImplementedError


def check_share(key: str, value: float, low: float = 0.0) -> None:
    """UserError for what is no probability or share."""
    if not low <= value <= 1:
        raise UserError(f"{key}: {value} is not between {low:g} and 1")
