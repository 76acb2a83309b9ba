"""Pairs of one document: itself twice, a sentence and its surroundings, neighbouring spans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from data_modules.ccpairs.sources.signals.signal import Signal, blocks, check_share, sentences
from data_modules.ccpairs.sources.signals.texts import TextFiles
from lightning_e5.configurable import configurable
from lightning_e5.ranges import Count, Seed, Share


@configurable("pair source")
class SimCse(Signal):
    """Each text with itself: the encoder's dropout tells the two apart (and E5's prefixes), so train with ``dropout`` above 0.

    The pairs carry the fact ``same_text``, by which a build of pairs does not drop them; the heuristic `QueryIsPassage`
    would drop them all.

    Args:
        texts: the documents.
        name: the pairs' source.
        min_words: of a document.
        seed: not drawn from; part of the fingerprint.

    Source: Gao et al. 2021, section 3 (dropout 0.1, temperature 0.05, on sentences).
    """

    facts: Mapping[str, Any] = {"same_text": True}

    def __init__(self, texts: TextFiles, *, name: str = "simcse", min_words: Count = 3, seed: Seed = 0) -> None:
        super().__init__(texts, name, seed, min_words=min_words)
        self.min_words = min_words

    def pairs(self, text: str, draw: np.random.Generator) -> Iterator[tuple[str, str]]:
        """The text twice."""
        if len(text.split()) >= self.min_words:
            yield text, text


@configurable("pair source")
class InverseCloze(Signal):
    """A random sentence as query and the block of sentences around it as passage, from which it is mostly taken out.

    With it go its copies in the block, such as a title that the text repeats.

    Args:
        texts: the documents; each is cut into blocks of whole sentences, and each block gives one pair.
        name: the pairs' source.
        keep: probability that the sentence stays in its passage.
        block_words: most words of a block.
        min_query_words: of a sentence that may be the query.
        min_passage_words: of what is left of the block without it.
        seed: of the draws.

    Raises:
        UserError: a number is out of range.

    Source: Lee et al. 2019, section 4.2 and its experiments (blocks of up to 288 word pieces; the sentence is kept in
    10% of the pairs).
    """

    def __init__(
        self,
        texts: TextFiles,
        *,
        name: str = "inverse-cloze",
        keep: Share = 0.1,
        block_words: Count = 200,
        min_query_words: Count = 4,
        min_passage_words: Count = 8,
        seed: Seed = 0,
    ) -> None:
        super().__init__(
            texts, name, seed, keep=keep, block_words=block_words, min_query_words=min_query_words,
            min_passage_words=min_passage_words,
        )  # fmt: skip
        check_share("keep", keep)
        self.keep, self.block_words = keep, block_words
        self.min_query_words, self.min_passage_words = min_query_words, min_passage_words

    def pairs(self, text: str, draw: np.random.Generator) -> Iterator[tuple[str, str]]:
        """One pair per block that is long enough."""
        for block in blocks(sentences(text), self.block_words):
            counts = [len(sentence.split()) for sentence in block]
            copies = Counter(block)
            able = [
                row for row, count in enumerate(counts)
                if count >= self.min_query_words and sum(counts) - count * copies[block[row]] >= self.min_passage_words
            ]  # fmt: skip
            chosen, kept = draw.random(), draw.random() < self.keep  # two draws per block, whatever is in it
            if able:
                query = block[able[int(chosen * len(able))]]
                yield query, " ".join(block if kept else [sentence for sentence in block if sentence != query])


@configurable("pair source")
class NeighbouringSpans(Signal):
    """A span of a document as query and the span that follows it as passage.

    Args:
        texts: the documents; each is cut into spans of whole sentences.
        name: the pairs' source.
        span_words: most words of a span, but for a single longer sentence.
        min_words: of each of the two.
        pairs_per_text: pairs of a document at most, drawn among all neighbours.
        seed: of the draws.

    Raises:
        UserError: a number is below 1.

    Source: Neelakantan et al. 2022, section 3.1 (neighbouring pieces of text as positives).
    """

    def __init__(
        self,
        texts: TextFiles,
        *,
        name: str = "neighbours",
        span_words: Count = 64,
        min_words: Count = 8,
        pairs_per_text: Count = 1,
        seed: Seed = 0,
    ) -> None:
        super().__init__(texts, name, seed, span_words=span_words, min_words=min_words, pairs_per_text=pairs_per_text)
        self.span_words, self.min_words, self.pairs_per_text = span_words, min_words, pairs_per_text

    def pairs(self, text: str, draw: np.random.Generator) -> Iterator[tuple[str, str]]:
        """Pairs of neighbours, in the order of the document."""
        spans = [" ".join(block) for block in blocks(sentences(text), self.span_words)]
        long = [len(span.split()) >= self.min_words for span in spans]
        able = [row for row in range(len(spans) - 1) if long[row] and long[row + 1]]
        for place in sorted(draw.permutation(len(able))[: self.pairs_per_text].tolist()):
            yield spans[able[place]], spans[able[place] + 1]
