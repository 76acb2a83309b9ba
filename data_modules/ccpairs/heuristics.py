"""Rules on single pairs that look at lengths and at what the source says about a pair (votes, flags, deleted texts).

Every rule is a frozen dataclass: a YAML builds it with plain arguments, it is picklable, its fields are its fingerprint.
Rules that read the text itself are in ``text_heuristics``. A YAML lists the rules in the order they are asked, cheap ones
first; the first one that says no gives the pair its reason (its ``name``)::

    heuristics:
      - {_target_: data_modules.ccpairs.heuristics.NotDeleted}
      - {_target_: data_modules.ccpairs.heuristics.MaxPassageChars, chars: 4096, sources: [reddit]}
      - {_target_: data_modules.ccpairs.heuristics.MinScore, score: 1, sources: [reddit]}
      - {_target_: data_modules.ccpairs.heuristics.AdultContent}
      - {_target_: data_modules.ccpairs.heuristics.Length, min_query_chars: 4, min_passage_words: 3, sources: [reddit, common_crawl]}
      - {_target_: data_modules.ccpairs.text_heuristics.QueryIsPassage}
      - {_target_: data_modules.ccpairs.text_heuristics.Boilerplate, sources: [common_crawl, news]}
      - {_target_: data_modules.ccpairs.text_heuristics.Language, allowed: [en], identify: true}
      - {_target_: data_modules.ccpairs.text_heuristics.MaxPerplexity, threshold: 1000.0, sources: [common_crawl]}
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any

from data_modules.ccpairs.removed import is_mark, is_removed
from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError
from lightning_e5.ranges import Count, CountOrZero, Range
from lightning_e5.types import PairCandidate


@dataclass(frozen=True, kw_only=True)
class SourceRule:
    """What all rules share: the sources a rule is for, and its name in the counts.

    Args:
        sources: a pair is looked at only where its ``source`` starts with one of these; empty for every pair.
        name: what the pairs this rule drops are counted under; needed where a YAML has one rule twice.
    """

    sources: Sequence[str] = ()
    name: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.sources, str) or not all(isinstance(s, str) and s for s in self.sources):
            raise UserError(f"{type(self).__name__}.sources={self.sources!r} must be a list of source names")
        object.__setattr__(self, "sources", tuple(self.sources))
        object.__setattr__(self, "name", self.name or _snake_case(type(self).__name__))

    def __call__(self, pair: PairCandidate) -> bool:
        """Whether the pair stays."""
        if self.sources and not pair.source.startswith(tuple(self.sources)):
            return True
        return self.keeps(pair)

    def keeps(self, pair: PairCandidate) -> bool:
        """Whether a pair of a source that this rule is for stays."""
        raise NotImplementedError

    def fingerprint(self) -> Mapping[str, Any]:
        """The rule and all its settings, as plain JSON values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"rule": type(self).__name__} | {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}


@configurable("heuristic", constructs=True)
@dataclass(frozen=True)
class MaxPassageChars(SourceRule):
    """Drop a pair whose passage has more than ``chars`` characters.

    Source: paper section 3.1 (Reddit comments longer than 4,096 characters are dropped).
    """

    chars: Count = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chars < 1:
            raise UserError(f"MaxPassageChars.chars={self.chars} must be at least 1")

    def keeps(self, pair: PairCandidate) -> bool:
        """Whether the passage is short enough."""
        return len(pair.passage) <= self.chars


@configurable("heuristic", constructs=True)
@dataclass(frozen=True)
class MinScore(SourceRule):
    """Drop a pair whose ``score`` (votes up less votes down) is below ``score``.

    Args:
        score: the lowest score that stays.
        keep_unknown: whether a pair stays whose source gives no score.

    Source: paper section 3.1 (Reddit comments that received less than 1 upvote are dropped).
    """

    score: Annotated[float, Range(-1e9, 1e9)] = 1
    keep_unknown: bool = True

    def keeps(self, pair: PairCandidate) -> bool:
        """Whether the votes suffice."""
        found = number_fact(pair, "score")
        return self.keep_unknown if found is None else found >= self.score


@configurable("heuristic", constructs=True)
@dataclass(frozen=True)
class Length(SourceRule):
    """Drop a pair whose query or passage is too short or too long; null is no upper limit.

    Args:
        min_query_chars, max_query_chars, min_passage_chars, max_passage_chars: characters without outer white space.
        min_query_words, min_passage_words, max_passage_words: pieces between white space.

    Source: ours; the paper gives a length rule for Reddit only.
    """

    min_query_chars: CountOrZero = 0
    max_query_chars: Count | None = None
    min_query_words: CountOrZero = 0
    min_passage_chars: CountOrZero = 0
    max_passage_chars: Count | None = None
    min_passage_words: CountOrZero = 0
    max_passage_words: Count | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for what in ("query_chars", "passage_chars", "passage_words"):
            low, high = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if high is not None and high < max(low, 1):
                raise UserError(f"Length.max_{what}={high} must be at least 1 and at least min_{what}={low}")

    def keeps(self, pair: PairCandidate) -> bool:
        """Whether both texts have allowed lengths."""
        query, passage = pair.query.strip(), pair.passage.strip()
        if not _within(len(query), self.min_query_chars, self.max_query_chars):
            return False
        if not _within(len(passage), self.min_passage_chars, self.max_passage_chars):
            return False
        if self.min_query_words and len(query.split()) < self.min_query_words:
            return False
        if not self.min_passage_words and self.max_passage_words is None:
            return True
        return _within(len(passage.split()), self.min_passage_words, self.max_passage_words)


@configurable("heuristic", constructs=True)
@dataclass(frozen=True)
class AdultContent(SourceRule):
    """Drop a pair that its own source flags as adult content.

    Args:
        flags: the facts that say so; a source without them drops nothing here.

    Source: ours (the flags are the source's own; no text is looked at).
    """

    flags: Sequence[str] = ("over_18", "nsfw")

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.flags, str) or not self.flags:
            raise UserError(f"AdultContent.flags={self.flags!r} must be a list of at least one fact's name")
        object.__setattr__(self, "flags", tuple(self.flags))

    def keeps(self, pair: PairCandidate) -> bool:
        """Whether no flag is set."""
        return not any(_is_true(pair.facts.get(flag)) for flag in self.flags)


@configurable("heuristic", constructs=True)
@dataclass(frozen=True)
class NotDeleted(SourceRule):
    """Drop a pair of which a text is empty, is a notice of a removal, or is or ends in a site's mark of a deleted text.

    A query may be a post's title and body, hence the last line.

    Source: ours (``[deleted]``, ``[removed]``, ``[ Removed by Reddit ... ]`` are how Reddit's dumps mark them; see `removed`).
    """

    def keeps(self, pair: PairCandidate) -> bool:
        """Whether both texts are there."""
        for text in (pair.query, pair.passage):
            last_line = text.rstrip().rpartition("\n")[2].strip()
            if not last_line or is_mark(last_line) or is_removed(text):
                return False
        return True


def number_fact(pair: PairCandidate, name: str) -> float | None:
    """The number a source gives for a pair, as float; None where it gives none (or a text that is no number)."""
    value = pair.facts.get(name)
    if value is None or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return None if math.isnan(number) else number


def _is_true(value: Any) -> bool:
    """A flag as dumps write it: true, 1, "true", "1"."""
    return str(value).strip().lower() in {"true", "1", "1.0", "yes"}


def _within(count: int, low: int, high: int | None) -> bool:
    return low <= count and (high is None or count <= high)


def _snake_case(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
