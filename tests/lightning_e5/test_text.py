"""The normal form of a text: every kind of white space is one blank, and none at the ends."""

from __future__ import annotations

import re
import sys
import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_e5.text import normalise_text

_BLANKS = [chr(code) for code in range(sys.maxunicode + 1) if chr(code).isspace()]


def by_expression(text: str) -> str:
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).strip().casefold()


@settings(deadline=None)
@given(st.text(alphabet=st.one_of(st.sampled_from(_BLANKS), st.characters())))
def test_white_space_is_what_the_regular_expression_takes_for_it(text: str) -> None:
    assert normalise_text(text) == by_expression(text)


def test_every_white_space() -> None:
    assert len(_BLANKS) > 20
    for blank in _BLANKS:
        assert normalise_text(f"{blank}A{blank} {blank}ﬁ\u200bb{blank}") == by_expression(f"{blank}A {blank}ﬁ\u200bb") == "a fi\u200bb"
