"""Many paired tests at once are the tests one by one."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_e5.errors import UserError
from lightning_e5.evaluation.statistics import paired_rows
from lightning_e5.evaluation.statistics.paired_rows import paired_differences
from lightning_e5.evaluation.statistics.significance import paired_difference


def test_many_at_once_equal_one_by_one(monkeypatch):
    draw = np.random.default_rng(0)
    pairs = [(draw.random(size) + lift, draw.random(size)) for size in (9, 40, 40, 300, 9) for lift in (0.0, 0.05, 0.4)]
    pairs.append((pairs[0][0], pairs[0][0]))
    alone = [paired_difference(a, b) for a, b in pairs]
    assert len({d.verdict for d in alone}) > 1
    for draws in (1 << 20, 1000):
        monkeypatch.setattr(paired_rows, "_DRAWS", draws)
        for together, one in zip(paired_differences(pairs), alone, strict=True):
            assert (together.mean, together.p_value, together.verdict) == (one.mean, one.p_value, one.verdict)
            assert (together.low, together.high) == pytest.approx((one.low, one.high), abs=1e-12)
    assert paired_differences([]) == []


def test_errors():
    with pytest.raises(UserError, match="same queries"):
        paired_differences([([1.0, 2.0], [1.0])])
    with pytest.raises(UserError, match="at least one value"):
        paired_differences([([], [])])
    with pytest.raises(UserError, match="finite"):
        paired_differences([([float("inf")], [1.0])])
