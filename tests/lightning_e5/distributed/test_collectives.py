"""Gathering with gradient returns this rank's part of the sum, and leaves the gradient that it was handed as it is."""

from __future__ import annotations

import pytest
import torch

from lightning_e5.distributed import collectives as distributed


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 1 of 2, whose other rank has the same tensors."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "gather", lambda tensor: torch.cat([tensor, tensor]))
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda tensor: tensor.mul_(2))


@pytest.mark.usefixtures("second_of_two")
@pytest.mark.parametrize("strided", [False, True])
def test_the_gradient_that_was_handed_over_stays(strided: bool) -> None:
    rows = torch.randn(3, 2, requires_grad=True)
    gathered = distributed.gather_with_grad(rows)
    handed = torch.arange(12.0).view(2, 6).t() if strided else torch.arange(12.0).view(6, 2)
    before = handed.clone()
    (gradient,) = torch.autograd.grad(gathered, rows, handed)
    assert torch.equal(handed, before)
    assert torch.equal(gradient, 2 * before[3:])


@pytest.mark.usefixtures("second_of_two")
def test_one_gradient_used_twice_counts_once_each() -> None:
    """What a change in place does: the sum hands one gradient to both of its terms."""
    rows = torch.randn(3, 2, requires_grad=True)
    (distributed.gather_with_grad(rows) + distributed.gather_with_grad(rows)).sum().backward()
    assert torch.equal(rows.grad, torch.full((3, 2), 4.0))  # type: ignore[arg-type]
