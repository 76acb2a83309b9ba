"""BM25 against its formula in loops, and its edges."""

from __future__ import annotations

import math
import random

import pytest

from lightning_e5.errors import UserError
from lightning_e5.retrieval.bm25 import BM25

CORPUS = {
    "d3": "The cat sat on the mat with another cat",
    "d1": "Dogs and cats are running",
    "d2": "A dog runs; the dog barked",
    "d5": "dogs",
    "d4": "dogs",
    "d0": "",
}


def oracle(model, query):
    tokens = {document: model.tokenize(text) for document, text in CORPUS.items()}
    average = sum(map(len, tokens.values())) / len(tokens)
    scores = {}
    for document, words in tokens.items():
        score = 0.0
        for word in model.tokenize(query):
            containing = sum(word in other for other in tokens.values())
            idf = math.log(1 + (len(tokens) - containing + 0.5) / (containing + 0.5))
            tf = words.count(word)
            score += idf * tf / (tf + model.k1 * (1 - model.b + model.b * len(words) / average))
        if score > 0:
            scores[document] = score
    return dict(sorted(scores.items(), key=lambda item: (round(item[1], 6), item[0]), reverse=True))


@pytest.mark.parametrize("stemmer", [None, "english", "porter"])
@pytest.mark.parametrize("query", ["dog cat", "running dogs dogs", "barked", "mat the zebra"])
def test_equals_the_formula(stemmer, query):
    model = BM25(stemmer=stemmer)
    found = model.retrieve(CORPUS, {"q": query}, 100)["q"]
    expected = oracle(model, query)
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, rel=1e-5)


def test_ties_by_id_whatever_the_order_and_the_cut():
    full = BM25().retrieve(CORPUS, {"q": "dog"}, 10)["q"]
    assert list(full)[1:3] == ["d5", "d4"] or list(full)[:2] == ["d5", "d4"]  # falling, as in trec_eval
    for seed in range(5):
        documents = list(CORPUS)
        random.Random(seed).shuffle(documents)
        run = BM25().retrieve({d: CORPUS[d] for d in documents}, {"q": "dog"}, 10)["q"]
        assert list(run.items()) == list(full.items())
    for k in (1, 2, 3):
        assert list(BM25().retrieve(CORPUS, {"q": "dog"}, k)["q"].items()) == list(full.items())[:k]


def test_queries_without_words_or_matches_find_nothing(capfd):
    run = BM25().retrieve(CORPUS, {"q1": "", "q2": "the of", "q3": "zebra", "q4": "dog"}, 5)
    assert [len(run[q]) for q in ("q1", "q2", "q3")] == [0, 0, 0]
    assert run["q4"]
    assert BM25().retrieve({"d": "", "e": "the"}, {"q": "dog"}, 5) == {"q": {}}
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("stemmer", ["porter", "english", None])
@pytest.mark.parametrize("text", ["'s", "the patient's", "'s 's 's", "…?!", "\U0001f600", "", " ", "日本語の文", "the of", "s", "l’s", "\ud800"])
def test_texts_whose_words_are_none(stemmer, text, capfd):
    """Porter's stem of a possessive s is empty; stop words, marks and emoji leave no word either."""
    model = BM25(stemmer=stemmer)
    assert "" not in model.tokenize(text)
    run = model.retrieve(CORPUS, {"q": text, "with": f"dog {text}"}, 5)
    if not {"patient", "s", "日本語の文"} & {word for words in CORPUS.values() for word in model.tokenize(words)}:
        assert run["q"] == {} and run["with"].keys() == model.retrieve(CORPUS, {"q": "dog"}, 5)["q"].keys()
    documents = {**CORPUS, "d9": text, "d8": f"{text} dog"}  # as a document
    assert "d8" in model.retrieve(documents, {"q": "dog"}, 5)["q"]
    assert ("d9" in model.retrieve(documents, {"q": text}, 5)["q"]) == bool(model.tokenize(text))
    assert model.retrieve({"d": text}, {"q": "zebra"}, 5) == {"q": {}}
    assert capfd.readouterr() == ("", "")


def test_stop_words_and_stemming():
    assert BM25(stemmer=None).tokenize("The Dogs of os.path") == ["dogs", "os", "path"]
    assert BM25(stemmer=None, stopwords=False).tokenize("the dogs") == ["the", "dogs"]
    assert BM25().tokenize("running dogs") == ["run", "dog"]


def test_errors():
    with pytest.raises(UserError, match="did you mean 'english'"):
        BM25(stemmer="englsh")
    with pytest.raises(UserError, match="b between 0 and 1"):
        BM25(b=1.5)
    with pytest.raises(UserError, match="no documents"):
        BM25().retrieve({}, {"q": "a"}, 5)
    with pytest.raises(UserError, match="k must be"):
        BM25().retrieve(CORPUS, {"q": "a"}, 0)
