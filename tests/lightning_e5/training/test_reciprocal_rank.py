"""Reciprocal ranks against a slow oracle over texts, ties and duplicates among them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from lightning_e5.training.reciprocal_rank import reciprocal_ranks


def oracle(queries: torch.Tensor, passages: torch.Tensor, query_text: list[int], passage_text: list[int], k: int) -> list[float]:
    group, found = len(passage_text) // len(query_text), []
    by_text = {text: passages[i] for i, text in reversed(list(enumerate(passage_text)))}
    for row, query in enumerate(queries):
        positives = {passage_text[other * group] for other, text in enumerate(query_text) if text == query_text[row]}
        own = float(query @ by_text[passage_text[row * group]])
        rank = 1 + sum(float(query @ vector) >= own for text, vector in by_text.items() if text not in positives)
        found.append(1 / rank if rank <= k else 0.0)
    return found


@pytest.mark.parametrize(("group", "k", "block"), [(1, 10, 2**24), (3, 2, 7)])
def test_equal_to_the_oracle(group: int, k: int, block: int) -> None:
    draw = torch.Generator().manual_seed(3)
    queries = functional.normalize(torch.randn(40, 4, generator=draw), dim=1)
    vectors = functional.normalize(torch.randn(30, 4, generator=draw), dim=1)
    passage_text = torch.randint(0, 30, (40 * group,), generator=draw)
    query_text = torch.randint(0, 25, (40,), generator=draw)
    passages = vectors[passage_text]
    found = reciprocal_ranks(queries, passages, query_text, passage_text, k=k, block_scores=block)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(oracle(queries, passages, query_text.tolist(), passage_text.tolist(), k))
    assert 0 < found.mean() < 1


def test_a_collapsed_encoder_has_no_hits_and_a_perfect_one_all() -> None:
    texts = torch.arange(20)
    assert reciprocal_ranks(torch.ones(20, 4) / 2, torch.ones(20, 4) / 2, texts, texts, k=10).tolist() == [0.0] * 20
    assert reciprocal_ranks(torch.eye(20), torch.eye(20), texts, texts).tolist() == [1.0] * 20
