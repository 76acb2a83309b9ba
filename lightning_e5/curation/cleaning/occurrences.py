"""Which of some test texts occur in training texts: as they are, with other case or punctuation, or inside a longer text.

`overlap` counts, for a person to read, which training pairs share words with an evaluation set; this says of each test
text whether it was there, so that a score can be given without those that were.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import IntFlag
from typing import TYPE_CHECKING

import numpy as np

from lightning_e5.curation.cleaning.shingles import NgramIndex, WordHashes
from lightning_e5.errors import UserError
from lightning_e5.text import normalise_text, words

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Training texts whose words are looked at together.
_BLOCK = 1024


class Rule(IntFlag):
    """How a test text occurs; several may hold at once.

    EXACT: a training text is equal after case folding, Unicode's compatibility forms and white space. PUNCTUATION: its
    words are equal (holds for exact ones too). INSIDE: all its words stand in a row in a longer training text. NGRAM: a
    test text of more than n words shares n of them in a row.
    """

    EXACT = 1
    PUNCTUATION = 2
    INSIDE = 4
    NGRAM = 8


class TextOccurrences:
    """Test texts that are searched for in any number of training texts.

    A text of fewer than ``min_words`` words is found only as a whole training text: inside longer ones so few words are
    stock phrases. Words are runs of letters and digits, so in writing without spaces between words only whole runs match.

    Args:
        texts: the test texts.
        n: a text of more words counts as found where this many of its words occur in a row.
        min_words: fewest words that are searched for inside longer texts.

    Source: paper appendix A (exact match); n = 13 is GPT-3's (arXiv 2005.14165, appendix C); the rest is ours.
    """

    def __init__(self, texts: Sequence[str], *, n: int = 13, min_words: int = 4) -> None:
        if not 1 <= min_words <= n:
            raise UserError(f"occurrences: min_words={min_words} must be between 1 and n={n}")
        self.count, self.min_words = len(texts), min_words
        self._exact: dict[str, list[int]] = {}
        short: list[bool] = []

        def searched() -> Iterator[tuple[int, list[str]]]:
            for number, text in enumerate(texts):
                self._exact.setdefault(normalise_text(text), []).append(number)
                text_words = words(text)
                short.append(len(text_words) < min_words)
                if text_words:
                    yield (number if len(text_words) <= n else ~number), text_words  # the complement marks a part of a text

        self._index = NgramIndex.of(searched(), n)
        #: bool ``[texts]``: which are searched for only as whole texts.
        self.short: NDArray[np.bool_] = np.array(short, dtype=bool)

    def find(self, training: Iterable[str]) -> NDArray[np.uint8]:
        """`Rule` flags ``[texts]`` of each test text in these training texts; 0 where it does not occur.

        Memory: one block of the training texts.
        """
        flags = np.zeros(self.count, dtype=np.uint8)
        block: list[str] = []
        for text in training:
            block.append(text)
            if len(block) == _BLOCK:
                self._look(block, flags)
                block = []
        if block:
            self._look(block, flags)
        return flags

    def _look(self, block: Sequence[str], flags: NDArray[np.uint8]) -> None:
        all_words: list[str] = []
        counts = np.zeros(len(block), dtype=np.int64)
        for place, text in enumerate(block):
            for number in self._exact.get(normalise_text(text), ()):
                flags[number] |= Rule.EXACT
            text_words = words(text)
            counts[place] = len(text_words)
            all_words += text_words
        starts = np.cumsum(counts) - counts
        hashes = WordHashes(all_words)
        for length in self._index.lengths:
            runs = hashes.ngrams(length)
            whole_only = length < self.min_words
            at = starts[counts == length] if whole_only else np.arange(len(runs))
            found, first, last = self._index.find(runs[at])
            at = at[found]
            owner_text = np.searchsorted(starts, at, "right") - 1  # the last text that starts there: those before it are empty
            inside = at + length <= starts[owner_text] + counts[owner_text]  # a run of words of one text, not of two
            first, last, whole = first[inside], last[inside], counts[owner_text[inside]] == length
            rule = np.where(whole, Rule.PUNCTUATION, Rule.INSIDE).astype(np.uint8)
            for low, high, kind in zip(first.tolist(), last.tolist(), rule.tolist(), strict=True):
                owner = self._index.owners[low:high]
                np.bitwise_or.at(flags, owner[owner >= 0], np.uint8(kind))
                np.bitwise_or.at(flags, ~owner[owner < 0], np.uint8(Rule.NGRAM))
