"""Averaged word vectors: the tokenizer, the sum by loops, learning, determinism, disk."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys

import pytest
import torch

from lightning_e5 import progress
from lightning_e5.errors import UserError
from lightning_e5.evaluation.baselines import word_vectors
from lightning_e5.evaluation.baselines.word_vectors import WordVectors, WordVectorsConfig, tokenize

SMALL = WordVectorsConfig(width=32, batch_size=32, epochs=8, buckets=64, learning_rate=0.02)
TOPICS = 24


def synonym_pairs(count, seed):
    """Queries and passages with no word in common: only training can bring word i of one to word i of the other."""
    rng = random.Random(seed)
    pairs = []
    for _ in range(count):
        topics = rng.sample(range(TOPICS), 3)
        pairs.append((" ".join(f"ask{chr(97 + t)}" for t in topics), " ".join(f"tell{chr(97 + t)}" for t in topics)))
    return pairs


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Steps this small are slower on several threads, much so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def fitted():
    return WordVectors(SMALL).fit(synonym_pairs(400, 0), progress=False)


def accuracy(model, pairs):
    scores = model.embed([q for q, _ in pairs], "query") @ model.embed([p for _, p in pairs], "passage").T
    return (scores.argmax(1) == torch.arange(len(pairs))).float().mean().item()


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Hello, world", ["hello", "world"]),
        ("read_csvFile", ["read_csvfile", "read", "csv", "file"]),
        ("HTTPServer2 x", ["httpserver2", "http", "server", "2", "x"]),
        ("os.path", ["os", "path"]),
        ("Übung ñandú", ["übung", "ñandú"]),
        ("__init__ ...", ["__init__"]),
        ("", []),
    ],
)
def test_tokenize(text, tokens):
    assert tokenize(text) == tokens


def test_learns_what_words_alone_do_not_say(fitted):
    held_out = synonym_pairs(60, 1)
    assert accuracy(fitted, held_out) > 0.8
    untrained = WordVectors(WordVectorsConfig(width=32, batch_size=32, buckets=64, learning_rate=0.0))
    assert accuracy(untrained.fit(synonym_pairs(400, 0), progress=False), held_out) < 0.3  # negative control


def test_embed_equals_the_loop(fitted):
    texts = ["aska askb aska unseen", "", "tella " * 9, "unseen other"]
    found = fitted.embed(texts, "query", normalize=False)
    for text, row in zip(texts, found, strict=True):
        expected = torch.zeros(32)
        for word in dict.fromkeys(tokenize(text)):
            i = fitted._row(word)
            count = 1 + math.log(tokenize(text).count(word))
            expected += count * math.exp(fitted._log_weights_V[i]) * fitted._vectors_VD[i]
        torch.testing.assert_close(row, expected)
    unit = fitted.embed(texts, "passage")
    assert unit.dtype == torch.float32
    torch.testing.assert_close(unit.norm(dim=1), torch.tensor([1.0, 0.0, 1.0, 1.0]))
    assert fitted.embed([], "query").shape == (0, 32)


def test_lazy_adam_equals_adam_where_every_row_has_a_gradient():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(5, 3, generator=generator)
    expected = table.clone().requires_grad_()
    adam, lazy = torch.optim.Adam([expected], lr=0.1), word_vectors._LazyAdam(table)
    for _ in range(4):
        gradient = torch.randn(5, 3, generator=generator)
        expected.grad = gradient.clone()
        adam.step()
        lazy.step(table, torch.arange(5), gradient, 0.1)
    torch.testing.assert_close(table, expected.detach())
    before = table.clone()
    lazy.step(table, torch.tensor([1, 3]), torch.ones(2, 3), 0.1)
    assert (table != before).any(dim=1).tolist() == [False, True, False, True, False]


def test_the_seed_decides(fitted):
    pairs = synonym_pairs(400, 0)
    again = WordVectors(SMALL).fit(pairs, progress=False)
    assert torch.equal(again._vectors_VD, fitted._vectors_VD)
    assert torch.equal(again._log_weights_V, fitted._log_weights_V)
    other = WordVectors(WordVectorsConfig(width=32, batch_size=32, epochs=8, buckets=64, learning_rate=0.02, seed=1))
    assert not torch.equal(other.fit(pairs, progress=False)._vectors_VD, fitted._vectors_VD)


def test_saves_and_loads(fitted, tmp_path):
    fitted.save(tmp_path / "words")
    loaded = WordVectors.load(tmp_path / "words")
    texts = ["aska unseen", "tellb"]
    assert torch.equal(loaded.embed(texts, "query"), fitted.embed(texts, "query"))
    assert loaded.config == fitted.config
    (tmp_path / "words" / "vocabulary.json").write_text("[]")
    with pytest.raises(UserError, match="sha256"):
        WordVectors.load(tmp_path / "words")


def test_progress_goes_to_stderr(capfd, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    WordVectors(WordVectorsConfig(width=4, batch_size=8, epochs=1, buckets=0)).fit(synonym_pairs(16, 0))
    out, err = capfd.readouterr()
    assert out == ""
    assert "word vectors" in err


def test_errors():
    with pytest.raises(UserError, match="at least 2 pairs"):
        WordVectors().fit([("a", "b")])
    with pytest.raises(UserError, match="min_count=2"):
        WordVectors().fit([("a", "b"), ("c", "d")], progress=False)
    with pytest.raises(UserError, match="not trained"):
        WordVectors().embed(["a"], "query")
    with pytest.raises(UserError, match="kind must be"):
        WordVectors().embed(["a"], "document")
    for change in ({"width": 0}, {"temperature": 0.0}, {"token_dropout": 1.0}, {"buckets": -1}, {"epochs": 0}):
        with pytest.raises(UserError, match=next(iter(change))):
            WordVectorsConfig(**change)


def test_the_hash_seed_of_the_process_does_not_matter():
    code = (
        "from lightning_e5.evaluation.baselines.word_vectors import *\n"
        "pairs = [(f'ask{i % 7} shared', f'tell{i % 7} x{i % 3}') for i in range(40)]\n"
        "config = WordVectorsConfig(width=8, batch_size=8, epochs=1, buckets=4)\n"
        "model = WordVectors(config).fit(pairs, progress=False)\n"
        "print(list(model._vocabulary), model._vectors_VD.tolist())"
    )
    outputs = []
    for seed in ("1", "2"):
        variables = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        outputs.append(
            subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, check=True).stdout
        )
    assert outputs[0] == outputs[1]
