"""Ranks are those of exact scoring on every pair, whichever number format, block and limit is used."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from lightning_e5.curation.consistency_filter import bounded_scores, leading_scores, rank_counting
from lightning_e5.curation.consistency_filter.bounded_scores import Tile, exact_scores
from lightning_e5.curation.consistency_filter.leading_scores import LeadingScores
from lightning_e5.curation.consistency_filter.rank_counting import RankPool
from lightning_e5.curation.consistency_filter.score_format import fastest_format
from lightning_e5.errors import UserError

FORMATS = ("int8", "bf16", "fp32", "leading")


@pytest.fixture(autouse=True, scope="module")
def short_tiles() -> Iterator[list[int]]:
    """Pools of these tests are several blocks for leading components, too, which otherwise leave the first ones to float32; gives their tiles' rows."""
    seen: list[int] = []
    before = LeadingScores.tile

    def tile(self: LeadingScores, rows: Any, block: int) -> Tile:
        seen.append(len(rows.values_RD))
        return before(self, rows, block)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(leading_scores, "_ROWS", 64)
        patched.setattr(leading_scores, "_FIRST_ROWS", 8)
        patched.setattr(LeadingScores, "starts_at", 0)
        patched.setattr(LeadingScores, "tile", tile)
        yield seen


def test_leading_components_screen_here(short_tiles: list[int]) -> None:
    queries, passages, pool = e5_like(1, 90, 300, 32, 0.5)
    short_tiles.clear()
    consistency_ranks(queries, passages, pool, torch.arange(90), torch.arange(90, 390), score_format="leading", exact_up_to=2)
    assert sum(short_tiles) > 90


@pytest.mark.parametrize("score_format", FORMATS)
@pytest.mark.parametrize("case", ["tiny", "far from the origin", "long"])
def test_rows_of_another_length_have_their_ranks(score_format: Any, case: str) -> None:
    draw = torch.Generator().manual_seed(0)

    def rows(count: int) -> Tensor:
        return torch.randn(count, 32, generator=draw)

    queries, passages, pool = rows(64), rows(64), rows(1000)
    if case == "tiny":  # products of which are no normal float32 numbers
        queries, passages, pool = 1e-21 * queries, 1e-21 * passages, 1e-21 * pool
    elif case == "far from the origin":
        queries[:, :2] = torch.tensor([1.0, -1.0])
        passages, pool = 1e-10 * passages, 1e-10 * pool
        passages[:, :2], pool[:, :2] = 5e5, 5e5
    else:
        queries, passages, pool = 1e4 * queries, 1e5 * passages, 1e5 * pool
    pool[:64, :2], pool[:64, 2:] = passages[:, :2], passages[:, 2:] * (1 + 2e-7)
    ids = torch.arange(1064)
    expected = oracle(queries, passages, pool, ids[:64], ids[64:])
    assert torch.equal(consistency_ranks(queries, passages, pool, ids[:64], ids[64:], score_format=score_format), expected)
    assert len(set(expected.tolist())) > 10


def unit(rows: Tensor) -> Tensor:
    return functional.normalize(rows, dim=1)


def e5_like(seed: int, pairs: int, pool: int, width: int, common: float) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, passages and a pool whose cosines lie around ``common``; a third of the pairs are mismatched."""
    draw = torch.Generator().manual_seed(seed)
    axis = unit(torch.randn(1, width, generator=draw))

    def rows(own: Tensor) -> Tensor:
        return unit(common**0.5 * axis + (1 - common) ** 0.5 * unit(own))

    topics = torch.randn(pairs, width, generator=draw)
    mix = torch.rand(pairs, 1, generator=draw) * 2
    mix[::3] = 0
    queries = rows(topics * mix + torch.randn(pairs, width, generator=draw))
    return queries, rows(topics), rows(torch.randn(pool, width, generator=draw))


def consistency_ranks(queries: Tensor, passages: Tensor, pool: Tensor, text: Tensor, pool_text: Tensor, **options: Any) -> Tensor:
    return RankPool(pool, pool_text, **options).ranks(queries, passages, text)


def oracle(queries: Tensor, passages: Tensor, pool: Tensor, text: Tensor, pool_text: Tensor) -> Tensor:
    """The rule, pair by pair, one passage at a time."""
    ranks = []
    for row in range(len(queries)):
        own = exact_scores(queries[row : row + 1], passages[row : row + 1])
        scores = exact_scores(queries[row : row + 1].expand(len(pool), -1), pool)
        ranks.append(1 + int(((scores >= own) & (pool_text != text[row])).sum()))
    return torch.tensor(ranks)


@cache
def pairs_with_copies_and_ties(common: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Queries, passages, pool, text ids of both, and the ranks; some own passages are in the pool: with their text id (a copy, ruled out),
    and with another id (a tie)."""
    queries, passages, pool = e5_like(1, 150, 1500, 48, common)
    pool[:60] = passages[:60]
    text, pool_text = torch.arange(150), torch.arange(1000, 2500)
    pool_text[:30] = text[:30]
    return queries, passages, pool, text, pool_text, oracle(queries, passages, pool, text, pool_text)


