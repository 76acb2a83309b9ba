"""Texts and corpora in files are those that were written: as lists and mappings of them would be."""

from __future__ import annotations

import gc
import itertools
import pickle
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from lightning_e5.files.stored_corpus import RepeatedId, StoredCorpus, by_falling_id, ids_of, texts_of
from lightning_e5.files.stored_texts import StoredTexts, TextWriter

TEXTS = ["", "first", "grün", "", "lone \ud800 half", "line\nend\u2028", "𝄞", *(f"text {n} " * (n % 50) for n in range(2500)), ""]


def store_texts(path: Path, texts: Iterable[str]) -> StoredTexts:
    """Write texts, a thousand at a time."""
    left = iter(texts)
    with TextWriter(path) as writer:
        while block := list(itertools.islice(left, 1024)):
            writer.extend(block)
    return StoredTexts(path)


def test_a_file_of_texts_is_a_list_of_them(tmp_path: Path) -> None:
    stored = store_texts(tmp_path / "texts", TEXTS)
    assert len(stored) == len(TEXTS) and list(stored) == TEXTS and stored[4] == TEXTS[4] and stored[-1] == ""
    for part in (slice(0, 3), slice(5, 2100), slice(None, None, 7), slice(10, 10), slice(2400, 9999)):
        assert list(stored[part]) == TEXTS[part] and list(stored[100:][part]) == TEXTS[100:][part]
    rows = np.random.default_rng(0).permutation(len(TEXTS))
    assert list(stored.of(rows)) == [TEXTS[row] for row in rows] and stored.of(rows)[7:9][1] == TEXTS[rows[8]]
    assert list(stored.of(rows).of(np.array([3, 0]))) == [TEXTS[rows[3]], TEXTS[rows[0]]]
    near = np.array([4, 5, 7, 8, 9])  # read at once
    assert list(stored.of(near)) == [TEXTS[row] for row in near]
    again = pickle.loads(pickle.dumps(stored[3:9]))
    assert list(again) == TEXTS[3:9] and len(pickle.dumps(stored)) < 300
    assert list(stored.not_empty()) == [row for row, text in enumerate(TEXTS) if text]
    assert list(store_texts(tmp_path / "none", [])) == []
    assert store_texts(tmp_path / "full", ["a", "b"]).not_empty() == range(2) and list(store_texts(tmp_path / "first", ["", "b"]).not_empty()) == [1]
    with pytest.raises(IndexError):
        stored[len(TEXTS)]


def test_a_file_that_is_cut_off_is_noticed(tmp_path: Path) -> None:
    stored = store_texts(tmp_path / "texts", ["one", "two"])
    (tmp_path / "texts").write_bytes(b"onet")
    assert stored[0] == "one"
    with pytest.raises(OSError, match="ends 2 bytes early"):
        stored[1]


def test_memory_is_a_block(tmp_path: Path) -> None:
    store_texts(tmp_path / "warm", ["a"])
    tracemalloc.start()
    stored = store_texts(tmp_path / "texts", ("x" * 1000 for _ in range(40_000)))
    letters = sum(map(len, stored))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert letters == 40_000_000 and peak < 6_000_000


def test_a_stored_corpus_is_a_mapping() -> None:
    corpus = {f"id-{n * 7919 % 3001}": f"text {n}" for n in range(3000)} | {"ü": "", "z": "last"}
    stored = StoredCorpus(iter(corpus.items()))
    assert stored == corpus and len(stored) == len(corpus) and list(stored) == list(corpus)
    assert list(stored.values()) == list(corpus.values()) and list(stored.items()) == list(corpus.items())
    assert "id-3" in stored and "id-3002" not in stored and 3 not in stored and stored.get("nothing") is None
    with pytest.raises(KeyError):
        stored["nothing"]
    for either in (corpus, stored):
        ids, texts = by_falling_id(either)
        assert list(ids) == sorted(corpus, reverse=True) and list(texts) == [corpus[own] for own in sorted(corpus, reverse=True)]
        assert list(ids_of(either)) == list(corpus) and list(texts_of(either)) == list(corpus.values())
    assert {**corpus, "z": "other"} != stored


def test_a_repeated_id_is_named_with_its_row() -> None:
    with pytest.raises(RepeatedId, match=r"the id 'b' was there before") as caught:
        StoredCorpus([("a", "1"), ("b", "2"), ("c", "3"), ("b", "2"), ("a", "4")])
    assert caught.value.row == 3


def test_files_last_as_long_as_what_reads_them() -> None:
    texts = StoredCorpus([("a", "one"), ("b", "two")]).texts
    gc.collect()
    assert list(texts[1:]) == ["two"], "the corpus is gone, its texts are read still"
    folder, last = texts.path.parent, texts.of(np.array([0]))
    del texts
    gc.collect()
    assert last[0] == "one" and folder.is_dir()
    del last
    gc.collect()
    assert not folder.exists()
    assert isinstance(StoredCorpus([("a", "b")]).texts, StoredTexts)
