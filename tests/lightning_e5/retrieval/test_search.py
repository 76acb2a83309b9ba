"""Retrieval with an embedder: kinds, order of the documents, ties."""

from __future__ import annotations

import random

import pytest
import torch

from lightning_e5.errors import UserError
from lightning_e5.retrieval.search import retrieve


class ToyEmbedder:
    """Counts of four letters; notes the kinds it was asked for."""

    def __init__(self):
        self.kinds = []

    def embed(self, texts, kind, *, normalize=True):
        self.kinds.append(kind)
        vectors = torch.tensor([[float(text.count(letter)) for letter in "abcd"] for text in texts]) + 0.125
        return torch.nn.functional.normalize(vectors) if normalize else vectors


CORPUS = {f"d{i}": text for i, text in enumerate(["aab", "b", "abc", "aab", "ccd", "d", "aabb", "b"])}


def as_lists(run):
    return {query: list(scores.items()) for query, scores in run.items()}


def test_ranks_by_cosine_with_the_right_kinds():
    embedder = ToyEmbedder()
    run = retrieve(embedder, {"q1": "b", "q0": "d"}, CORPUS, 3)
    assert sorted(embedder.kinds) == ["passage", "query"]
    assert list(run) == ["q1", "q0"]
    assert list(run["q1"])[:2] == ["d7", "d1"]
    assert next(iter(run["q0"])) == "d5"
    assert run["q1"]["d1"] == pytest.approx(1.0)


def test_k_beyond_the_corpus():
    run = retrieve(ToyEmbedder(), {"d0": "a", "q": "a"}, CORPUS, 100)  # an equal id says nothing here
    assert len(run["d0"]) == len(run["q"]) == len(CORPUS)


@pytest.mark.parametrize("seed", range(3))
def test_order_of_documents_and_queries_changes_nothing(seed):
    queries = {"q1": "ab", "q2": "b", "d4": "c"}
    expected = as_lists(retrieve(ToyEmbedder(), queries, CORPUS, 5))
    shuffler = random.Random(seed)
    documents, order = list(CORPUS), list(queries)
    shuffler.shuffle(documents)
    shuffler.shuffle(order)
    run = retrieve(ToyEmbedder(), {q: queries[q] for q in order}, {d: CORPUS[d] for d in documents}, 5)
    assert as_lists(run) == expected
    assert next(iter(expected["q2"]))[0] == "d7"  # d1 and d7 are one text: the higher id first


def test_errors_and_no_queries():
    assert retrieve(ToyEmbedder(), {}, CORPUS, 5) == {}
    with pytest.raises(UserError, match="no documents"):
        retrieve(ToyEmbedder(), {"q": "a"}, {}, 5)
    with pytest.raises(UserError, match="k must be"):
        retrieve(ToyEmbedder(), {"q": "a"}, CORPUS, 0)
