"""Passages that are searched by text: an encoder, its embeddings of them, and an index of these."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lightning_e5.errors import UserError
from lightning_e5.files.stored_texts import StoredTexts
from lightning_e5.retrieval.exact import ExactIndex, VectorIndex
from lightning_e5.retrieval.stored_embeddings import kept_embeddings
from lightning_e5.text import check_texts
from lightning_e5.types import Embedder, compares_by_cosine


class Hit(NamedTuple):
    """A passage that a search found: its cosine to the query (or dot product, see `compares_by_cosine`), its place among the
    index's texts, and itself."""

    score: float
    row: int
    text: str


class Index:
    """Passages to search in, exactly if nothing else is said.

    Args:
        encoder: a `TextEncoder`, on the device that it is to embed on, or any other `Embedder`.
        texts: the passages.
        index: an empty index of another kind, such as `FaissIndex`.
        cache_dir: folder that the embeddings are kept in and searched from (see `retrieve`).

    Raises:
        UserError: there is no passage, or one is no text.

    Example:
        ``Index(encoder, ["list.sort() sorts in place."]).search(["sort a list"], k=1)[0][0].text``
    """

    def __init__(
        self, encoder: Embedder, texts: Sequence[str], *, index: VectorIndex | None = None, cache_dir: Path | str | None = None
    ) -> None:
        check_texts(texts)
        if not texts:
            raise UserError("index: there is no passage")
        self.encoder, self.texts = encoder, texts if isinstance(texts, StoredTexts) else list(texts)
        stored = None if cache_dir is None else kept_embeddings(cache_dir, encoder, self.texts)
        self._vectors: Any = ExactIndex() if index is None else index  # an empty one is false
        if stored is None:
            self._vectors.add(encoder.embed(self.texts, "passage", normalize=compares_by_cosine(encoder)))
        elif index is None:
            self._vectors = stored
        else:
            for shard in stored.shards():
                self._vectors.add(np.asarray(shard, dtype=np.float32))

    def __len__(self) -> int:
        return len(self.texts)

    def search(self, queries: Sequence[str], k: int = 10) -> list[list[Hit]]:
        """The nearest passages of each query, best first; of equal scores the earlier passage comes first.

        Args:
            queries: texts.
            k: passages of each, at most.

        Raises:
            UserError: ``queries`` is a single text, or ``k`` is below 1.
        """
        check_texts(queries)
        if not queries:
            return []
        vectors = self.encoder.embed(queries, "query", normalize=compares_by_cosine(self.encoder))
        scores, rows = self._vectors.search(vectors, k)
        return [
            [Hit(score, row, self.texts[row]) for score, row in zip(own_scores, own_rows, strict=True) if row >= 0]
            for own_scores, own_rows in zip(scores.tolist(), rows.tolist(), strict=True)
        ]
