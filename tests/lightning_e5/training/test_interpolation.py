"""Mixed weights against the formula, entry by entry."""

from __future__ import annotations

import pytest
import torch

from lightning_e5.errors import UserError
from lightning_e5.training.interpolation import interpolated


def weights(seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(3, 2, generator=draw), "b": torch.randn(4, generator=draw)}


def test_the_formula_entry_by_entry() -> None:
    start, end = weights(1), weights(2)
    for keep in (0.25, 0.5, 0.9):
        mixed = interpolated(start, end, keep)
        for name, values in mixed.items():
            expected = [keep * s + (1 - keep) * e for s, e in zip(start[name].flatten().tolist(), end[name].flatten().tolist(), strict=True)]
            assert values.flatten().tolist() == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_the_ends_are_exact_and_equal_weights_stay() -> None:
    start, end = weights(1), weights(2)
    for keep, expected in ((0.0, end), (1.0, start)):
        assert all(torch.equal(values, expected[name]) for name, values in interpolated(start, end, keep).items())
    assert all(torch.equal(values, start[name]) for name, values in interpolated(start, start, 0.3).items())


@pytest.mark.parametrize("other", [{"a": torch.zeros(3, 2)}, {"a": torch.zeros(2, 3), "b": torch.zeros(4)}])
def test_models_of_other_shapes_are_refused(other: dict[str, torch.Tensor]) -> None:
    with pytest.raises(UserError, match="keep_general: the two encoders have other parameters"):
        interpolated(weights(1), other, 0.5)
