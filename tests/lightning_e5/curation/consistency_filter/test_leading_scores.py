"""Leading components bound every score, are taken where they pay, and never change a rank."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lightning_e5.curation.consistency_filter import leading_scores, rank_counting
from lightning_e5.curation.consistency_filter.bounded_scores import exact_scores
from lightning_e5.curation.consistency_filter.leading_scores import (
    LeadingScores,
    principal_components,
    worthwhile_components,
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
@pytest.mark.parametrize("count", [1, 12, 48, 95, 96])
def test_scores_lie_within_their_bounds(decay: float, count: int) -> None:
    queries, passages, pool = decaying(decay)
    pool[:20] = queries[:20]  # nothing is left of a row beside itself
    scores = LeadingScores(pool, principal_components(pool, count))
    rows = scores.rows(queries, exact_scores(queries, passages))
    exact = queries.double() @ (pool.double() - scores.components.mean_D).T
    for number, block in enumerate(scores.blocks):
        upper = scores.tile(rows, number).scores_RC.double()
        rest = rows.residual_R[:, None] * scores.values[number][:, -1].double()
        assert bool((exact[:, block] <= upper + 1e-6).all()) and bool((exact[:, block] >= upper - 2 * rest - 1e-6).all())


@pytest.mark.parametrize(("decay", "noise", "taken"), [(0.0, 2.0, False), (1.0, 0.5, True)])
def test_components_are_taken_where_they_pay_and_ranks_are_the_same(decay: float, noise: float, taken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_counting, "fastest_format", lambda device, every_rank: "fp32")
    queries, passages, pool = decaying(decay, noise)
    texts = torch.arange(PAIRS, PAIRS + POOL)
    chosen, plain = RankPool(pool, texts, exact_up_to=2), RankPool(pool, texts, exact_up_to=2, score_format="fp32")
    expected = ranks(plain, queries, passages)
    assert torch.equal(ranks(chosen, queries, passages), expected) and {1, 3} <= set(expected.tolist())
    assert (chosen.scores.name == "leading") is taken and plain.scores.name == "fp32"
    every = RankPool(pool, texts, exact_up_to=None)
    assert torch.equal(ranks(every, queries, passages).clamp(max=3), expected) and every.scores.name == "fp32"


def test_most_products_are_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the components are for: pairs that stay are compared with nearly all of the pool by them alone."""
    queries, passages, pool = decaying(1.0)
    compared = {"fp32": 0, "leading": 0}

    def counting(kind: type, name: str) -> None:
        before = kind.tile

        def tile(self, rows, block):  # type: ignore[no-untyped-def]
            found = before(self, rows, block)
            compared[self.name] += found.scores_RC.numel()
            return found

        monkeypatch.setattr(kind, "tile", tile)

    counting(rank_counting.FloatScores, "fp32")
    counting(LeadingScores, "leading")
    chosen = RankPool(pool, torch.arange(PAIRS, PAIRS + POOL), exact_up_to=2, score_format="leading")
    found = ranks(chosen, queries, passages)
    stay = int((found <= 2).sum())
    assert compared["leading"] > 0.9 * stay * (POOL - 1920)  # the first four blocks are float32's
    assert compared["fp32"] < 0.5 * compared["leading"] + PAIRS * 1920


def test_bounds_without_the_rest_would_change_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the product of the components alone is no bound."""
    queries, passages, pool = decaying(0.5)
    texts = torch.arange(PAIRS, PAIRS + POOL)
    expected = ranks(RankPool(pool, texts, exact_up_to=2, score_format="fp32"), queries, passages)
    with_rest = leading_scores._with_rest
    monkeypatch.setattr(leading_scores, "_with_rest", lambda inside, rest: with_rest(inside, torch.zeros_like(rest)))
    monkeypatch.setattr(LeadingScores, "starts_at", 0)
    assert not torch.equal(ranks(RankPool(pool, texts, exact_up_to=2, score_format="leading"), queries, passages), expected)


def test_no_components_where_no_pair_stays() -> None:
    queries, _, pool = decaying(1.0)
    assert worthwhile_components(pool, queries, torch.full((PAIRS,), -1.0), 2, 0.02) is None
