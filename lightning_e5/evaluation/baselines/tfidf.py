"""TF-IDF, the vector space model: what BM25 is without saturation by length and without relevance behind its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError
from lightning_e5.ranges import Count, Range
from lightning_e5.retrieval.bm25 import BM25, best_documents
from lightning_e5.retrieval.search import check_search, ranked_ids
from lightning_e5.types import Run

#: Queries whose scores are held at once.
_QUERIES_AT_ONCE = 64


@configurable("baseline", constructs=True)
class TfIdf:
    """Cosine of TF-IDF vectors, whose frequencies are those of the corpus.

    Words are cut as `BM25` cuts them, so that the two differ in the weights alone.

    Args:
        ngrams: longest run of words that is a term of its own; 1 for single words.
        min_documents: documents that a term must occur in.
        max_terms: the most frequent terms are kept, up to this many; None for all.
        sublinear: count a term that occurs ``n`` times as ``1 + ln n``.
        stemmer: a Snowball algorithm, or None.
        stopwords: leave out Lucene's 33 English stop words.

    Raises:
        UserError: a number is out of range, or there is no such stemmer.

    Source: Salton & Buckley 1988 (term weighting); idf is scikit-learn's ``ln((1 + N) / (1 + df)) + 1``.
    """

    TRAINED = False  # it reads the collection that it searches, nothing else

    def __init__(
        self,
        *,
        ngrams: Annotated[int, Range(1, 10)] = 1,
        min_documents: Count = 1,
        max_terms: Count | None = None,
        sublinear: bool = True,
        stemmer: str | None = "porter",
        stopwords: bool = True,
    ) -> None:
        for name, value in (("ngrams", ngrams), ("min_documents", min_documents), ("max_terms", max_terms)):
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, not {value}")
        self.ngrams, self.min_documents, self.max_terms, self.sublinear = ngrams, min_documents, max_terms, sublinear
        self.tokenize = BM25(stemmer=stemmer, stopwords=stopwords).tokenize

    def fit(self, texts: Sequence[str]) -> tuple[TfidfVectorizer, Any]:
        """The vectorizer fitted on texts, and their unit vectors as a sparse ``[N, V]``; see `fit_terms`."""
        vectorizer = TfidfVectorizer(sublinear_tf=self.sublinear, **self.term_settings())
        return vectorizer, fit_terms(vectorizer, texts, self.min_documents)

    def term_settings(self) -> dict[str, Any]:
        """The arguments of scikit-learn's vectorizers that say what a term is."""
        return {
            "tokenizer": self.tokenize, "token_pattern": None, "lowercase": False, "ngram_range": (1, self.ngrams),
            "min_df": self.min_documents, "max_features": self.max_terms,
        }  # fmt: skip

    def retrieve(self, corpus: Mapping[str, str], queries: Mapping[str, str], k: int = 100) -> Run:
        """Rank the documents that share a term with the query.

        Args:
            corpus: document id -> text.
            queries: query id -> text.
            k: documents per query at most.

        Returns:
            query id -> document id -> cosine, best first, equal ones by falling id.

        Raises:
            UserError: ``k`` is below 1, the corpus is empty, or none of its terms is kept.
        """
        check_search(corpus, k)
        document_ids, query_ids = ranked_ids(corpus), list(queries)
        vectorizer, documents_NV = self.fit([corpus[document] for document in document_ids])
        run: Run = {}
        for first in range(0, len(query_ids), _QUERIES_AT_ONCE):
            names = query_ids[first : first + _QUERIES_AT_ONCE]
            queries_QV = vectorizer.transform([queries[name] for name in names])
            scores_QN = (queries_QV @ documents_NV.T).toarray().astype(np.float32)
            for name, scores in zip(names, scores_QN, strict=True):
                run[name] = best_documents(document_ids, scores, k)
        return run


def fit_terms(vectorizer: Any, texts: Sequence[str], min_documents: int) -> Any:
    """Fit one of scikit-learn's vectorizers; returns the texts' sparse ``[N, V]``.

    Raises:
        UserError: no term is left.
    """
    try:
        return vectorizer.fit_transform(texts)
    except ValueError as error:
        if "empty vocabulary" in str(error) or "no terms remain" in str(error) or "max_df corresponds" in str(error):
            raise UserError(f"no term of the {len(texts)} documents occurs in min_documents={min_documents} or more") from None
        raise
