"""TF-IDF, LSA and LDA against their formulas in loops and numpy, and their edges."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from lightning_e5.errors import UserError
from lightning_e5.evaluation.baselines.lda import Lda
from lightning_e5.evaluation.baselines.lsa import Lsa
from lightning_e5.evaluation.baselines.tfidf import TfIdf

CORPUS = {
    "d3": "the cat sat on the mat with another cat",
    "d1": "dogs and cats are running",
    "d2": "a dog runs; the dog barked at a cat",
    "d5": "stars and planets",
    "d4": "planets circle stars, stars burn",
    "d0": "",
}
QUERIES = {"q1": "dog cat", "q2": "stars", "q3": "zebra", "q4": ""}


def weights(model: TfIdf, text: str, vocabulary: list[str], tokens: list[list[str]]) -> np.ndarray:
    """A text's TF-IDF vector of unit length, term by term."""
    words = model.tokenize(text)
    vector = np.zeros(len(vocabulary))
    for column, term in enumerate(vocabulary):
        count = words.count(term)
        if count:
            containing = sum(term in document for document in tokens)
            tf = 1 + math.log(count) if model.sublinear else count
            vector[column] = tf * (math.log((1 + len(tokens)) / (1 + containing)) + 1)
    return vector / (np.linalg.norm(vector) or 1)


def matrix(model: TfIdf) -> tuple[list[str], np.ndarray, np.ndarray]:
    ids = sorted(CORPUS)
    tokens = [model.tokenize(CORPUS[i]) for i in ids]
    vocabulary = sorted({word for document in tokens for word in document})
    documents = np.array([weights(model, CORPUS[i], vocabulary, tokens) for i in ids])
    queries = np.array([weights(model, text, vocabulary, tokens) for text in QUERIES.values()])
    return ids, documents, queries


@pytest.mark.parametrize("sublinear", [True, False])
@pytest.mark.parametrize("stemmer", ["porter", None])
def test_tfidf_is_the_cosine(sublinear: bool, stemmer: str | None) -> None:
    model = TfIdf(sublinear=sublinear, stemmer=stemmer)
    ids, documents, queries = matrix(model)
    run = model.retrieve(CORPUS, QUERIES, 10)
    for query, scores in zip(QUERIES, queries @ documents.T, strict=True):
        expected = {i: s for i, s in zip(ids, scores, strict=True) if s > 0}
        assert run[query] == pytest.approx(expected, abs=1e-6)
        assert list(run[query]) == sorted(expected, key=lambda i: (round(expected[i], 6), i), reverse=True)
    assert run["q3"] == run["q4"] == {}


def test_tfidf_terms_and_cuts() -> None:
    ngrams, _ = TfIdf(ngrams=2, stemmer=None).fit(list(CORPUS.values()))
    assert "planets circle" in ngrams.vocabulary_
    few, _ = TfIdf(max_terms=2).fit(list(CORPUS.values()))
    assert len(few.vocabulary_) == 2
    assert len(TfIdf().retrieve(CORPUS, {"q": "cat"}, 1)["q"]) == 1


@pytest.mark.parametrize("model", [TfIdf(), Lsa(2), Lda(2, min_documents=1)])
@pytest.mark.parametrize("text", ["'s", "", "…?!", "\U0001f600", "the of", "日本語の文"])
def test_texts_without_a_known_word(model: Any, text: str) -> None:
    documents = {**CORPUS, "d8": text}
    run = model.retrieve(documents, {"q": text, "cat": f"cat {text}"}, 10)
    assert "d8" not in run["cat"] or run["cat"]["d8"] < max(run["cat"].values()) or text.startswith("日")
    assert run["q"] == {} or text.startswith("日")


@pytest.mark.parametrize("width", [2, 3])
def test_lsa_is_numpys_decomposition(width: int) -> None:
    model = Lsa(width)
    ids, documents, queries = matrix(model.terms)
    right = np.linalg.svd(documents, full_matrices=False)[2][:width]

    def unit(rows: np.ndarray) -> np.ndarray:
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)

    expected = unit(queries @ right.T) @ unit(documents @ right.T).T
    run = model.retrieve(CORPUS, QUERIES, 10)
    for query, scores in zip(list(QUERIES)[:2], expected, strict=False):
        assert run[query] == pytest.approx(dict(zip(ids, scores, strict=True)), abs=1e-5)
    assert run["q3"] == run["q4"] == {}


def test_lsa_finds_what_shares_no_word_with_the_query() -> None:
    corpus = {"a": "physician hospital", "b": "doctor hospital", "c": "planet star", "d": "star galaxy", "e": "doctor physician"}
    run = Lsa(2).retrieve(corpus, {"q": "physician"}, 10)["q"]
    assert run["b"] > 0.9 and abs(run["c"]) < 0.1
    assert "b" not in TfIdf().retrieve(corpus, {"q": "physician"}, 10)["q"]


def test_the_same_seed_gives_the_same_run() -> None:
    for make in (lambda seed: Lsa(2, seed=seed), lambda seed: Lda(3, min_documents=1, seed=seed)):
        first = make(1).retrieve(CORPUS, QUERIES, 10)
        assert first == make(1).retrieve(dict(reversed(CORPUS.items())), QUERIES, 10)
    assert Lda(3, min_documents=1, seed=1).retrieve(CORPUS, QUERIES, 10) != Lda(3, min_documents=1, seed=2).retrieve(CORPUS, QUERIES, 10)


@pytest.mark.parametrize("similarity", ["hellinger", "cosine"])
def test_lda_compares_mixtures(similarity: str) -> None:
    model = Lda(3, min_documents=1, similarity=similarity)  # type: ignore[arg-type]
    run = model.retrieve(CORPUS, QUERIES, 10)
    fitted = model.fit([CORPUS[i] for i in sorted(CORPUS)])
    documents = fitted.mixtures([CORPUS[i] for i in sorted(CORPUS)])
    query = fitted.mixtures([QUERIES["q1"]])[0]
    assert query.sum() == pytest.approx(1) and (query > 0).all()
    for document, mixture in zip(sorted(CORPUS), documents, strict=True):
        if similarity == "hellinger":  # 1 - H^2, where H^2 is half the squared distance of the roots
            expected = 1 - 0.5 * ((np.sqrt(query) - np.sqrt(mixture)) ** 2).sum() if mixture.any() else 0
        else:
            expected = query @ mixture / (np.linalg.norm(query) * np.linalg.norm(mixture)) if mixture.any() else 0
        assert run["q1"][document] == pytest.approx(expected, abs=1e-5)
    assert run["q3"] == {}
    assert torch.equal(fitted.embed(["zebra"], "query"), torch.zeros(1, 3))


def test_errors() -> None:
    with pytest.raises(UserError, match="min_documents=7"):
        TfIdf(min_documents=7).retrieve(CORPUS, QUERIES, 5)
    for model in (TfIdf(), Lsa(), Lda()):
        with pytest.raises(UserError, match="no term of the 1 documents"):
            model.retrieve({"d": "the"}, {"q": "the"}, 5)
        with pytest.raises(UserError, match="no documents"):
            model.retrieve({}, QUERIES, 5)
        assert model.retrieve(CORPUS, {}, 5) == {}
    with pytest.raises(UserError, match="ngrams must be at least 1, not 0"):
        TfIdf(ngrams=0)
    with pytest.raises(UserError, match="width must be at least 1"):
        Lsa(0)
    with pytest.raises(UserError, match="topics must be at least 1"):
        Lda(0)
    with pytest.raises(UserError, match="'hellinger' or 'cosine'"):
        Lda(similarity="dot")  # type: ignore[arg-type]
