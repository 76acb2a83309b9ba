"""Cosines of judged (query, passage) pairs and of random ones, for the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_e5.evaluation.beir.collection import Collection
from lightning_e5.files.stored_corpus import ids_of
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.head import Similarity
from lightning_e5.rng import generator
from lightning_e5.types import Kind

#: Pairs whose cosines are kept.
SAMPLE = 500


class CosineSample:
    """Which pairs of a collection are drawn.

    Args:
        collection: queries, passages and judgements.
        seed: of the draw.
    """

    def __init__(self, collection: Collection, seed: int) -> None:
        data = collection.data
        judged = [(q, d) for q, grades in data.qrels.items() for d, grade in grades.items() if grade > 0 and d in data.corpus]
        draw = generator(seed, "cosines")
        chosen = draw.permutation(len(judged))[:SAMPLE]
        documents = ids_of(data.corpus)
        others = draw.integers(0, len(documents), size=len(chosen))
        self.kind: Kind = collection.passage_kind
        self.queries = [data.queries[judged[i][0]] for i in chosen]
        self.positives = [data.corpus[judged[i][1]] for i in chosen]
        self.random = [data.corpus[documents[i]] for i in others]

    def texts(self) -> set[tuple[Kind, str]]:
        """Every text whose embedding is needed, with its kind."""
        return {("query", q) for q in self.queries} | {(self.kind, p) for p in (*self.positives, *self.random)}

    def cosines(self, encoder: TextEncoder | RememberingEncoder) -> dict[str, Any]:
        """float32 columns ``positive`` and ``random``."""
        queries_ND, positives_ND = encoder.embed(self.queries, "query"), encoder.embed(self.positives, self.kind)
        random_ND = encoder.embed(self.random, self.kind)
        return {"positive": _cosines(queries_ND, positives_ND), "random": _cosines(queries_ND, random_ND)}


class RememberingEncoder:
    """An encoder that keeps the embeddings of some texts and does not embed those again.

    Args:
        encoder: that embeds.
        texts: whose embeddings are kept, with their kinds.
        progress: called with the number of texts embedded.
    """

    def __init__(
        self, encoder: TextEncoder, texts: set[tuple[Kind, str]], progress: Callable[[int], object] = lambda texts: None
    ) -> None:
        self.encoder, self._wanted, self._progress = encoder, texts, progress
        self._known: dict[tuple[Kind, str], Tensor] = {}

    @property
    def similarity(self) -> Similarity:
        """Of the encoder."""
        return self.encoder.similarity

    def embed(self, texts: Sequence[str], kind: Kind, *, normalize: bool = True) -> Tensor:
        """As `TextEncoder.embed`."""
        if normalize and texts and all((kind, text) in self._known for text in texts):
            return torch.stack([self._known[kind, text] for text in texts])
        embedded_ND = self.encoder.embed(texts, kind, normalize=normalize, progress=self._progress)
        for row, text in enumerate(texts) if normalize else ():
            if (kind, text) in self._wanted:
                self._known[kind, text] = embedded_ND[row].clone()
        return embedded_ND


def _cosines(a_ND: Tensor, b_ND: Tensor) -> np.ndarray:
    return (a_ND * b_ND).sum(1).numpy()
