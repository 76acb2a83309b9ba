"""Test texts in training texts: every planted copy is found, what only looks alike is not, and how often that fails."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_e5.curation.cleaning.occurrences import _BLOCK, Rule, TextOccurrences
from lightning_e5.errors import UserError
from lightning_e5.text import normalise_text, words

WORDS = [f"{a}{b}" for a in ("ba", "co", "di", "fu", "ge", "ha", "ki", "lo", "mu", "ne") for b in ("r", "st", "m", "nd", "x", "lp", "t", "ck")]


def query(draw: random.Random, least: int = 4, most: int = 20) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(least, most)))


def passage(draw: random.Random, size: int = 80) -> str:
    return " ".join(draw.choices(WORDS, k=size))


PLANTS = {
    "exact": lambda text, draw: text,
    "case": lambda text, draw: text.upper(),
    "space": lambda text, draw: "  " + text.replace(" ", "\n\t") + " ",
    "compatibility forms": lambda text, draw: "".join(chr(ord(c) + 0xFEE0) if c.isascii() and c.isalpha() else c for c in text),
    "punctuation": lambda text, draw: text.replace(" ", ", ", 1) + "?!",
    "inside": lambda text, draw: f"{passage(draw, 30)}. {text.capitalize()}; {passage(draw, 30)}",
    "at the start": lambda text, draw: f"{text}: {passage(draw, 10)}",
    "at the end": lambda text, draw: f"{passage(draw, 10)} ({text})",
}


@pytest.mark.parametrize("kind", PLANTS)
def test_every_planted_query_is_found_and_no_other(kind: str) -> None:
    """400 queries of 4 to 20 words, 200 of them planted among 4,000 passages of the same 80 words."""
    draw = random.Random(5)
    queries = list(dict.fromkeys(query(draw) for _ in range(400)))
    training = [passage(draw) for _ in range(4000)]
    before = TextOccurrences(queries).find(training) != 0
    for number in range(0, len(queries), 2):
        training.insert(draw.randrange(len(training)), PLANTS[kind](queries[number], draw))
    found = TextOccurrences(queries).find(training)
    planted = np.arange(len(queries)) % 2 == 0
    assert (found[planted] != 0).all()
    false_hits = int((found[~planted] != 0).sum())
    assert false_hits == int(before[~planted].sum()) <= 1, f"{false_hits} of {(~planted).sum()} queries were found that were not planted"


def test_look_alikes_are_not_found() -> None:
    """One word exchanged, left out, added or moved in every query; parts of queries; runs that two texts share."""
    draw = random.Random(6)
    queries = [query(draw, 5, 12) for _ in range(300)]
    changed = []
    for text in queries:
        split = text.split()
        at = draw.randrange(1, len(split) - 1)
        changed += [
            " ".join([*split[:at], "other", *split[at + 1 :]]), " ".join(split[:at] + split[at + 1 :]),
            " ".join([*split[:at], "other", *split[at:]]), " ".join([*split[1:], split[0]]), " ".join(split[:-1]), " ".join(split[1:]),
        ]  # fmt: skip
    found = TextOccurrences(queries).find(changed)
    assert int((found != 0).sum()) == 0
    # the first half at the end of one training text, the second at the start of the next
    halves = [part for text in queries for part in (" ".join(text.split()[:3]), " ".join(text.split()[3:]))]
    assert not TextOccurrences(queries).find(halves).any()


def test_the_rules_of_an_occurrence() -> None:
    short, middle, long = "ab cd", "ab cd ef gh ij", " ".join(f"w{i}" for i in range(20))
    texts = [short, middle, long, "?!", middle]
    search = TextOccurrences(texts)
    assert search.short.tolist() == [True, False, False, True, False]

    def rules(training: str) -> list[Rule]:
        return [Rule(int(value)) for value in search.find([training])]

    none = Rule(0)
    assert rules("AB  cd") == [Rule.EXACT | Rule.PUNCTUATION, none, none, none, none]
    assert rules("ab, cd.") == [Rule.PUNCTUATION, none, none, none, none]
    assert rules("x ab cd") == [none] * 5  # too short to mean anything inside a longer text
    assert rules("x ab cd ef gh ij") == [none, Rule.INSIDE, none, none, Rule.INSIDE]
    assert rules(long) == [none, none, Rule.EXACT | Rule.NGRAM, none, none]
    assert rules("x " + " ".join(long.split()[3:16])) == [none, none, Rule.NGRAM, none, none]
    assert rules(" ".join(long.split()[3:15])) == [none] * 5  # 12 words of it
    assert rules("?!") == [none, none, none, Rule.EXACT, none]
    assert not search.find([]).any() and not search.find(["", " ", "?"]).any()
    assert TextOccurrences([]).find(["x"]).shape == (0,)
    with pytest.raises(UserError, match="min_words=14 must be between 1 and n=13"):
        TextOccurrences([], min_words=14)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 5))
def test_agrees_with_a_search_by_words(seed: int, n: int) -> None:
    """By brute force, with so few words that runs are often shared."""
    draw = random.Random(seed)

    def text(most: int) -> str:
        return draw.choice(["", ".", "A "]) + " ".join(draw.choices("abc", k=draw.randrange(most)))

    texts, training = [text(8) for _ in range(5)], [text(10) for _ in range(6)]
    expected = [Rule(0)] * len(texts)
    for number, one in enumerate(texts):
        run = words(one)
        length = min(n, len(run))
        grams = {tuple(run[i : i + length]) for i in range(len(run) - length + 1)} if run else set()
        for other in training:
            own = words(other)
            if normalise_text(one) == normalise_text(other):
                expected[number] |= Rule.EXACT
            if not run or (length < 2 and len(own) != length):
                continue
            for i in range(len(own) - length + 1):
                if tuple(own[i : i + length]) in grams:
                    expected[number] |= Rule.NGRAM if len(run) > n else Rule.PUNCTUATION if len(own) == length else Rule.INSIDE
    assert [Rule(int(v)) for v in TextOccurrences(texts, n=n, min_words=2).find(training)] == expected


def test_blocks_change_nothing() -> None:
    draw = random.Random(7)
    queries = [query(draw) for _ in range(50)]
    training = [passage(draw, 20) for _ in range(3 * _BLOCK)]
    for number, place in enumerate((0, _BLOCK - 1, _BLOCK, 2 * _BLOCK, 3 * _BLOCK - 1)):
        training[place] = queries[number]
    found = TextOccurrences(queries).find(iter(training))
    assert np.flatnonzero(found).tolist() == [0, 1, 2, 3, 4]
    parts = [TextOccurrences(queries).find(training[i : i + 100]) for i in range(0, len(training), 100)]
    assert (np.bitwise_or.reduce(parts) == found).all()
