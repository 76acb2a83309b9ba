"""BM25 against its formula in loops, and its edges."""

from __future__ import annotations

import math
import random

import pytest

from lightning_e5.errors import UserError
from lightning_e5.evaluation.baselines.bm25 import BM25

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
    return dict(sorted(scores.items(), key=lambda item: (-round(item[1], 6), item[0])))


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
    assert list(full)[1:3] == ["d4", "d5"] or list(full)[:2] == ["d4", "d5"]
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


def test_the_document_of_the_same_id_is_left_out():
    queries = {"d4": "dogs", "q": "dogs"}
    run = BM25().retrieve(CORPUS, queries, 2)
    assert "d4" not in run["d4"]
    assert len(run["d4"]) == 2
    assert "d4" in run["q"]
    assert "d4" in BM25(drop_identical_ids=False).retrieve(CORPUS, queries, 2)["d4"]


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