@pytest.mark.parametrize("score_format", FORMATS)
@pytest.mark.parametrize("exact_up_to", [None, 1, 2, 50])
@pytest.mark.parametrize("common", [0.0, 0.78, 0.9999])
def test_every_rank_is_the_rule_s(score_format, exact_up_to, common, monkeypatch):
    monkeypatch.setitem(bounded_scores.POOL_ROWS, "cpu", 256)
    queries, passages, pool, text, pool_text, expected = pairs_with_copies_and_ties(common)
    assert len(expected.unique()) > 10 and (expected == 1).any()
    if exact_up_to is not None:
        expected = expected.clamp(max=exact_up_to + 1)
    for block in (1_024, 10_000, None):
        ranks = consistency_ranks(
            queries, passages, pool, text, pool_text, score_format=score_format, exact_up_to=exact_up_to, block_scores=block
        )
        assert torch.equal(ranks, expected), block


def test_the_rule_is_that_of_float64_where_scores_differ_by_more_than_a_rounding():
    queries, passages, pool = e5_like(2, 200, 2000, 64, 0.78)
    ids = torch.arange(2200)
    ranks = consistency_ranks(queries, passages, pool, ids[:200], ids[200:], score_format="int8")
    own = (queries.double() * passages.double()).sum(1)
    scores = queries.double() @ pool.double().T
    tolerance = 2.0**-23
    low = 1 + (scores > own[:, None] + tolerance).sum(1)
    high = 1 + (scores > own[:, None] - tolerance).sum(1)
    assert bool(((low <= ranks) & (ranks <= high)).all())
    in_float32 = 1 + ((queries @ pool.T) > (queries * passages).sum(1)[:, None]).sum(1)
    assert (ranks == in_float32).float().mean() > 0.95


@pytest.mark.parametrize("score_format", FORMATS)
def test_ties_count_against_a_pair_and_pool_copies_do_not(score_format):
    draw = torch.Generator().manual_seed(0)
    passage = unit(torch.randn(1, 33, generator=draw))
    queries, passages, pool = unit(torch.randn(20, 33, generator=draw)), passage.expand(20, -1), passage.expand(300, -1)
    ids = torch.arange(320)
    # a collapsed encoder: every pair is last, and none is kept; copies of the own text are not counted even so
    assert consistency_ranks(queries, passages, pool, ids[:20], ids[20:], score_format=score_format).tolist() == [301] * 20
    assert consistency_ranks(queries, passages, pool, ids[:20], ids[20:], score_format=score_format, exact_up_to=2).tolist() == [3] * 20
    assert consistency_ranks(queries, passages, pool, torch.zeros(20), torch.zeros(300), score_format=score_format).tolist() == [1] * 20
    # A pool passage that is the query itself is above everything, but not where it has the text of the own passage.
    query, pool = queries[:1], torch.cat([unit(-queries[:1]).expand(300, -1), queries[:1]])
    for own_text, rank in ((0, 2), (7, 1)):
        pool_text = torch.cat([ids[20:], torch.tensor([7])])
        for limit in (None, 1):
            given_text = torch.tensor([own_text])
            ranks = consistency_ranks(query, passages[:1], pool, given_text, pool_text, score_format=score_format, exact_up_to=limit)
            assert ranks.tolist() == [rank]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6), pairs=st.integers(1, 12), pool=st.integers(1, 70), width=st.integers(1, 20),
    levels=st.integers(1, 4), texts=st.integers(1, 8), score_format=st.sampled_from(FORMATS), exact_up_to=st.none() | st.integers(1, 20),
)  # fmt: skip
# In bfloat16 the product of a tie is rounded to the very number that the threshold below it is rounded to.
@example(seed=0, pairs=2, pool=7, width=2, levels=2, texts=1, score_format="bf16", exact_up_to=None)
def test_few_values_and_texts_make_many_ties(seed, pairs, pool, width, levels, texts, score_format, exact_up_to):
    draw = torch.Generator().manual_seed(seed)

    def rows(count: int) -> Tensor:
        return torch.randint(-levels, levels + 1, (count, width), generator=draw) / (levels * width**0.5)

    queries, passages, pool_PD = rows(pairs), rows(pairs), rows(pool)
    text, pool_text = torch.randint(texts, (pairs,), generator=draw), torch.randint(texts, (pool,), generator=draw)
    expected = oracle(queries, passages, pool_PD, text, pool_text)
    ranks = consistency_ranks(queries, passages, pool_PD, text, pool_text, score_format=score_format, exact_up_to=exact_up_to)
    assert torch.equal(ranks, expected if exact_up_to is None else expected.clamp(max=exact_up_to + 1))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), width=st.integers(1, 200), common=st.sampled_from([0.0, 0.8, 0.999999]), score_format=st.sampled_from(FORMATS))
