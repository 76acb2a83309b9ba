"""Rules on single pairs that read the texts: boilerplate, unusual characters, language and perplexity.

Each is a `SourceRule`: see ``heuristics`` for how a YAML lists them.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from data_modules.ccpairs.heuristics import SourceRule, number_fact
from data_modules.ccpairs.perplexity import KenLM, file_facts, head_threshold
from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError
from lightning_e5.ranges import CountOrZero, PositiveShare, Range, Share
from lightning_e5.text import normalise_text
from lightning_e5.types import PairCandidate

#: Phrases by which a line is known to be part of a page's frame and not of its text; matched in normalised lines.
FRAME_PHRASES = (
    "all rights reserved",
    "accept cookies",
    "accept all cookies",
    "uses cookies",
    "use cookies",
    "cookie policy",
    "cookie settings",
    "privacy policy",
    "terms of service",
    "terms of use",
    "terms and conditions",
    "copyright ©",
    "© copyright",
    "powered by wordpress",
    "skip to content",
    "skip to main content",
    "skip navigation",
    "back to top",
    "toggle navigation",
    "sign up for our newsletter",
    "subscribe to our newsletter",
    "enable javascript",
    "javascript is disabled",
    "click here to",
    "share on facebook",
    "share on twitter",
    "log in or sign up",
    "leave a reply",
    "leave a comment",
    "your email address will not be published",
    "add to cart",
    "lorem ipsum",
)
_FRAME = re.compile("|".join(rf"\b{re.escape(p)}" if p[0].isalpha() else re.escape(p) for p in FRAME_PHRASES))
#: A line longer than this is running text, whatever phrase it holds.
FRAME_LINE_CHARS = 200


@configurable("heuristic", constructs=True)
@dataclass(frozen=True)
class QueryIsPassage(SourceRule):
    """Drop a pair whose passage says nothing beside the query.

    Args:
        within_query: also drop a passage that is contained in the query word for word.
        min_chars: a shorter passage may be contained (a short answer that the question names).

    Source: ours; such a pair is matched by its words alone.
    """

    within_query: bool = True
    min_chars: CountOrZero = 30

    def keeps(self, pair: PairCandidate) -> bool:
        """Whether the passage is more than the query; both are compared normalised."""
        query, passage = normalise_text(pair.query), normalise_text(pair.passage)
        if query == passage:
            return False
        return not (self.within_query and len(passage) >= self.min_chars and passage in query)


@configurable("heuristic", constructs=True)
@dataclass(frozen=True)
class Boilerplate(SourceRule):
    """Drop a pair whose passage is to a large part a page's frame: cookie notes, copyright, navigation, repeated lines.

    Code and tables repeat lines too: name the sources it is for.

    Args:
        max_frame_lines: largest share of the passage's lines that hold one of ``FRAME_PHRASES`` (lines of more than 200
            characters are running text and never count).
        max_repeated_lines: largest share of lines that are copies of an earlier line of the passage.

    Source: ours; the paper's sources come cleaned. The repeated lines are a rule of Gopher (arXiv 2112.11446, 30%).
    """

    max_frame_lines: Share = 0.3
    max_repeated_lines: Share = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_shares(self, "max_frame_lines", "max_repeated_lines")

    def keeps(self, pair: PairCandidate) -> bool:
        """Whether both shares are small enough."""
        lines = [line for line in map(normalise_text, pair.passage.split("\n")) if line]
        if not lines:
            return False
        if len(lines) - len(set(lines)) > self.max_repeated_lines * len(lines):
            return False
        frame = sum(len(line) <= FRAME_LINE_CHARS and _FRAME.search(line) is not None for line in lines)
        return frame <= self.max_frame_lines * len(lines)


@configurable("heuristic", constructs=True)
@dataclass(frozen=True)
class CharacterShares(SourceRule):
    """Drop a pair whose passage is to a large part made of marks, digits or capitals.

    Not for code or formulas: name the sources it is for.

    Args:
        max_punctuation: largest share of punctuation and symbols among the characters that are not white space.
        max_digits: largest share of digits among them.
        max_upper: largest share of capitals among the letters with two cases.
        min_chars: shorter passages stay (a year is a fair answer).

    Source: ours.
    """

    max_punctuation: Share = 0.3
    max_digits: Share = 0.5
    max_upper: Share = 0.6
    min_chars: CountOrZero = 40

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_shares(self, "max_punctuation", "max_digits", "max_upper")

    def keeps(self, pair: PairCandidate) -> bool:
        """Whether all shares are small enough."""
        characters = Counter(pair.passage)  # each is looked up once: a passage may have millions
        kinds: Counter[str] = Counter()
        for character, count in characters.items():
            if not character.isspace():
                kinds[unicodedata.category(character)] += count
        in_all = kinds.total()
        if in_all < self.min_chars:
            return True
        upper, lower = kinds["Lu"], kinds["Ll"]
        return (
            sum(count for kind, count in kinds.items() if kind[0] in "PS") <= self.max_punctuation * in_all
            and kinds["Nd"] <= self.max_digits * in_all
            and upper <= self.max_upper * (upper + lower)
        )


@configurable("heuristic")
@dataclass(frozen=True)
class Language(SourceRule):
    """Drop a pair that is in another language.

    Args:
        allowed: ISO 639-1 codes.
        identify: identify the passage's language (py3langid) where the source gives no fact ``language``; else such
            pairs stay.
        min_chars: shorter passages are not identified and stay; the identifier is unreliable on a few words.
        min_probability: drop only where the identifier is at least this sure of a language that is not allowed, 0 to 1.

    Source: cc_net (arXiv 1911.00359) splits pages by language with fastText, and the paper keeps its English; py3langid
    is our stand-in for texts that come without.
    """

    allowed: Sequence[str] = ("en",)
    identify: bool = False
    min_chars: CountOrZero = 100
    min_probability: Share = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.allowed, str) or not self.allowed:
            raise UserError(f"Language.allowed={self.allowed!r} must be a list of at least one code such as 'en'")
        _check_shares(self, "min_probability")
        object.__setattr__(self, "allowed", tuple(self.allowed))
        if self.identify:
            unknown = sorted(set(self.allowed) - set(_identifier().labels))
            if unknown:
                raise UserError(f"Language.allowed: {unknown[0]!r} is not a code that py3langid knows (ISO 639-1)")

    def keeps(self, pair: PairCandidate) -> bool:
        """Whether the language is allowed or unknown."""
        known = pair.facts.get("language")
        if known:
            return known in self.allowed
        if not self.identify or len(pair.passage) < self.min_chars:
            return True
        language, probability = _identifier().classify(pair.passage[:2000])
        return language in self.allowed or probability < self.min_probability


@configurable("heuristic")
@dataclass(frozen=True)
class MaxPerplexity(SourceRule):
    """Drop a pair whose passage has a high perplexity under a language model of good text.

    Args:
        threshold: the highest perplexity that stays; or null, and ``head_share`` and ``sample`` give it.
        head_share: share of the sample's pages that stay, those with the lowest perplexity; cc_net's "head" is 1/3.
        sample: a JSONL file (or .gz) of cc_net's pages, not split by perplexity, whose ``perplexity`` fields are ranked.
        model: a KenLM model's file, by which the perplexity is computed; null to use the fact ``perplexity``, as cc_net
            stores it for the page.
        pieces: the SentencePiece model whose pieces ``model`` was trained on; null for one of words.
        keep_unknown: without ``model``, whether a pair stays whose source gives no perplexity.

    Source: paper section 3.1 (pages with high perplexity are dropped, without its figure); cc_net (arXiv 1911.00359),
    section 3.3, ranks the pages by a 5-gram Kneser-Ney model of Wikipedia.
    """

    threshold: Annotated[float, Range(0, 1e12, above=True)] | None = None
    head_share: PositiveShare | None = None
    sample: str | None = None
    model: str | None = None
    pieces: str | None = None
    keep_unknown: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.threshold is None) == (self.head_share is None):
            raise UserError("MaxPerplexity: give either threshold or head_share (with sample)")
        if (self.head_share is None) != (self.sample is None):
            raise UserError("MaxPerplexity: head_share and sample go together")
        if self.pieces is not None and self.model is None:
            raise UserError("MaxPerplexity.pieces is the tokenisation of a model, and no model is given")
        if self.threshold is not None and not self.threshold > 0:
            raise UserError(f"MaxPerplexity.threshold={self.threshold} must be above 0")
        if self.model is not None:
            KenLM(self.model, self.pieces).check()
        if self.head_share is not None and self.sample is not None:
            if not 0 < self.head_share < 1:
                raise UserError(f"MaxPerplexity.head_share={self.head_share} must be between 0 and 1")
            object.__setattr__(self, "threshold", head_threshold(self.sample, self.head_share))

    def fingerprint(self) -> Mapping[str, Any]:
        """The settings, the threshold that a sample gave, and the model files' sizes and times."""
        files = {path: file_facts(path) for path in (self.model, self.pieces) if path is not None}
        return {**super().fingerprint(), "files": files}

    def keeps(self, pair: PairCandidate) -> bool:
        """Whether the perplexity is low enough or unknown."""
        if self.model is not None:
            perplexity: float | None = KenLM(self.model, self.pieces).perplexity(pair.passage)
        else:
            perplexity = number_fact(pair, "perplexity")
        assert self.threshold is not None
        return self.keep_unknown if perplexity is None else perplexity <= self.threshold


def _check_shares(rule: SourceRule, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(rule, name) <= 1:
            raise UserError(f"{type(rule).__name__}.{name}={getattr(rule, name)} must be between 0 and 1")


@functools.cache
def _identifier() -> Any:
    """The language identifier, once per process."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise UserError("Language.identify needs the package py3langid, which is not installed") from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
