"""BM25, the lexical baseline that every unsupervised embedder before E5 lost to on BEIR (paper table 2)."""

from __future__ import annotations

import re
import tempfile
from array import array
from collections.abc import Mapping, Sequence
from typing import Annotated, overload

import bm25s
import numpy as np
import Stemmer
from bm25s.stopwords import STOPWORDS_EN

from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError, suggestion
from lightning_e5.files.stored_corpus import by_falling_id
from lightning_e5.ranges import Range, Share
from lightning_e5.retrieval.search import check_search
from lightning_e5.types import Run

_WORD = re.compile(r"\w+")


@configurable("baseline", constructs=True)
class BM25:
    """Lucene's BM25 over one field.

    The defaults ``k1=0.9, b=0.4``, Porter's stemmer and Lucene's stop words are Anserini's, hence those of the BM25
    rows of BEIR and of the paper. Anserini cuts words a little differently and, for BEIR's own table, weighs title and
    text as two fields, so its figures differ by a point or so from these.

    Args:
        k1: how slowly repeated words saturate.
        b: how much long documents are discounted, 0 to 1.
        stemmer: a Snowball algorithm such as ``porter`` or ``english``, or ``None`` for no stemming.
        stopwords: leave out Lucene's 33 English stop words.

    Example:
        >>> corpus = {"sort": "Sort the list in place.", "open": "Open the file for reading."}
        >>> list(BM25().retrieve(corpus, {"q": "sorting lists"})["q"])
        ['sort']
    """

    TRAINED = False  # it reads the collection that it searches, nothing else

    def __init__(
        self,
        k1: Annotated[float, Range(0, 1000)] = 0.9,
        b: Share = 0.4,
        stemmer: str | None = "porter",
        *,
        stopwords: bool = True,
    ) -> None:
        if k1 < 0 or not 0 <= b <= 1:
            raise UserError(f"BM25 needs k1 >= 0 and b between 0 and 1, not k1={k1} and b={b}")
        if stemmer is not None and stemmer not in Stemmer.algorithms():
            raise UserError(f"no Snowball stemmer {stemmer!r}{suggestion(stemmer, Stemmer.algorithms())}")
        self.k1 = k1
        self.b = b
        self._stemmer = None if stemmer is None else Stemmer.Stemmer(stemmer)
        self._stopwords = frozenset(STOPWORDS_EN) if stopwords else frozenset()

    def tokenize(self, text: str) -> list[str]:
        """Lower-cased words without stop words, stemmed where a stemmer was named."""
        words = [word for word in _WORD.findall(text.lower()) if word not in self._stopwords]
        # Porter's stem of a possessive "s" is empty, which is no word: bm25s takes it for one that every text has
        return words if self._stemmer is None else [stem for stem in self._stemmer.stemWords(words) if stem]

    def retrieve(self, corpus: Mapping[str, str], queries: Mapping[str, str], k: int = 100) -> Run:
        """Rank the documents that share a word with the query.

        Args:
            corpus: document id -> text.
            queries: query id -> text.
            k: documents per query at most.

        Returns:
            query id -> document id -> score, best first, equal scores by falling id; nothing for a query without words.

        Raises:
            UserError: ``k`` is below 1 or the corpus is empty.
        """
        check_search(corpus, k)
        document_ids, texts = by_falling_id(corpus)
        index = self.index(texts)
        run: Run = {}
        for query, text in queries.items():
            run[query] = best_documents(document_ids, index.scores(text), k)
        return run

    def index(self, texts: Sequence[str]) -> BM25Index:
        """Count the words of the documents, once for any number of queries."""
        return BM25Index(self, texts)


class BM25Index:
    """The documents of a `BM25`, ready for queries.

    Args:
        bm25: how words are cut and weighed.
        texts: the documents.
    """

    def __init__(self, bm25: BM25, texts: Sequence[str]) -> None:
        self._bm25, self._count = bm25, len(texts)
        self._index = None
        vocabulary: dict[str, int] = {}
        with tempfile.TemporaryFile() as file:
            counts = np.zeros(len(texts), dtype=np.int64)
            for row, text in enumerate(texts):
                words = bm25.tokenize(text)
                counts[row] = len(words)
                array("i", [vocabulary.setdefault(word, len(vocabulary)) for word in words]).tofile(file)
            file.flush()
            if vocabulary:
                self._index = bm25s.BM25(k1=bm25.k1, b=bm25.b, method="lucene", backend="numpy")
                numbers = list(range(len(vocabulary)))
                words_of = _Documents(np.memmap(file, dtype=np.intc, mode="r"), np.concatenate([[0], np.cumsum(counts)]))
                self._index.scores = self._index.build_index_from_ids(numbers, words_of, show_progress=False)  # type: ignore[arg-type]
                self._index.vocab_dict, self._index.unique_token_ids_set = vocabulary, set(numbers)

    def scores(self, query: str) -> np.ndarray:
        """float32 ``[N]``: of every document, 0 for one that shares no word with the query."""
        words = [] if self._index is None else self._index.get_tokens_ids(self._bm25.tokenize(query))
        if self._index is None or not words:
            return np.zeros(self._count, dtype=np.float32)
        return np.asarray(self._index.get_scores_from_ids(words))

    def best_rows(self, scores: np.ndarray, k: int) -> np.ndarray:
        """See `best_rows`."""
        return best_rows(scores, k)


class _Documents(Sequence[list[int]]):
    """The numbers of each document's words, mapped from a file: 4 bytes per word."""

    def __init__(self, words: np.ndarray, starts: np.ndarray) -> None:
        self._words, self._starts = words, starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, row: int) -> list[int]: ...
    @overload
    def __getitem__(self, row: slice) -> list[list[int]]: ...
    def __getitem__(self, row: int | slice) -> list[int] | list[list[int]]:
        if isinstance(row, slice):
            return [self[one] for one in range(len(self))[row]]
        if not 0 <= row < len(self):
            raise IndexError(row)
        found: list[int] = self._words[self._starts[row] : self._starts[row + 1]].tolist()
        return found


def best_documents(document_ids: Sequence[str], scores: np.ndarray, k: int) -> dict[str, float]:
    """Document id -> score of the ``k`` highest scores above 0, best first; see `best_rows`."""
    rows = best_rows(scores, k)
    return dict(zip((document_ids[row] for row in rows), scores[rows].tolist(), strict=True))


def best_rows(scores: np.ndarray, k: int) -> np.ndarray:
    """The rows of the ``k`` highest scores above 0, equal scores by rising row."""
    rows = np.flatnonzero(scores > 0)
    if len(rows) > k:
        kth = np.partition(scores[rows], len(rows) - k)[len(rows) - k]
        rows = rows[scores[rows] >= kth]
    return rows[np.argsort(-scores[rows], kind="stable")][:k]
