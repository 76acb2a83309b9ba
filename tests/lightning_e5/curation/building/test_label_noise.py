"""What injected label noise promises: the share, the source, never a true passage, the same passages."""

from __future__ import annotations

from collections import Counter

import pytest

from lightning_e5.curation.building.label_noise import inject_label_noise
from lightning_e5.errors import UserError
from lightning_e5.text import normalise_text
from lightning_e5.types import TextPair


def pool() -> list[TextPair]:
    pairs = [TextPair(f"query {i % 150}", f"passage {i % 170}", "large") for i in range(200)]
    pairs += [TextPair(f"other {i}", f"text {i}", "small") for i in range(33)]
    return [*pairs, TextPair("lonely", "alone", "single")]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_share_source_and_mismatch(share: float) -> None:
    pairs = pool()
    result = inject_label_noise(pairs, share, seed=3)
    assert sum(result.planted) == min(round(share * len(pairs)), len(pairs) - 1)
    true: dict[str, set[str]] = {}
    for pair in pairs:
        true.setdefault(pair.query, set()).add(pair.passage)
    for old, new, planted in zip(pairs, result.pairs, result.planted, strict=True):
        assert (old.query, old.source) == (new.query, new.source)
        if planted:
            assert new.passage not in true[old.query]
            assert any(p.source == old.source and p.passage == new.passage for p in pairs)
        else:
            assert new == old
    assert Counter(p.passage for p in pairs) == Counter(p.passage for p in result.pairs)


def test_deterministic_by_seed() -> None:
    assert inject_label_noise(pool(), 0.3, 1) == inject_label_noise(pool(), 0.3, 1)
    assert inject_label_noise(pool(), 0.3, 1) != inject_label_noise(pool(), 0.3, 2)


def test_copies_that_differ_in_case_are_no_mismatch() -> None:
    pairs = [TextPair(f"q{i}", "Same Text" if i % 2 else "same  text", "a") for i in range(10)]
    result = inject_label_noise(pairs, 0.5, 0)
    assert result.pairs == pairs and not any(result.planted)
    result = inject_label_noise([*pairs, TextPair("q", "different", "a")], 1.0, 0)
    for old, new, planted in zip([*pairs, TextPair("q", "different", "a")], result.pairs, result.planted, strict=True):
        assert planted == (normalise_text(old.passage) != normalise_text(new.passage))
    assert sum(result.planted) == 2


def test_share_out_of_range() -> None:
    with pytest.raises(UserError, match=r"planted_mismatches=1\.5"):
        inject_label_noise([], 1.5, 0)
