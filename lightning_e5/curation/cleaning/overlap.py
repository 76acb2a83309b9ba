"""How many training pairs share a run of words with an evaluation text: a report for a person to read; drops nothing.

Exact match misses an evaluation text with other punctuation or inside a longer text. Shared runs of words find those, and
also find quotations, licences and stock phrases that tell nothing about the evaluation text: false hits. So the report
gives shares by source and by collection and lists matches, and the decision stays with its reader.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lightning_e5.curation.cleaning.evaluation_texts import EvaluationText
from lightning_e5.curation.cleaning.shingles import NgramIndex, WordHashes
from lightning_e5.errors import UserError
from lightning_e5.files.storage import atomic_path, to_json
from lightning_e5.text import words
from lightning_e5.types import PairCandidate, TextPair

#: Matches that a report lists per collection, and words shown of each: of the match, and on either side of it.
SHOWN_MATCHES = 20
SHOWN_WORDS, SHOWN_AROUND = 40, 8

FALSE_HITS = (
    "A match is a shared run of words, found without case and punctuation. It may be a quotation, a licence or a stock "
    "phrase and is then a false hit, the more often the shorter the run; read the listed matches before you believe a "
    "share. No pair was dropped for one."
)

Rule = Literal["ngram", "whole_text"]


@dataclass(frozen=True, slots=True)
class Match:
    """A run of words of a training text that an evaluation text has too.

    rule: ``ngram``: n words of a longer evaluation text; ``whole_text``: all of an evaluation text of fewer than n words.
    side: the training text. shared: the run's words (at most 40), case folded; before, after: up to 8 words around it.
    """

    collection: str
    rule: Rule
    source: str
    pair: str
    side: Literal["query", "passage"]
    shared: str
    before: str
    after: str


@dataclass(slots=True)
class OverlapReport:
    """Counts of pairs with a match, and the first matches of each collection; reports of parts add up in their order."""

    pairs: Counter[str] = field(default_factory=Counter)
    matched_pairs: Counter[str] = field(default_factory=Counter)
    matched: Counter[tuple[str, str, Rule]] = field(default_factory=Counter)
    by_either: Counter[tuple[str, str]] = field(default_factory=Counter)
    matches: defaultdict[str, list[Match]] = field(default_factory=lambda: defaultdict(list))

    def add(self, other: OverlapReport) -> None:
        """Add the report of the pairs that come next."""
        self.pairs.update(other.pairs)
        self.matched_pairs.update(other.matched_pairs)
        self.matched.update(other.matched)
        self.by_either.update(other.by_either)
        for collection, matches in other.matches.items():
            own = self.matches[collection]
            own.extend(matches[: SHOWN_MATCHES - len(own)])

    def state(self) -> dict[str, Any]:
        """All that it holds as plain values, in the order in which it was counted; `of_state` makes it again."""
        return {
            "pairs": list(self.pairs.items()),
            "matched_pairs": list(self.matched_pairs.items()),
            "matched": [[*key, count] for key, count in self.matched.items()],
            "by_either": [[*key, count] for key, count in self.by_either.items()],
            "matches": [[name, [asdict(match) for match in found]] for name, found in self.matches.items()],
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> OverlapReport:
        """The report whose `state` this is."""
        report = cls(Counter(dict(state["pairs"])), Counter(dict(state["matched_pairs"])))
        report.matched.update({(source, name, rule): count for source, name, rule, count in state["matched"]})
        report.by_either.update({(source, name): count for source, name, count in state["by_either"]})
        for name, found in state["matches"]:
            report.matches[name] = [Match(**match) for match in found]
        return report

    def as_json(self, evaluation: EvaluationNgrams) -> dict[str, Any]:
        """The report as plain values: shares by source and collection, the listed matches, and what a match is not."""
        total = sum(self.pairs.values())
        collections = {}
        for name in evaluation.collections:
            by_source: dict[str, dict[str, Any]] = {
                source: {
                    "pairs": self.by_either[source, name],
                    "share": _share(self.by_either[source, name], self.pairs[source]),
                    "ngram": self.matched[source, name, "ngram"],
                    "whole_text": self.matched[source, name, "whole_text"],
                }
                for source in sorted(self.pairs)
                if self.by_either[source, name]
            }
            pairs = sum(found["pairs"] for found in by_source.values())
            collections[name] = {
                "texts": evaluation.texts[name],
                "texts_too_short": evaluation.too_short[name],
                "pairs": pairs,
                "share": _share(pairs, total),
                "sources": by_source,
                "matches": [asdict(match) for match in self.matches.get(name, [])],
            }
        sources = {
            source: {"pairs": n, "matched": self.matched_pairs[source], "share": _share(self.matched_pairs[source], n)}
            for source, n in sorted(self.pairs.items())
        }
        rule = {"n": evaluation.n, "min_words": evaluation.min_words}
        return {"note": FALSE_HITS, **rule, "pairs": total, "sources": sources, "collections": collections}


class EvaluationNgrams:
    """The runs of words of the evaluation texts, hashed and sorted: 12 to 14 bytes per run; workers `load` what one `save`s.

    Args:
        texts: the evaluation texts.
        n: words of a run. Of a text of n words or more every run of n is searched for.
        min_words: a text of fewer than n words, but at least this many, is searched for as a whole; shorter ones are
            counted as too short and not searched for.

    Source: ours; n = 13 is GPT-3's (arXiv 2005.14165, appendix C).
    """

    def __init__(self, texts: Iterable[EvaluationText], *, n: int = 13, min_words: int = 4) -> None:
        if not 1 <= min_words <= n:
            raise UserError(f"overlap: min_words={min_words} must be between 1 and n={n}")
        self.n, self.min_words = n, min_words
        self.texts: Counter[str] = Counter()
        self.too_short: Counter[str] = Counter()
        numbers: dict[str, int] = {}

        def searched() -> Iterator[tuple[int, list[str]]]:
            for text in texts:
                number = numbers.setdefault(text.collection, len(numbers))
                self.texts[text.collection] += 1
                text_words = words(text.text)
                if len(text_words) < min_words:
                    self.too_short[text.collection] += 1
                else:
                    yield number, text_words

        self._index = NgramIndex.of(searched(), n, "H")
        self.collections = tuple(numbers)

    def fingerprint(self) -> str:
        """Sha256 of all that decides a report."""
        digest = hashlib.sha256(f"{self.n} {self.min_words} {self.collections} {self._longest_first()}".encode())
        for values in (self._index.hashes, self._index.owners):
            digest.update(values.data)
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write an ``.npz`` file of plain arrays, with the sha256 of what is in it, atomically."""
        counts = [[name, self.texts[name], self.too_short[name]] for name in self.collections]
        facts = to_json({"n": self.n, "min_words": self.min_words, "lengths": self._longest_first(), "collections": counts, "sha256": self.fingerprint()})
        with atomic_path(path) as temporary, temporary.open("wb") as handle:
            np.savez(handle, hashes=self._index.hashes, owners=self._index.owners, facts=np.frombuffer(facts.encode(), dtype=np.uint8))

    @classmethod
    def load(cls, path: Path) -> EvaluationNgrams:
        """What `save` wrote; UserError for another file, or one whose content is not as it was written."""
        loaded = cls.__new__(cls)
        try:
            with np.load(path, allow_pickle=False) as stored:
                facts = json.loads(stored["facts"].tobytes())
                loaded._index = NgramIndex(stored["hashes"], stored["owners"], facts["lengths"])
            loaded.n, loaded.min_words = facts["n"], facts["min_words"]
            loaded.collections = tuple(name for name, _, _ in facts["collections"])
            loaded.texts = Counter({name: count for name, count, _ in facts["collections"]})
            loaded.too_short = Counter({name: count for name, _, count in facts["collections"] if count})
            whole = loaded.fingerprint() == facts["sha256"]
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: not a file of evaluation n-grams ({str(error).splitlines()[0] if str(error) else type(error).__name__})") from None
        if not whole:
            raise UserError(f"{path}: its sha256 is not the one that it was written with")
        return loaded

    def look(self, pair: TextPair | PairCandidate, report: OverlapReport) -> bool:
        """Count the pair in ``report``, with its matches; returns whether it has one."""
        rules: set[tuple[str, Rule]] = set()
        sides: tuple[tuple[Literal["query", "passage"], str], ...] = (("query", pair.query), ("passage", pair.passage))
        for side, text in sides:
            text_words = words(text)
            for number, length, start, stop in self._find(text_words):
                name, rule = self.collections[number], _rule(length, self.n)
                listed = report.matches[name]
                if (name, rule) not in rules and len(listed) < SHOWN_MATCHES:
                    shared, before, after = _shown(text_words, start, stop)
                    listed.append(Match(name, rule, pair.source, getattr(pair, "id", ""), side, shared, before, after))
                rules.add((name, rule))
        report.pairs[pair.source] += 1
        report.matched_pairs[pair.source] += bool(rules)
        report.matched.update((pair.source, name, rule) for name, rule in rules)
        report.by_either.update((pair.source, name) for name in {name for name, _ in rules})
        return bool(rules)

    def _longest_first(self) -> list[int]:
        return self._index.lengths[::-1]

    def _find(self, text_words: list[str]) -> list[tuple[int, int, int, int]]:
        """(collection, words per run, first word, word after the last), the longest runs first, then in reading order."""
        lengths = [length for length in self._longest_first() if length <= len(text_words)]
        if not lengths:
            return []
        own = WordHashes(text_words)
        at, first, last = self._index.find(np.concatenate([own.ngrams(length) for length in lengths]))
        places = dict(zip(at.tolist(), zip(first.tolist(), last.tolist(), strict=True), strict=True))
        if not places:
            return []
        found, offset = [], 0
        for length in lengths:
            runs = len(text_words) - length + 1
            stop = 0
            for start in range(runs):
                if (place := places.get(offset + start)) is None:
                    continue
                if start >= stop:  # the run goes on for as long as the next place is a match too
                    stop = start + 1
                    while stop < runs and offset + stop in places:
                        stop += 1
                found += [(int(owner), length, start, stop + length - 1) for owner in self._index.owners[slice(*place)]]
            offset += runs
        return found


def _rule(length: int, n: int) -> Rule:
    return "ngram" if length == n else "whole_text"


def _shown(text_words: list[str], start: int, stop: int) -> tuple[str, str, str]:
    shared = " ".join(text_words[start : min(stop, start + SHOWN_WORDS)])
    return (
        shared,
        " ".join(text_words[max(0, start - SHOWN_AROUND) : start]),
        " ".join(text_words[stop : stop + SHOWN_AROUND]),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
