"""Passages are whole paragraphs where they fit, never longer than asked, and lose no word."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_modules.ccpairs.sources.pair_text import PassageRule, one_line, some_of
from lightning_e5.errors import UserError


def test_passages_end_at_paragraphs() -> None:
    text = "one two three\n\nfour  five\nsix seven eight nine ten eleven twelve\nthirteen"
    assert PassageRule(words=5, most=9).cut(text) == [
        "one two three\nfour five",
        "six seven eight nine ten",
        "eleven twelve\nthirteen",
    ]
    assert PassageRule(words=5).cut(text) == ["one two three\nfour five"]
    assert PassageRule(words=None, chars=13, most=2).cut(text) == ["one two three", "four five"]
    assert PassageRule().cut(" \n\t\n") == []


@given(st.text(alphabet="ab \n", max_size=200), st.integers(1, 12), st.booleans())
def test_no_word_is_lost_and_no_passage_too_long(text: str, size: int, words: bool) -> None:
    passages = PassageRule(size if words else None, None if words else size, most=1000).cut(text)
    assert "".join("".join(passages).split()) == "".join(text.split())
    assert all(passage and (len(passage.split()) if words else len(passage)) <= size for passage in passages)
    assert PassageRule(size if words else None, None if words else size, most=1).cut(text) == passages[:1]


def test_scripts_without_spaces_are_cut() -> None:
    passages = PassageRule(words=10, most=100).cut("字" * 10_000)
    assert {len(p) for p in passages} == {320, 10_000 % 320} and "".join(passages) == "字" * 10_000
    assert [len(p) for p in PassageRule(words=None, chars=4_000, most=3).cut("字" * 10_000)] == [4000, 4000, 2000]


@pytest.mark.parametrize("rule", [(None, None, 1), (5, 5, 1), (0, None, 1), (None, 0, 1), (5, None, 0)])
def test_bad_rules(rule: tuple[int | None, int | None, int]) -> None:
    with pytest.raises(UserError, match="passage"):
        PassageRule(*rule)


def test_some_of() -> None:
    assert some_of("kinds", ["b", "a", "b"], ("a", "b")) == ("a", "b")
    with pytest.raises(UserError, match="kinds: 'titel' is none of its values; did you mean 'title'"):
        some_of("kinds", ["titel"], ("title", "highlight"))
    with pytest.raises(UserError, match="kinds: is empty"):
        some_of("kinds", [], ("a",))


def test_every_character_is_white_space_or_none_as_split_says() -> None:
    changed = set()
    for character in map(chr, range(sys.maxunicode + 1)):
        text = f"a{character}b"
        assert one_line(text) == " ".join(text.split()), repr(character)
        if one_line(text) != text:
            changed.add(character)
    # Of these a reader that looked for spaces and line breaks alone would leave all but one.
    assert len(changed) > 20 and {"\n", "\t", "\x85", "\xa0", "\u2028", "\u3000"} <= changed and " " not in changed


@given(st.text(alphabet="ab \n\t\xa0\u200b\ud800", max_size=12))
def test_one_line_is_what_split_and_join_give(text: str) -> None:
    assert one_line(text) == " ".join(text.split())