def test_what_low_precision_decides_is_so(seed, width, common, score_format):
    queries, passages, pool = e5_like(seed, 9, 40, width, common)
    pool[:9] = passages + 1e-7
    own = exact_scores(queries, passages)
    for chosen in rank_counting.make_levels(score_format, pool, torch.device("cpu"))[0]:
        rows = chosen.rows(queries, own)
        for number, block in enumerate(chosen.blocks):
            tile = chosen.tile(rows, number)
            part = pool[chosen.order_P[block]]
            exact = torch.stack([exact_scores(q.expand(len(part), -1), part) - o for q, o in zip(queries, own, strict=True)])
            assert bool((exact[tile.scores_RC > tile.high_R[:, None]] > 0).all())
            assert bool((exact[tile.scores_RC <= tile.low_R[:, None]] < 0).all())


def test_exact_scores_do_not_depend_on_company():
    draw = torch.Generator().manual_seed(3)
    left, right = torch.randn(500, 77, generator=draw), torch.randn(500, 77, generator=draw)
    whole = exact_scores(left, right)
    assert torch.equal(whole, torch.cat([exact_scores(left[i : i + 1], right[i : i + 1]) for i in range(500)]))
    expected = np.array([float(np.float32(np.sum(a.astype(np.longdouble) * b))) for a, b in zip(left.numpy(), right.numpy(), strict=True)])
    assert np.abs(whole.numpy() - expected).max() <= np.spacing(np.float32(np.abs(expected).max()))


def test_a_row_that_is_out_leaves_the_product_and_still_gets_its_capped_rank(monkeypatch):
    monkeypatch.setitem(bounded_scores.POOL_ROWS, "cpu", 64)
    seen: list[int] = []
    counted = rank_counting.count_tile
    monkeypatch.setattr(rank_counting, "count_tile", lambda tile, *rest: seen.append(len(tile.scores_RC)) or counted(tile, *rest))
    queries, passages, pool = e5_like(4, 90, 640, 32, 0.0)
    ids = torch.arange(730)
    ranks = consistency_ranks(queries, passages, pool, ids[:90], ids[90:], score_format="int8", exact_up_to=2)
    assert seen[0] == 90 and seen[-1] < 70 and set(ranks.tolist()) <= {1, 2, 3}


def test_the_pool_may_be_a_mapped_file(tmp_path):
    queries, passages, pool = e5_like(5, 20, 100, 16, 0.5)
    np.save(tmp_path / "pool.npy", pool.numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "pool.npy", mmap_mode="c"))
    ids = torch.arange(120)
    for score_format in FORMATS:
        ranks = [RankPool(p, ids[20:], score_format=score_format).ranks(queries, passages, ids[:20]) for p in (pool, mapped)]
        assert torch.equal(*ranks)


def test_wrong_input():
    queries, passages, pool = e5_like(6, 4, 10, 8, 0.0)
    ids = torch.arange(14)
    with pytest.raises(UserError, match="exact_up_to = 0 must be >= 1"):
        RankPool(pool, ids[4:], exact_up_to=0)
    with pytest.raises(UserError, match=r"the pool's embeddings are up to .*e\+07 long; the rule is unit rows, and at most 1048576"):
        RankPool(1e7 * pool, ids[4:])
    with pytest.raises(UserError, match=r"the pairs' embeddings are up to .*e\+07 long; the rule is unit rows"):
        RankPool(pool, ids[4:]).ranks(queries, 1e7 * passages, ids[:4])
    broken = pool.clone()
    broken[3, 2] = torch.nan
    for score_format in FORMATS:
        with pytest.raises(UserError, match="pool's embeddings hold NaN"):
            RankPool(broken, ids[4:], score_format=score_format)
        queries[1, 1] = torch.inf
        with pytest.raises(UserError, match="pairs' embeddings hold NaN"):
            RankPool(pool, ids[4:], score_format=score_format).ranks(queries, passages, ids[:4])


def test_the_format_is_chosen_once_by_measuring():
    assert fastest_format(torch.device("cpu"), every_rank=True) == "fp32"
    assert fastest_format(torch.device("cpu"), every_rank=False) in FORMATS
    assert fastest_format(torch.device("cpu"), every_rank=False) == fastest_format(torch.device("cpu"), every_rank=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("score_format", ["bf16", "fp32"])
def test_a_gpu_finds_the_same_ranks(score_format):
    queries, passages, pool = e5_like(7, 500, 5000, 64, 0.78)
    ids = torch.arange(5500)
    expected = consistency_ranks(queries, passages, pool, ids[:500], ids[500:])
    for exact_up_to in (None, 2):
        ranks = consistency_ranks(queries, passages, pool, ids[:500], ids[500:], score_format=score_format, exact_up_to=exact_up_to, device="cuda")
        assert torch.equal(ranks, expected if exact_up_to is None else expected.clamp(max=exact_up_to + 1))
