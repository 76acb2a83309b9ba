"""Leading components bound every score, save products where they can, and never change a rank."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lightning_e5.curation.consistency_filter import leading_scores, rank_counting
from lightning_e5.curation.consistency_filter.bounded_scores import exact_scores
from lightning_e5.curation.consistency_filter.leading_scores import (
    LeadingPool,
    LeadingScores,
    principal_components,
)
from lightning_e5.curation.consistency_filter.rank_counting import RankPool

WIDTH, PAIRS, POOL = 96, 200, 5000


def unit(rows: Tensor) -> Tensor:
    return functional.normalize(rows, dim=1)


def decaying(decay: float, noise: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """Queries near their passages (every third one is another's) and a pool, whose variances fall as those of trained embeddings do."""
    draw = torch.Generator().manual_seed(0)
    scales = torch.arange(1, WIDTH + 1).float() ** -decay
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=draw)).Q

    def rows(own: Tensor) -> Tensor:
        return unit(own * scales @ turn + 0.3)

    topics = torch.randn(PAIRS, WIDTH, generator=draw)
    queries = topics + noise * torch.randn(PAIRS, WIDTH, generator=draw)
    queries[::3] = torch.randn(len(queries[::3]), WIDTH, generator=draw)
    return rows(queries), rows(topics), rows(torch.randn(POOL, WIDTH, generator=draw))


def ranks(rank_pool: RankPool, queries: Tensor, passages: Tensor) -> Tensor:
    return rank_pool.ranks(queries, passages, torch.arange(PAIRS))


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.5])
@pytest.mark.parametrize("counts", [[1], [12, 48], [5, 95, 96]])
def test_scores_lie_within_their_bounds(decay: float, counts: list[int]) -> None:
    queries, passages, pool_PD = decaying(decay)
    pool_PD[:20] = queries[:20]  # nothing is left of a row beside itself
    pool, own = LeadingPool(pool_PD, counts), exact_scores(queries, passages)
    exact = queries.double() @ pool_PD.double().T - own.double()[:, None]
    for level in range(len(counts)):
        scores = LeadingScores(pool, level)
        rows, last = scores.rows(queries, own), scores.columns - 1
        for number, block in enumerate(scores.blocks):
            upper = scores.tile(rows, number).scores_RC.double()
            rest = rows.values_RD[:, last, None].double() * pool.block(number)[0][:, last].double()
            assert bool((exact[:, block] < upper).all()) and bool((exact[:, block] >= upper - 2 * rest - 2e-5).all())


