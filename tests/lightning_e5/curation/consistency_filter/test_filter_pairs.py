"""The filter for lists: ranks counted by loops, and a sentence for what cannot be filtered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lightning_e5.curation.consistency_filter import filter_pairs as module
from lightning_e5.curation.consistency_filter import rank_counting
from lightning_e5.curation.consistency_filter.filter_pairs import filter_pairs
from lightning_e5.curation.consistency_filter.pool import pool_rows
from lightning_e5.errors import UserError
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.retrieval.exact import exact_scores
from lightning_e5.text import text_id
from lightning_e5.types import TextPair


@pytest.fixture
def encoder(small_bert: Any, small_tokenizer: Any) -> TextEncoder:
    return TextEncoder(small_bert, small_tokenizer).eval()


@pytest.fixture
def pairs(texts: list[str]) -> list[tuple[str, str]]:
    return [(" ".join(texts[i].split()[:5]), texts[i] if i % 3 else texts[i + 1]) for i in range(40)]


def ranks_by_loops(encoder: TextEncoder, pairs: list[tuple[str, str]], pool: list[str]) -> list[int]:
    queries = encoder.embed([q for q, _ in pairs], "query").numpy()
    passages, drawn = encoder.embed([p for _, p in pairs], "passage").numpy(), encoder.embed(pool, "passage").numpy()
    ranks = []
    for i, (_, passage) in enumerate(pairs):
        own = exact_scores(queries[i][None], passages[i][None], np.array([0]), np.array([0]))[0]
        others = exact_scores(queries[i][None], drawn, np.zeros(len(pool), np.int64), np.arange(len(pool)))
        ranks.append(1 + sum(score >= own for score, text in zip(others, pool, strict=True) if text_id(text) != text_id(passage)))
    return ranks


def test_the_ranks_are_those_of_loops(encoder: TextEncoder, pairs: list[tuple[str, str]], texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [pairs[row][1] for row in pool_rows(len(pairs), 15, 7)]
    found = filter_pairs(encoder, pairs, pool=15, keep_top=4, seed=7)
    assert found.rank_N.tolist() == ranks_by_loops(encoder, pairs, drawn) and len(set(drawn)) <= 15
    assert found.keep_N.tolist() == [rank <= 4 for rank in found.rank_N] and 0 < len(found.kept) < 40
    assert [(pair.query, pair.passage) for pair in found.kept] == [pair for pair, kept in zip(pairs, found.keep_N, strict=True) if kept]
    given = filter_pairs(encoder, [TextPair(*pair, "s") for pair in pairs], pool=texts[50:90])
    assert given.rank_N.tolist() == ranks_by_loops(encoder, pairs, texts[50:90]) and {pair.source for pair in given.kept} <= {"s"}
    monkeypatch.setattr(rank_counting, "fastest_format", lambda *args: "bf16")  # else it is measured, which takes seconds
    cut = filter_pairs(encoder, pairs, pool=texts[50:90], exact_up_to=3)
    assert cut.rank_N.tolist() == np.minimum(given.rank_N, 4).tolist()
    monkeypatch.setattr(module, "ROWS_PER_PART", 11)
    assert filter_pairs(encoder, pairs, pool=texts[50:90]).rank_N.tolist() == given.rank_N.tolist()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"pairs": []}, "pairs: there is none"),
        ({"pairs": ["ab"]}, "pairs: number 0 is 'ab'; the rule"),
        ({"pool": 0}, "keep_top = 2 and pool = 0 must be >= 1"),
        ({"keep_top": 0}, "keep_top = 0"),
        ({"exact_up_to": 1}, "exact_up_to = 1 must be >= keep_top = 2"),
        ({"pool": []}, "the pool has no passage"),
        ({"pool": "text"}, "'text' is one text"),
    ],
)
def test_what_cannot_be_filtered(encoder: TextEncoder, pairs: list[tuple[str, str]], changed: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        filter_pairs(encoder, **{"pairs": pairs, **changed})
