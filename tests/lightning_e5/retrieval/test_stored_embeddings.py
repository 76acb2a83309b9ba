"""Shards on disk: resumed after a kill, never taken for another model's or other texts', searched as stored."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from lightning_e5.errors import UserError
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.retrieval.exact import ExactIndex
from lightning_e5.retrieval.search import retrieve
from lightning_e5.retrieval.stored_embeddings import StoredEmbeddings, model_fingerprint, store_embeddings

TEXTS = [f"text {i}" for i in range(23)]


class Killed(BaseException):
    pass


class Hashed:
    """A unit vector per text; dies at a text where it is told to."""

    def __init__(self, name="a", die_at=None):
        self.name, self.die_at, self.embedded = name, die_at, 0

    def fingerprint(self):
        return self.name

    def embed(self, texts, kind, *, normalize=True):
        if self.die_at in texts:
            raise Killed
        self.embedded += len(texts)
        rows = [np.random.default_rng([len(self.name), ord(self.name[0]), *t.encode()]).standard_normal(8) for t in texts]
        return torch.nn.functional.normalize(torch.tensor(np.array(rows), dtype=torch.float32))


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_killed_writer_goes_on_and_the_bytes_are_the_same(tmp_path):
    store_embeddings(tmp_path / "whole", Hashed(), TEXTS, shard_rows=5)
    with pytest.raises(Killed):
        store_embeddings(tmp_path / "cut", Hashed(die_at="text 12"), TEXTS, shard_rows=5)
    with pytest.raises(UserError, match="unfinished"):
        StoredEmbeddings(tmp_path / "cut")
    (tmp_path / "cut" / ".shard-00002.npy.1.tmp").write_bytes(b"half")
    again = Hashed()
    store_embeddings(tmp_path / "cut", again, TEXTS, shard_rows=5)
    assert again.embedded == 13
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    third = Hashed(die_at="text 0")
    assert len(store_embeddings(tmp_path / "cut", third, TEXTS, shard_rows=5)) == 23


@pytest.mark.parametrize("damage", ["flip", "truncate", "record", "no record", "manifest"])
def test_only_the_damaged_shard_is_made_again(tmp_path, damage):
    store_embeddings(tmp_path, Hashed(), TEXTS, shard_rows=5)
    before = files(tmp_path)
    shard, record = tmp_path / "shard-00001.npy", tmp_path / "shard-00001.json"
    if damage == "flip":
        raw = bytearray(shard.read_bytes())
        raw[-3] ^= 1
        shard.write_bytes(raw)
    elif damage == "truncate":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif damage == "record":
        record.write_text("{")
    elif damage == "no record":
        record.unlink()
    else:
        (tmp_path / "manifest.json").unlink()
    if damage != "manifest":
        with pytest.raises(UserError, match="shard-00001"):
            StoredEmbeddings(tmp_path)
    again = Hashed()
    store_embeddings(tmp_path, again, TEXTS, shard_rows=5)
    assert again.embedded == (0 if damage == "manifest" else 5)
    assert files(tmp_path) == before


def test_another_model_or_text_or_type_is_not_taken_for_it(tmp_path):
    store_embeddings(tmp_path, Hashed(), TEXTS, shard_rows=5)
    changed = [*TEXTS[:7], "another", *TEXTS[8:]]
    for embedder, texts, options, expected in (
        (Hashed("b"), TEXTS, {}, 23),
        (Hashed("b"), changed, {}, 5),
        (Hashed("b"), changed, {"dtype": "float16"}, 23),
        (Hashed("b"), changed, {"dtype": "float16", "kind": "query"}, 23),
        (Hashed("b"), changed[:8], {"dtype": "float16", "kind": "query"}, 3),
    ):
        store_embeddings(tmp_path, embedder, texts, shard_rows=5, **options)
        assert embedder.embedded == expected
    assert sorted(p.name for p in tmp_path.glob("*.npy")) == ["shard-00000.npy", "shard-00001.npy"]


def test_float16_halves_the_files_and_scores_what_is_stored(tmp_path):
    stored = store_embeddings(tmp_path, Hashed(), TEXTS, shard_rows=10, dtype="float16")
    vectors = np.concatenate([np.asarray(s) for s in stored.shards()])
    assert vectors.dtype == np.float16
    index = ExactIndex()
    index.add(vectors.astype(np.float32))
    queries = Hashed().embed(["text 3", "other"], "query").numpy()
    for found, expected in zip(stored.search(queries, 7), index.search(queries, 7), strict=True):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype in (np.float32, np.int64)


def test_retrieval_keeps_a_folder_per_model_and_corpus(tmp_path):
    corpus = {f"d{i}": t for i, t in enumerate(TEXTS)}
    first, second, other = Hashed(), Hashed(), Hashed("b")
    run = retrieve(first, {"q": "text 3"}, corpus, 5, cache_dir=tmp_path)
    assert retrieve(second, {"q": "text 3"}, corpus, 5, cache_dir=tmp_path) == run == retrieve(Hashed(), {"q": "text 3"}, corpus, 5)
    assert second.embedded == 1  # the query
    retrieve(other, {"q": "text 3"}, corpus, 5, cache_dir=tmp_path)
    assert other.embedded == 24
    assert len(list(tmp_path.iterdir())) == 2
    assert all(json.loads((folder / "manifest.json").read_text())["rows"] == 23 for folder in tmp_path.iterdir())


def test_an_encoder_is_known_by_its_weights_prefixes_and_precision():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel

    from lightning_e5.text import Prefixes, TextTokenizer

    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8))
    encoder = TextEncoder(model, TextTokenizer(backend, max_length=8))
    found = {model_fingerprint(encoder)}
    assert model_fingerprint(TextEncoder(model, TextTokenizer(backend, max_length=8))) in found
    found.add(model_fingerprint(TextEncoder(model, TextTokenizer(backend, max_length=8), precision="bf16")))
    found.add(model_fingerprint(TextEncoder(model, TextTokenizer(backend, Prefixes("", ""), max_length=8))))
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1e-3
    found.add(model_fingerprint(encoder))
    assert len(found) == 4
    assert model_fingerprint(object()) is None


def test_refuses_bad_use(tmp_path):
    with pytest.raises(UserError, match="float32 or float16, not int8"):
        store_embeddings(tmp_path, Hashed(), TEXTS, dtype="int8")
    with pytest.raises(UserError, match="needs texts"):
        store_embeddings(tmp_path, Hashed(), [])

    class Bare:
        def embed(self, texts, kind, *, normalize=True):
            return torch.full((len(texts), 2), float("nan"))

    with pytest.raises(UserError, match="no fingerprint"):
        store_embeddings(tmp_path, Bare(), TEXTS)
    with pytest.raises(UserError, match="NaN"):
        store_embeddings(tmp_path, Bare(), TEXTS, model="m")
    assert not list(tmp_path.glob("*.npy"))