@pytest.mark.parametrize("offset", [0.0, 0.3, 100.0])
def test_components_are_orthonormal_and_hold_the_direction_of_the_mean(offset: float) -> None:
    pool = decaying(1.0)[2] + offset
    mean, basis = principal_components(pool, 40)
    assert torch.allclose(basis.T @ basis, torch.eye(40, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(basis @ (basis.T @ mean), mean, atol=1e-9) and torch.allclose(mean, pool.double().mean(0), atol=1e-9)
    centred = pool.double() - mean
    along = functional.normalize(mean, dim=0)[:, None]
    across = torch.linalg.svdvals(centred - centred @ along @ along.T)  # the most that 39 directions across the mean can hold
    assert float((centred @ basis[:, 1:]).square().sum()) == pytest.approx(float(across[:39].square().sum()), rel=1e-6)


@pytest.mark.parametrize(("decay", "noise"), [(0.0, 2.0), (0.5, 0.5), (1.0, 0.5)])
def test_ranks_are_those_of_whole_products(decay: float, noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_counting, "fastest_format", lambda device, every_rank: "fp32")
    queries, passages, pool = decaying(decay, noise)
    texts = torch.arange(PAIRS, PAIRS + POOL)
    chosen, plain = RankPool(pool, texts, exact_up_to=2), RankPool(pool, texts, exact_up_to=2, score_format="fp32")
    expected = ranks(plain, queries, passages)
    assert torch.equal(ranks(chosen, queries, passages), expected) and {1, 3} <= set(expected.tolist())
    assert [level.name for level in chosen.levels] == ["leading", "leading", "fp32"] and [level.name for level in plain.levels] == ["fp32"]
    every = RankPool(pool, texts, exact_up_to=None)
    assert torch.equal(ranks(every, queries, passages).clamp(max=3), expected) and [level.name for level in every.levels] == ["fp32"]


@pytest.mark.parametrize(("decay", "short"), [(1.0, True), (0.0, False)])
def test_products_are_short_where_components_tell(decay: float, short: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs that stay are compared with nearly all of the pool by components alone, or, where these do not tell, by the whole."""
    queries, passages, pool = decaying(decay, 0.5 if short else 2.0)
    compared = {"fp32": 0, "leading": 0}

    def counting(kind: type) -> None:
        before = kind.tile

        def tile(self, rows, block):  # type: ignore[no-untyped-def]
            found = before(self, rows, block)
            compared[self.name] += found.scores_RC.numel()
            return found

        monkeypatch.setattr(kind, "tile", tile)

    counting(rank_counting.FloatScores)
    counting(LeadingScores)
    monkeypatch.setattr(leading_scores, "_ROWS", 256)
    chosen = RankPool(pool, torch.arange(PAIRS, PAIRS + POOL), exact_up_to=2, score_format="leading")
    stay = int((ranks(chosen, queries, passages) <= 2).sum())
    first = PAIRS * (128 + 3 * 256)  # four blocks are float32's in any case
    assert stay > PAIRS / 3
    if short:
        assert compared["leading"] > 0.9 * stay * (POOL - 896) and compared["fp32"] < 0.3 * compared["leading"] + first
    else:
        assert compared["fp32"] > 0.7 * stay * (POOL - 896)


def test_bounds_without_the_rest_would_change_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the product of the components alone is no bound."""
    queries, passages, pool = decaying(0.0, 1.5)
    texts = torch.arange(PAIRS, PAIRS + POOL)
    expected = ranks(RankPool(pool, texts, exact_up_to=2, score_format="fp32"), queries, passages)
    laid_out = LeadingPool.laid_out

    def without(self: LeadingPool, rows: Tensor, first: float) -> Tensor:
        values = laid_out(self, rows, first)
        values[:, [1 + count + level for level, count in enumerate(self.counts)]] = 0.0
        return values

    monkeypatch.setattr(LeadingPool, "laid_out", without)
    monkeypatch.setattr(LeadingScores, "starts_at", 0)
    assert not torch.equal(ranks(RankPool(pool, texts, exact_up_to=2, score_format="leading"), queries, passages), expected)


def test_a_small_group_of_rows_goes_on_with_the_next_level(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[int] = set()
    before = LeadingScores.tile

    def tile(self, rows, block):  # type: ignore[no-untyped-def]
        seen.add(self.level)
        return before(self, rows, block)

    monkeypatch.setattr(LeadingScores, "tile", tile)
    queries, passages, pool = decaying(1.0)
    few, texts = slice(0, rank_counting._FEW_ROWS + 4), torch.arange(PAIRS, PAIRS + POOL)  # of which a third are out before the leading components

    def found() -> Tensor:
        return RankPool(pool, texts, exact_up_to=2, score_format="leading").ranks(queries[few], passages[few], torch.arange(few.stop))

    expected = found()
    assert seen == {1}
    monkeypatch.setattr(rank_counting, "_FEW_ROWS", 0)
    assert torch.equal(found(), expected) and seen == {0, 1}


def test_a_level_leaves_its_rows_to_the_others() -> None:
    queries, passages, pool_PD = decaying(0.5)
    pool = LeadingPool(pool_PD, [12, 48])
    rows = LeadingScores(pool, 0).rows(queries, exact_scores(queries, passages))
    first = LeadingScores(pool, 0).tile(rows, 0).scores_RC.clone()
    LeadingScores(pool, 1).tile(rows, 0)
    assert torch.equal(LeadingScores(pool, 0).tile(rows, 0).scores_RC, first)
