"""Exact removal of evaluation texts."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_e5.curation.cleaning.decontaminate import Contamination
from lightning_e5.errors import UserError
from lightning_e5.text import normalise_text


def test_drops_by_either_text_on_either_side() -> None:
    pairs = [("What is  a Graph?", "p1"), ("q2", "A graph is a set."), ("q3", "what is a graph?"), ("what is a graph", "p4")]
    found = Contamination.of(["what is a graph?", "A GRAPH\nis a set."])
    assert [found.drops(*pair) for pair in pairs] == ["query", "passage", "passage", None]


def test_without_evaluation_texts_all_are_kept() -> None:
    assert {Contamination.of([]).drops(f"q{i}", f"p{i}") for i in range(5)} == {None}


def test_drops_names_the_side() -> None:
    found = Contamination.of(["one text", "another text", "One  text"])
    assert len(found) == 2
    assert found.drops("ONE TEXT", "another text") == "query"
    assert found.drops("else", "another\ttext") == "passage"
    assert found.drops("another text", "else") == "query"
    assert found.drops("one text.", "else") is None
    assert Contamination.of([]).drops("", "") is None


@settings(deadline=None)
@given(st.lists(st.text(max_size=6), max_size=30), st.lists(st.text(max_size=6), max_size=30))
def test_membership_is_that_of_the_normalised_texts(evaluation: list[str], training: list[str]) -> None:
    found = Contamination.of(evaluation)
    names = {normalise_text(text) for text in evaluation}
    assert [text in found for text in training] == [normalise_text(text) in names for text in training]
    assert all(text in found for text in evaluation)


def test_workers_share_a_file(tmp_path: Path) -> None:
    found = Contamination.of(f"text {i}" for i in range(1000))
    found.save(tmp_path / "ids.npy")
    loaded = Contamination.load(tmp_path / "ids.npy")
    assert isinstance(loaded.ids, np.memmap)
    for other in (loaded, pickle.loads(pickle.dumps(found))):
        assert other.fingerprint() == found.fingerprint() and len(other) == 1000
        assert other.drops("q", "Text 999") == "passage" and other.drops("q", "text 1000") is None
    assert Contamination.of(["other"]).fingerprint() != found.fingerprint()
    assert Contamination.of(reversed([f"text {i}" for i in range(1000)])).fingerprint() == found.fingerprint()


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ids.npy"
    with pytest.raises(UserError, match="no such file"):
        Contamination.load(path)
    path.write_bytes(b"no array")
    with pytest.raises(UserError, match="not a file of evaluation text ids"):
        Contamination.load(path)
    np.save(path, np.zeros(3))
    with pytest.raises(UserError, match=r"needs int64 \[N\]"):
        Contamination.load(path)
