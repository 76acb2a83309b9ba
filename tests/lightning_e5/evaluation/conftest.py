"""An embedder without a model, for tests of what is computed from embeddings."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch


class Table:
    """Embeds by a table of vectors; a text that is not there gets random values that depend on it alone."""

    def __init__(self, vectors: Mapping[str, Sequence[float]] | None = None, width: int = 8) -> None:
        self.vectors, self.width = dict(vectors or {}), width
        self.calls: list[tuple[str, bool]] = []

    def vector(self, text: str) -> np.ndarray:
        if text in self.vectors:
            return np.array(self.vectors[text], dtype=np.float32)
        return np.random.default_rng(zlib.crc32(text.encode())).normal(size=self.width).astype(np.float32)

    def embed(self, texts: Sequence[str], kind: str, *, normalize: bool = True) -> torch.Tensor:
        self.calls.append((kind, normalize))
        found = torch.from_numpy(np.stack([self.vector(t) for t in texts]))
        return torch.nn.functional.normalize(found, dim=1) if normalize else found


@pytest.fixture
def table():  # type: ignore[no-untyped-def]
    """The class `Table`."""
    return Table
