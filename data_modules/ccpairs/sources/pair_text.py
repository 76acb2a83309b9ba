"""What all readers of raw dumps do to texts: checks, one-line titles, and passages cut at paragraph borders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_e5.errors import UserError, suggestion
from lightning_e5.types import Kind, PairCandidate, ReadReport

#: Raise this when what papers, web pages, news and tables give changes.
VERSION = 2
#: A word is counted once per this many characters begun, so that scripts without spaces are cut too.
_WORD_CHARS = 32


def string_of(row: Mapping[str, Any], key: str, place: str, report: ReadReport) -> str | None:
    """The string under ``key``, ``""`` where it is missing or null; None (and a bad record) where it is anything else."""
    value = row.get(key)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    report.reject(place, f"{key} is no string")
    return None


def one_line(text: str) -> str:
    """The text with every run of white space, line breaks too, as one space."""
    line = text.replace("\n", " ")
    # Most texts are done with this, in half the time: of all white space the space alone is printable.
    if line.isprintable() and "  " not in line and not line.startswith(" ") and not line.endswith(" "):
        return line
    return " ".join(text.split())


def some_of(argument: str, given: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """``given`` without repetitions, in the order of ``known``; UserError names a value that is not known."""
    values = [given] if isinstance(given, str) else list(given)
    for value in values:
        if value not in known:
            raise UserError(f"{argument}: {value!r} is none of its values{suggestion(value, known)}")
    if not values:
        raise UserError(f"{argument}: is empty; give at least one of {', '.join(known)}")
    return tuple(value for value in known if value in values)


def candidate(
    report: ReadReport,
    query: str,
    passage: str,
    *,
    source: str,
    id: str = "",
    place: str = "",
    passage_kind: Kind = "passage",
    facts: Mapping[str, Any] | None = None,
) -> Iterator[PairCandidate]:
    """The pair, counted; nothing, and a count of why, where one of its texts is empty; ``place`` is where the row stands."""
    if not query or query.isspace():
        report.skip(place or id, "no query")
    elif not passage or passage.isspace():
        report.skip(place or id, "no passage")
    else:
        report.counts["pairs"] += 1
        yield PairCandidate(query, passage, source, id, passage_kind, facts or {})


@dataclass(frozen=True, slots=True)
class PassageRule:
    """How a page's text is cut into passages: whole paragraphs (lines) as long as they fit, each passage full before the
    next begins; a paragraph that is longer than a passage is cut between words.

    Args:
        words: most words of a passage (a word of more than 32 characters counts as several); or None.
        chars: most characters of a passage; or None. Exactly one of the two is given.
        most: passages per page; what follows them is left out.
    """

    words: int | None = 200
    chars: int | None = None
    most: int = 1

    def __post_init__(self) -> None:
        if (self.words is None) == (self.chars is None):
            raise UserError(
                f"passage_words={self.words} and passage_chars={self.chars}: give one of them, null for the other"
            )
        if self._size < 1:
            raise UserError(f"passage_words={self.words}, passage_chars={self.chars}: a passage must have room for one")
        if self.most < 1:
            raise UserError(f"passages_per_page={self.most} must be at least 1")

    @property
    def _size(self) -> int:
        return self.words if self.words is not None else self.chars if self.chars is not None else 0

    def cut(self, text: str) -> list[str]:
        """The first ``most`` passages of a text whose paragraphs are its lines."""
        # A character more: the last word has no space after it.
        size = self._size + (self.words is None)
        found: list[str] = []
        held: list[str] = []
        used = 0
        for line in text.split("\n"):
            words = line.split()
            if not words:
                continue
            cost = self._line_cost(words)
            if held and used + cost > size:
                found.append("\n".join(held))
                held, used = [], 0
                if len(found) == self.most:
                    return found
            if cost <= size:
                held.append(" ".join(words))
                used += cost
                continue
            *full, rest = self._pieces(words, size)
            found.extend(full)
            if len(found) >= self.most:
                return found[: self.most]
            held, used = [rest], sum(map(self._cost, rest.split()))
        return [*found, "\n".join(held)] if held else found

    def _line_cost(self, words: list[str]) -> int:
        """The sum of `_cost`, at the speed of C for all but lines with very long words."""
        if self.words is None:
            return sum(map(len, words)) + len(words)
        return len(words) if max(map(len, words)) <= _WORD_CHARS else sum(map(self._cost, words))

    def _cost(self, word: str) -> int:
        return len(word) + 1 if self.words is None else 1 + (len(word) - 1) // _WORD_CHARS

    def _pieces(self, words: list[str], size: int) -> Iterator[str]:
        longest = size - 1 if self.words is None else size * _WORD_CHARS
        held: list[str] = []
        used = 0
        for long_word in words:
            for start in range(0, len(long_word), longest):
                word = long_word[start : start + longest]
                if held and used + self._cost(word) > size:
                    yield " ".join(held)
                    held, used = [], 0
                held.append(word)
                used += self._cost(word)
        yield " ".join(held)
