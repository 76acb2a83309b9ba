"""Averaged vectors of a word2vec or GloVe file: the means, the weights, and every way in which a file can be wrong."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import pytest

from lightning_e5.errors import UserError
from lightning_e5.evaluation.baselines.vectors_file import VectorsFile, read_vectors

VECTORS = {"cat": [1.0, 0.0, 0.5], "dog": [0.0, 1.0, -0.5], "the": [0.25, 0.25, 3.0], "unused": [9.0, 9.0, 9.0]}


def lines(header: bool = False, **extra: str) -> str:
    rows = [f"{word} {' '.join(map(str, vector))}" for word, vector in VECTORS.items()]
    return "\n".join([*([f"{len(rows)} 3"] if header else []), *rows, *extra.values()]) + "\n"


@pytest.fixture
def glove(tmp_path: Path) -> Path:
    (tmp_path / "glove.txt").write_text(lines(), encoding="utf-8")
    return tmp_path / "glove.txt"


def test_both_formats_give_the_same(tmp_path: Path, glove: Path) -> None:
    (tmp_path / "w2v.txt").write_text(lines(header=True))
    (tmp_path / "w2v.vec.gz").write_bytes(gzip.compress(lines(header=True).encode()))
    wanted = {"cat", "dog", "absent"}
    for path in (glove, tmp_path / "w2v.txt", tmp_path / "w2v.vec.gz"):
        found = read_vectors(path, wanted)
        assert sorted(found) == ["cat", "dog"]  # nothing that is not wanted is kept
        assert found["cat"].tolist() == VECTORS["cat"]


def test_the_mean_weighted_by_idf(glove: Path) -> None:
    corpus = {"d1": "The cat", "d2": "the dog dog", "d3": "the"}
    run = VectorsFile(glove).retrieve(corpus, {"q": "cat, dog unknown", "none": "unknown"}, 5)
    idf = {"cat": math.log(4 / 2), "dog": math.log(4 / 2), "the": 0.0}

    def mean(words: list[str]) -> np.ndarray:
        total = sum(idf[word] for word in words)
        return sum(idf[w] * np.array(VECTORS[w]) for w in words) / total if total else np.zeros(3)  # type: ignore[return-value]

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / ((np.linalg.norm(a) * np.linalg.norm(b)) or 1))

    query = mean(["cat", "dog"])
    expected = {d: cosine(query, mean(words)) for d, words in {"d1": ["the", "cat"], "d2": ["the", "dog", "dog"], "d3": ["the"]}.items()}
    assert run["q"] == pytest.approx(expected, abs=1e-6)
    assert run["none"] == {}
    plain = VectorsFile(glove, idf=False).retrieve(corpus, {"q": "cat"}, 5)["q"]
    assert plain["d1"] == pytest.approx(cosine(np.array(VECTORS["cat"]), np.array(VECTORS["the"]) + VECTORS["cat"]), abs=1e-6)


def test_embed_is_unweighted_and_has_length_one(glove: Path) -> None:
    model = VectorsFile(glove)
    vectors = model.embed(["the cat", "unknown"], "query")
    mean = (np.array(VECTORS["the"]) + VECTORS["cat"]) / 2
    assert vectors[0].tolist() == pytest.approx((mean / np.linalg.norm(mean)).tolist(), abs=1e-6)
    assert vectors[1].tolist() == [0, 0, 0]
    assert model.embed(["the cat"], "passage", normalize=False)[0].tolist() == pytest.approx(mean.tolist())
    assert model.embed(["Dog"], "query", normalize=False)[0].tolist() == VECTORS["dog"]


def test_case_and_words_with_spaces(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("Paris 1 2\n. . . 3 4\nparis 5 6\nparis 7 8\n")
    assert read_vectors(tmp_path / "v.txt", {"paris", "Paris"})["paris"].tolist() == [5, 6]
    assert VectorsFile(tmp_path / "v.txt", lowercase=False).embed(["Paris"], "query", normalize=False).tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat 1 2 3\ndog 1 2\n", "v.txt:2: has 2 numbers after its word, not 3"),
        ("cat 1 2 3\ndog 1 2 3 4\n", "v.txt:2: has 4 numbers after its word, not 3"),
        ("cat 1 2 3\ndog 1 two 3\n", "v.txt:2: 'two' is not a finite number"),
        ("cat 1 2 3\ndog 1 nan 3\n", "v.txt:2: 'nan' is not a finite number"),
        ("3 3\ncat 1 2 3\ndog 1 2 3\n", "v.txt:1: promises 3 words, but 2 lines follow"),
        ("2 3\ncat 1 2\ndog 1 2\n", "v.txt:2: has 2 numbers after its word, not 3"),
        ("cat\n", "v.txt:1: has 0 numbers"),
        ("", "v.txt: has no word vectors"),
        ("bird 1 2 3\n", "v.txt: has none of the 2 words of the texts"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "v.txt").write_text(text)
    with pytest.raises(UserError) as raised:
        VectorsFile(tmp_path / "v.txt").retrieve({"d": "dog"}, {"q": "cat"}, 3)
    assert message in str(raised.value)


def test_missing_and_not_utf8(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        VectorsFile(tmp_path / "absent.txt").embed(["cat"], "query")
    assert VectorsFile(tmp_path / "absent.txt").fingerprint() is None
    (tmp_path / "v.txt").write_bytes(b"cat 1 2\nd\xffg 1 2\n")
    with pytest.raises(UserError, match=r"v\.txt:2: not UTF-8"):
        VectorsFile(tmp_path / "v.txt").embed(["cat"], "query")
