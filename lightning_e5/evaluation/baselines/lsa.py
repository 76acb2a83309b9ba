"""Latent semantic analysis: TF-IDF vectors projected on the strongest directions of the corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from sklearn.decomposition import TruncatedSVD
from torch import Tensor
from torch.nn import functional as F

from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError
from lightning_e5.evaluation.baselines.fitted import retrieve_known
from lightning_e5.evaluation.baselines.tfidf import TfIdf
from lightning_e5.ranges import Range, Seed, Size
from lightning_e5.retrieval.search import check_search
from lightning_e5.rng import derive_seed
from lightning_e5.text import check_texts
from lightning_e5.types import Kind, Run


@configurable("baseline", constructs=True)
class Lsa:
    """TF-IDF and a truncated singular value decomposition, both fitted on the corpus; cosine.

    A text's vector is its TF-IDF vector times the first right singular vectors, a document's and a query's alike.

    Args:
        width: singular vectors; at most as many as documents and terms.
        terms: what a term is and how it is weighed.
        iterations: power iterations of the randomised decomposition.
        seed: of its start.

    Raises:
        UserError: a number is below 1.

    Source: Deerwester et al. 1990; the decomposition is Halko et al. 2011 as scikit-learn has it.
    """

    TRAINED = False  # it reads the collection that it searches, nothing else

    def __init__(
        self,
        width: Size = 300,
        *,
        terms: TfIdf | None = None,
        iterations: Annotated[int, Range(1, 1000)] = 5,
        seed: Seed = 0,
    ) -> None:
        for name, value in (("width", width), ("iterations", iterations)):
            if value < 1:
                raise UserError(f"{name} must be at least 1, not {value}")
        self.width, self.iterations, self.seed = width, iterations, seed
        self.terms = terms or TfIdf()

    def fit(self, texts: Sequence[str]) -> FittedLsa:
        """The projection of a corpus; UserError where no term of it is kept."""
        vectorizer, texts_NV = self.terms.fit(texts)
        svd = TruncatedSVD(
            min(self.width, *texts_NV.shape), n_iter=self.iterations, random_state=derive_seed(self.seed, "lsa") % 2**32
        )
        svd.fit(texts_NV)
        return FittedLsa(vectorizer, svd)

    def retrieve(self, corpus: Mapping[str, str], queries: Mapping[str, str], k: int = 100) -> Run:
        """Fit on the corpus and rank all of it; nothing for a query without a known term. UserError as `TfIdf.retrieve`."""
        check_search(corpus, k)
        fitted = self.fit([corpus[document] for document in sorted(corpus)])
        return retrieve_known(fitted, corpus, queries, k)


class FittedLsa:
    """An `Embedder`: a vectorizer and the projection that were fitted on one corpus."""

    def __init__(self, vectorizer: Any, svd: TruncatedSVD) -> None:
        self._vectorizer, self._svd = vectorizer, svd

    def embed(self, texts: Sequence[str], kind: Kind, *, normalize: bool = True) -> Tensor:
        """float32 ``[N, D]``, both kinds alike; zero for a text without a known term."""
        check_texts(texts)
        counts_NV = self._vectorizer.transform(texts)
        vectors_ND = torch.from_numpy(self._svd.transform(counts_NV)).double()
        vectors_ND[torch.from_numpy(counts_NV.getnnz(axis=1) == 0)] = 0  # not what rounding left of it
        return (F.normalize(vectors_ND) if normalize else vectors_ND).float()
