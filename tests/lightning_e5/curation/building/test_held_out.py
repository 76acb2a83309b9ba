"""Held-out sides share no document and no text, near copies are found exactly, and the sizes are what was asked for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from data_modules.own.own_pair import OwnPair
from lightning_e5.curation.building.held_out import NEAR, NearTexts, components, half_width, split_pairs
from lightning_e5.text import text_id, words


def pair(query: str, passage: str, document: str = "", source: str = "pairs") -> OwnPair:
    return OwnPair(query, passage, source, f"{query}/{passage}", document)


def test_components_against_a_walk() -> None:
    """Linked by a document, a query, a passage, or a text that is a query here and a passage there; found by joining sets one by one."""
    generator = np.random.default_rng(0)
    pairs = [pair(f"t{generator.integers(60)}", f"T{generator.integers(60)}", f"d{generator.integers(40)}" if generator.random() < 0.5 else "") for _ in range(60)]
    for documents in (True, False):
        groups: list[tuple[set[object], set[int]]] = []
        for row, p in enumerate(pairs):
            keys: set[object] = {text_id(p.query), text_id(p.passage)} | ({p.document} if documents and p.document else set())
            touching = [group for group in groups if group[0] & keys]
            groups = [group for group in groups if group not in touching]
            groups.append((keys.union(*(g[0] for g in touching)), {row}.union(*(g[1] for g in touching))))
        found = components(pairs, documents=documents)
        assert {frozenset(np.flatnonzero(found == c).tolist()) for c in set(found.tolist())} == {frozenset(group[1]) for group in groups}
    assert len(set(components([pair("a", "b"), pair("B ", "c")], documents=False).tolist())) == 1


@pytest.mark.parametrize("seed", [0, 1])
def test_no_document_and_no_text_is_on_two_sides(seed: int) -> None:
    pairs = [pair(f"query {n}", f"passage {n // 2 * 2 if n % 10 == 0 else n}", f"d{n // 5}") for n in range(500)]
    split = split_pairs(pairs, np.ones(500, bool), test_queries=60, validation_queries=30, test_share=0.2, validation_share=0.1, seed=seed)
    sides = [split.train, split.validation, split.test]
    assert sorted(np.concatenate(sides).tolist()) == list(range(500)) and split.by == "document"
    for a, b in itertools.combinations(sides, 2):
        for key in ("document", "query", "passage"):
            assert {getattr(pairs[row], key) for row in a} & {getattr(pairs[row], key) for row in b} == set()
    assert 60 <= len(split.test) <= 70 and 30 <= len(split.validation) <= 40
    again = split_pairs(pairs, np.ones(500, bool), test_queries=60, validation_queries=30, test_share=0.2, validation_share=0.1, seed=seed)
    assert again.test.tolist() == split.test.tolist()


def test_a_single_document_is_split_by_its_texts() -> None:
    pairs = [pair(f"query {n}", f"passage {n}", "book") for n in range(100)]
    split = split_pairs(pairs, np.ones(100, bool), test_queries=400, validation_queries=300, test_share=0.2, validation_share=0.1, seed=0)
    assert split.by == "text" and (len(split.test), len(split.validation), len(split.train)) == (20, 10, 70)


def test_only_what_may_ask_counts() -> None:
    pairs = [pair(f"query {n}", f"passage {n}") for n in range(100)]
    asks = np.arange(100) < 50
    split = split_pairs(pairs, asks, test_queries=400, validation_queries=0, test_share=0.2, validation_share=0.0, seed=0)
    assert len(split.test) == 10 and (split.test < 50).all() and not len(split.validation)


def test_near_texts_against_sets() -> None:
    generator = np.random.default_rng(0)
    known = [" ".join(generator.choice(["a", "b", "c", "d"], size=size)) for size in generator.integers(1, 40, size=30)]
    near = NearTexts(known)

    def grams(text: str) -> set[tuple[str, ...]]:
        own = words(text)
        return {tuple(own[i : i + min(3, len(own))]) for i in range(len(own) - min(3, len(own)) + 1)}

    seen = set()
    for text in known + [t + " e" for t in known] + [t[2:] for t in known] + [" ".join(generator.choice(["a", "b"], size=12)) for _ in range(30)]:
        own = grams(text)
        wanted = bool(own) and any(len(own & grams(k)) / len(own | grams(k)) >= NEAR for k in known)
        assert near.holds(text) == wanted
        seen.add(wanted)
    assert seen == {True, False}
    assert NearTexts(["How to sort a list?"]).holds("how to  sort a LIST") and not NearTexts([]).holds("a") and not near.holds("...")


def test_the_interval_that_a_test_gives() -> None:
    assert half_width(400) == pytest.approx(0.0294, abs=1e-4) and half_width(100) == pytest.approx(2 * half_width(400))
