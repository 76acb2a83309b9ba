"""The queue is first in, first out, part of the state, and refuses what does not fit."""

from __future__ import annotations

import pytest
import torch

from lightning_e5.training.momentum import momentum_copy, momentum_update
from lightning_e5.training.negative_queue import NegativeQueue


def test_first_in_first_out() -> None:
    queue, kept = NegativeQueue(5, 2), []
    assert queue.filled == 0 and len(queue.entries()[0]) == 0
    for step in range(6):
        rows = torch.full((2, 2), float(step))
        positions = queue.push(rows, torch.tensor([10 * step, 10 * step + 1]))
        kept = [*kept, 10 * step, 10 * step + 1][-5:]
        embeddings, texts = queue.entries()
        assert sorted(texts.tolist()) == kept
        assert torch.equal(embeddings[positions], rows)
        assert all(float(e[0]) == int(t) // 10 for e, t in zip(embeddings, texts, strict=True))


def test_the_state_restores_it() -> None:
    queue, other = NegativeQueue(4, 3), NegativeQueue(4, 3)
    queue.push(torch.randn(3, 3), torch.tensor([1, 2, 3]))
    other.load_state_dict(queue.state_dict())
    assert other.filled == 3
    rows = torch.randn(2, 3)
    assert torch.equal(queue.push(rows, torch.tensor([4, 5])), other.push(rows, torch.tensor([4, 5])))
    assert torch.equal(queue.entries()[0], other.entries()[0])


def test_more_than_it_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="queue_size: 2 is below the 3 passages"):
        NegativeQueue(2, 1).push(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="queue_size: 0"):
        NegativeQueue(0, 1)


def test_momentum_update() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Dropout(0.5))
    average = momentum_copy(module)
    assert not any(p.requires_grad for p in average.parameters()) and not average[1].training
    before = [p.clone() for p in average.parameters()]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    momentum_update(average, module, 0.75)
    for old, new in zip(before, average.parameters(), strict=True):
        assert torch.allclose(new, old + 0.25)
    momentum_update(average, module, 0.0)
    assert all(torch.equal(a, p) for a, p in zip(average.parameters(), module.parameters(), strict=True))
