"""Search by text: what brute force finds, whatever index and wherever the embeddings are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_e5.errors import UserError
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.retrieval.exact import exact_scores
from lightning_e5.retrieval.faiss_index import FaissIndex
from lightning_e5.retrieval.index import Hit, Index

QUERIES = ["sort a list", "read a file"]


@pytest.fixture
def encoder(small_bert: Any, small_tokenizer: Any) -> TextEncoder:
    return TextEncoder(small_bert, small_tokenizer).eval()


@pytest.mark.parametrize("kind", ["exact", "faiss", "kept", "kept, faiss"])
def test_it_finds_what_brute_force_finds(encoder: TextEncoder, texts: list[str], tmp_path: Path, kind: str) -> None:
    passages = [*texts[:60], texts[3]]
    options: dict[str, Any] = {"index": FaissIndex()} if "faiss" in kind else {}
    index = Index(encoder, passages, cache_dir=tmp_path if "kept" in kind else None, **options)
    found = index.search(QUERIES, k=5)
    queries, all_passages = encoder.embed(QUERIES, "query").numpy(), encoder.embed(passages, "passage").numpy()
    assert len(index) == 61 and len(options.get("index", passages)) == 61
    for own, hits in zip(queries, found, strict=True):
        scores = exact_scores(own[None], all_passages, np.zeros(61, dtype=np.int64), np.arange(61))
        order = np.lexsort((np.arange(61), -scores))[:5]
        assert hits == [Hit(float(scores[row]), int(row), passages[row]) for row in order]


def test_passages_are_embedded_once_where_they_are_kept(encoder: TextEncoder, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Index(encoder, texts[:20], cache_dir=tmp_path).search(QUERIES, 3)
    asked = []
    embed = encoder.embed
    monkeypatch.setattr(encoder, "embed", lambda texts, kind, **options: asked.append((kind, len(texts))) or embed(texts, kind, **options))
    assert Index(encoder, texts[:20], cache_dir=tmp_path).search(QUERIES, 3) == first
    assert asked == [("query", 2)]


class Dot:
    """Embeddings that are compared by dot product: the longer text has the longer vector."""

    similarity = "dot"

    def embed(self, texts: list[str], kind: str, *, normalize: bool = True) -> torch.Tensor:
        vectors = torch.tensor([[float(text.count("a")), float(text.count("b"))] for text in texts])
        return torch.nn.functional.normalize(vectors) if normalize else vectors


def test_a_model_of_dot_products_is_searched_by_them(tmp_path: Path) -> None:
    for cache in (None, tmp_path):  # it has no fingerprint, so nothing is kept of it
        index = Index(Dot(), ["ab", "aabb", "b"], cache_dir=cache)  # type: ignore[arg-type]
        assert index.search(["ab"], k=10) == [[Hit(4.0, 1, "aabb"), Hit(2.0, 0, "ab"), Hit(1.0, 2, "b")]]
    assert list(tmp_path.iterdir()) == [] and index.search([], k=1) == []


def test_what_it_does_not_take(encoder: TextEncoder) -> None:
    with pytest.raises(UserError, match="index: there is no passage"):
        Index(encoder, [])
    with pytest.raises(UserError, match="'one text' is one text"):
        Index(encoder, "one text")
    index = Index(encoder, ["a passage"])
    with pytest.raises(UserError, match="'a question' is one text, where a list of texts belongs"):
        index.search("a question")
    with pytest.raises(UserError, match="k must be at least 1, not 0"):
        index.search(["a question"], 0)
