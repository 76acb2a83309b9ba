"""Dropout from 16 random bits a value: its rate, its mean, its draws' independence, its gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lightning_e5.models.packed.dropout import dropped

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def _zeros(rate: float, count: int, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return dropped(torch.ones(count), rate) == 0


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_as_many_are_dropped_as_the_rate_says(rate: float) -> None:
    count = 1_000_003  # a multiple of no power of 2
    found = int(_zeros(rate, count).sum())
    assert abs(found - rate * count) < 5 * (rate * (1 - rate) * count) ** 0.5 + 2**-16 * count


def test_a_value_s_draw_says_nothing_of_its_neighbours() -> None:
    """The four values of one drawn number, and those of the next, fall together as often as independent ones do; so do the four patterns of places."""
    zeros = _zeros(0.3, 2**20)
    both = 0.3 * 0.3
    for distance in (1, 2, 3, 4, 5, 8, 256):
        found = int((zeros[:-distance] & zeros[distance:]).sum())
        count = len(zeros) - distance
        assert abs(found - both * count) < 6 * (both * (1 - both) * count) ** 0.5, distance
    for place in range(4):  # within a number: no place is drawn more often
        found = int(zeros[place::4].sum())
        assert abs(found - 0.3 * 2**18) < 5 * (0.3 * 0.7 * 2**18) ** 0.5, place
    assert not torch.equal(zeros, _zeros(0.3, 2**20, seed=1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_mean_stays_and_values_are_scaled_alike(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    found = dropped(torch.full((512, 511), 3.0, dtype=dtype), 0.1)
    assert found.dtype == dtype and len(found.unique()) == 2
    assert abs(float(found.double().mean()) - 3.0) < 0.01
    kept = round(0.9 * 2**16) / 2**16
    scale = torch.tensor(1 / kept, dtype=dtype)
    assert torch.equal(found.max(), 3 * scale)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_is_what_the_value_was_multiplied_by(dtype: torch.dtype) -> None:
    values = torch.randn(33, 7, dtype=dtype).T.requires_grad_()  # not contiguous
    torch.manual_seed(3)
    found = dropped(values, 0.4)
    torch.manual_seed(3)
    scale = dropped(torch.ones_like(values), 0.4)
    assert torch.equal(found, values * scale) and bool((scale == 0).any())
    (gradient,) = torch.autograd.grad(found, values, torch.ones_like(found))
    assert torch.equal(gradient, scale)


def test_a_seed_decides_whether_or_not_a_gradient_is_asked_for() -> None:
    """A gradient cache encodes first without a graph and then with one."""
    values = torch.randn(50, 31, requires_grad=True)
    torch.manual_seed(5)
    with torch.no_grad():
        first, after = dropped(values, 0.1), torch.rand(1)
    torch.manual_seed(5)
    again = dropped(values, 0.1)
    assert torch.equal(first, again.detach()) and torch.equal(torch.rand(1), after)
    torch.manual_seed(6)
    assert not torch.equal(first, dropped(values, 0.1).detach())


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 0, 2), (3,), (5, 1)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    assert dropped(torch.ones(shape), 0.5).shape == shape


def test_rates_that_need_no_draw_and_those_that_are_none() -> None:
    values = torch.randn(100)
    assert torch.equal(dropped(values, 0.0), values)
    assert torch.equal(dropped(values, 1.0), torch.zeros(100))
    for wrong in (-0.1, 1.5):
        with pytest.raises(ValueError, match="between 0 and 1"):
            dropped(values, wrong)


def test_elsewhere_it_is_torch_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(functional, "dropout", lambda values, rate, training: asked.append((values.device.type, rate, training)) or values)
    dropped(torch.empty(4, device="meta"), 0.1)
    assert asked == [("meta", 0.1, True)]
