"""Sentences with the passages that BM25 finds for them: a dense encoder is taught to match words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated

import bm25s
import numpy as np
import Stemmer
from bm25s.stopwords import STOPWORDS_EN

from data_modules.ccpairs.sources.pair_text import candidate
from data_modules.ccpairs.sources.signals.signal import TOO_SHORT, Signal, sentences
from data_modules.ccpairs.sources.signals.texts import TextFiles
from lightning_e5.configurable import configurable
from lightning_e5.progress import progress
from lightning_e5.ranges import Count, Range, Seed, Share
from lightning_e5.rng import generator
from lightning_e5.types import PairCandidate, ReadReport

_WORD = re.compile(r"\w+")
_PART = "all texts"


@configurable("pair source")
class Bm25Taught(Signal):
    """A random sentence of each passage as query, with the passages that BM25 ranks first for it.

    The sentence's own passage is usually the first of them. All texts are one part, since BM25 ranks them all; they are
    held in memory with their index.

    Args:
        texts: the passages.
        name: the pairs' source.
        top: passages per sentence at most, fewer where fewer share a word with it.
        own: whether the sentence's own passage may be one of them.
        min_query_words: of a sentence that may be the query.
        max_queries: sentences, drawn among the passages; None for one of each.
        k1: see `lightning_e5.retrieval.bm25.BM25`, of which this is the Porter-stemmed default.
        b: the same.
        seed: of the draws.

    Raises:
        UserError: a number is below 1.

    Source: Chen et al. 2021 (SPAR), section 3: a lexical model imitates BM25 on sentences drawn from the passages. The
    numbers here are ours.
    """

    def __init__(
        self,
        texts: TextFiles,
        *,
        name: str = "bm25-taught",
        top: Count = 1,
        own: bool = True,
        min_query_words: Count = 4,
        max_queries: Count | None = None,
        k1: Annotated[float, Range(0, 1000)] = 0.9,
        b: Share = 0.4,
        seed: Seed = 0,
    ) -> None:
        super().__init__(
            texts, name, seed, top=top, own=own, min_query_words=min_query_words, max_queries=max_queries, k1=k1, b=b
        )
        self.top, self.own, self.min_query_words, self.max_queries = top, own, min_query_words, max_queries
        self.k1, self.b = k1, b

    def parts(self) -> list[str]:
        """All texts, as one part."""
        return [_PART]

    def read(self, part: str, report: ReadReport) -> Iterator[PairCandidate]:
        """The pairs, sentence by sentence in the order of the passages; a passage's pairs in BM25's order."""
        found = [one for inner in self.texts.parts() for one in self.texts.read(inner, report)]
        ids, texts = [id for id, _ in found], [text for _, text in found]
        queries = self._queries(texts, report)
        stemmer = Stemmer.Stemmer("porter")
        tokens = [_tokens(text, stemmer) for text in texts]
        if not any(tokens):
            return
        index = bm25s.BM25(k1=self.k1, b=self.b, method="lucene", backend="numpy")
        index.index(tokens, show_progress=False)
        with progress(len(queries), "BM25's passages", "sentence") as bar:
            for row, query in queries:
                words = index.get_tokens_ids(_tokens(query, stemmer))
                scores = np.asarray(index.get_scores_from_ids(words)) if words else np.zeros(len(texts))
                if not self.own:
                    scores[row] = 0
                for best in _best(scores, self.top):
                    yield from candidate(report, query, texts[best], source=self.name, id=f"{ids[row]} {ids[best]}".strip())
                bar(1)

    def _queries(self, texts: Sequence[str], report: ReadReport) -> list[tuple[int, str]]:
        """(row of its passage, sentence), by rising row."""
        drawn: list[tuple[int, str]] = []
        for row, text in enumerate(texts):
            able = [s for s in sentences(text) if len(s.split()) >= self.min_query_words]
            if able:
                draw = generator(self.seed, type(self).__name__, row)
                drawn.append((row, able[int(draw.integers(0, len(able)))]))
            else:
                report.skip(f"document {row}", TOO_SHORT)
        if self.max_queries is not None and len(drawn) > self.max_queries:
            chosen = generator(self.seed, type(self).__name__, "queries").permutation(len(drawn))[: self.max_queries]
            drawn = [drawn[place] for place in sorted(chosen.tolist())]
        return drawn


def _tokens(text: str, stemmer: Stemmer.Stemmer) -> list[str]:
    stems = stemmer.stemWords([word for word in _WORD.findall(text.lower()) if word not in STOPWORDS_EN])
    return [stem for stem in stems if stem]  # Porter's stem of a possessive "s" is empty, which bm25s takes for a word of every text


def _best(scores: np.ndarray, count: int) -> list[int]:
    """The rows of the highest scores above 0, equal ones by rising row."""
    rows = np.flatnonzero(scores > 0)
    if len(rows) > count:
        rows = rows[scores[rows] >= np.partition(scores[rows], len(rows) - count)[len(rows) - count]]
    return rows[np.argsort(-scores[rows], kind="stable")][:count].tolist()  # type: ignore[no-any-return]
