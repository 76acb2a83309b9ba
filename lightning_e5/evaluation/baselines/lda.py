"""Latent Dirichlet allocation: texts as mixtures of topics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from sklearn.decomposition import LatentDirichletAllocation
from sklearn.feature_extraction.text import CountVectorizer
from torch import Tensor
from torch.nn import functional as F

from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError
from lightning_e5.evaluation.baselines.fitted import retrieve_known
from lightning_e5.evaluation.baselines.tfidf import TfIdf, fit_terms
from lightning_e5.ranges import Count, Range, Seed, Size
from lightning_e5.retrieval.search import check_search
from lightning_e5.rng import derive_seed
from lightning_e5.text import check_texts
from lightning_e5.types import Kind, Run


@configurable("baseline", constructs=True)
class Lda:
    """Topic mixtures, fitted on the corpus by online variational Bayes.

    Args:
        topics: how many.
        similarity: ``hellinger`` (1 minus the squared Hellinger distance of two mixtures, their Bhattacharyya
            coefficient) or ``cosine``.
        max_terms: the most frequent terms that are counted; bounds memory at ``topics * max_terms``.
        min_documents: documents that a term must occur in.
        passes: over the corpus.
        batch_size: documents per update.
        seed: of the topics' start.
        stemmer: a Snowball algorithm, or None.

    Raises:
        UserError: a number is out of range, or ``similarity`` is another.

    Source: Blei et al. 2003; Hoffman et al. 2010 (online learning).
    """

    TRAINED = False  # it reads the collection that it searches, nothing else

    def __init__(
        self,
        topics: Size = 100,
        *,
        similarity: Literal["hellinger", "cosine"] = "hellinger",
        max_terms: Count = 20_000,
        min_documents: Count = 2,
        passes: Annotated[int, Range(1, 10000)] = 10,
        batch_size: Count = 256,
        seed: Seed = 0,
        stemmer: str | None = "porter",
    ) -> None:
        for name, value in (("topics", topics), ("passes", passes), ("batch_size", batch_size)):
            if value < 1:
                raise UserError(f"{name} must be at least 1, not {value}")
        if similarity not in ("hellinger", "cosine"):
            raise UserError(f"similarity must be 'hellinger' or 'cosine', not {similarity!r}")
        self.topics, self.similarity, self.passes, self.batch_size, self.seed = topics, similarity, passes, batch_size, seed
        self.terms = TfIdf(min_documents=min_documents, max_terms=max_terms, stemmer=stemmer)

    def fit(self, texts: Sequence[str]) -> FittedLda:
        """The topics of a corpus; UserError where no term of it is kept."""
        vectorizer = CountVectorizer(**self.terms.term_settings())
        counts_NV = fit_terms(vectorizer, texts, self.terms.min_documents)
        model = LatentDirichletAllocation(
            self.topics, learning_method="online", max_iter=self.passes, batch_size=self.batch_size,
            random_state=derive_seed(self.seed, "lda") % 2**32,
        )  # fmt: skip
        model.fit(counts_NV)
        return FittedLda(vectorizer, model, self.similarity)

    def retrieve(self, corpus: Mapping[str, str], queries: Mapping[str, str], k: int = 100) -> Run:
        """Fit on the corpus and rank all of it; nothing for a query without a known term. UserError as `TfIdf.retrieve`."""
        check_search(corpus, k)
        fitted = self.fit([corpus[document] for document in sorted(corpus)])
        return retrieve_known(fitted, corpus, queries, k)


class FittedLda:
    """An `Embedder` whose inner products are the similarities of topic mixtures."""

    def __init__(self, vectorizer: Any, model: LatentDirichletAllocation, similarity: str) -> None:
        self._vectorizer, self._model, self._similarity = vectorizer, model, similarity

    def mixtures(self, texts: Sequence[str]) -> np.ndarray:
        """float64 ``[N, topics]``, rows that sum to 1; zero for a text without a known term."""
        counts_NV = self._vectorizer.transform(texts)
        mixtures_NT = np.asarray(self._model.transform(counts_NV))
        mixtures_NT[counts_NV.getnnz(axis=1) == 0] = 0  # the prior alone says nothing of the text
        return mixtures_NT

    def embed(self, texts: Sequence[str], kind: Kind, *, normalize: bool = True) -> Tensor:
        """float32 ``[N, topics]``, both kinds alike: the mixtures, or their square roots, which are unit vectors."""
        check_texts(texts)
        mixtures_NT = torch.from_numpy(self.mixtures(texts))
        if self._similarity == "hellinger":
            return mixtures_NT.sqrt().float()
        return (F.normalize(mixtures_NT) if normalize else mixtures_NT).float()
