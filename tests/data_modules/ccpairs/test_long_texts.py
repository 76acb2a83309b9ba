"""Texts of one word, of one run of spaces, of marks alone: the time grows with the length, in rules and in signals."""

from __future__ import annotations

import time
import unicodedata

import pytest

from data_modules.ccpairs.formats.markup import html_text, reddit_text
from data_modules.ccpairs.heuristics import Length, NotDeleted
from data_modules.ccpairs.sources.pair_text import PassageRule
from data_modules.ccpairs.sources.signals.signal import sentences
from data_modules.ccpairs.text_heuristics import Boilerplate, CharacterShares, QueryIsPassage
from lightning_e5.types import PairCandidate

_SIZE = 200_000
TEXTS = {
    "one word": "x" * _SIZE, "spaces": " " * _SIZE + "a", "lines": "\n" * _SIZE + "a", "stops": ". " * (_SIZE // 2), "brackets": "[" * _SIZE, "removed": "[removed " * (_SIZE // 9),
    "quotes": ">" * _SIZE, "bold": "**a" * (_SIZE // 3), "backslashes": "\\" * _SIZE, "references": "&a" * (_SIZE // 2), "tags": "<p>" * 3000 + "x" * _SIZE, "closing": ".)" * (_SIZE // 2),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_the_time_grows_with_the_length(name: str) -> None:
    text = TEXTS[name]
    pair, began = PairCandidate("what is it", text, "s"), time.perf_counter()
    for rule in (Length(min_passage_words=3, max_passage_words=9), NotDeleted(), QueryIsPassage(), Boilerplate(), CharacterShares()):
        rule(pair)
    for function in (reddit_text, html_text, sentences, PassageRule(200).cut, PassageRule(None, 1000, 10).cut):
        function(text)
    assert time.perf_counter() - began < 15  # 0.3 s alone; with the square of the length it is minutes


def test_shares_of_kinds_of_characters_are_those_of_each_character() -> None:
    for text in ("Abc, DEF! 123 " * 9, "((((" * 30, "12 34 5a" * 9, "ÄÖÜ é ß ١٢" * 12, " " * 99):
        kinds = [unicodedata.category(c) for c in "".join(text.split())]
        upper, lower = kinds.count("Lu"), kinds.count("Ll")
        for limit in (0.0, 0.1, 0.3, 0.6, 1.0):
            rule = CharacterShares(max_punctuation=limit, max_digits=limit, max_upper=limit)
            expected = len(kinds) < 40 or (
                sum(k[0] in "PS" for k in kinds) <= limit * len(kinds) and kinds.count("Nd") <= limit * len(kinds) and upper <= limit * (upper + lower)
            )
            assert rule(PairCandidate("q", text, "s")) == expected


def test_every_white_space_is_folded_to_one_space_and_nothing_else_is() -> None:
    spaces = [c for c in map(chr, range(0x110000)) if c.isspace()]
    assert len(spaces) > 20 and "\u200b" not in spaces  # the zero-width space is no white space
    for space in spaces:
        assert html_text(f"<p>{space}a{space}{space}b <b>c</b>{space}<i>{space}d</i>{space}</p>") == "a b c d"
        assert html_text(f"<p>a</p>{space}<p>b\u200bc</p>") == "a\nb\u200bc"
        if len(f"a{space}b".splitlines()) == 1:
            assert reddit_text(f"{space}a {space}b{space}\n{space}c") == "a b\nc"
