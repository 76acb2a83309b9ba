"""Pairs drawn block by block: the same as from a list of all, exactly as many as asked for, and each as likely."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_modules import pair_rows
from lightning_e5.errors import UserError
from lightning_e5.files.parquet import read_parquet, write_parquet
from lightning_e5.rng import generator
from lightning_e5.stages import draw_pairs as stages

ROWS = 500


@pytest.fixture
def pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(stages, "BLOCK_ROWS", 64)
    monkeypatch.setattr(pair_rows, "BLOCK_ROWS", 64)
    write_parquet(tmp_path / "pairs" / "pairs.parquet", {"query": ["q"] * ROWS, "passage": ["p"] * ROWS})
    return tmp_path / "pairs"


@pytest.fixture
def keep(tmp_path: Path) -> Path:
    write_parquet(tmp_path / "ranks.parquet", {"rank": np.arange(ROWS), "keep": np.random.default_rng(0).random(ROWS) < 0.6})
    return tmp_path / "ranks.parquet"


def drawn(out: Path) -> np.ndarray:
    return read_parquet(out / "keep.parquet", {"keep": "bool"})["keep"].to_numpy()


@pytest.mark.parametrize("filtered", [False, True])
def test_a_draw_is_the_shuffle_of_a_list(tmp_path: Path, pairs: Path, keep: Path, filtered: bool) -> None:
    able = np.flatnonzero(read_parquet(keep, {"keep": "bool"})["keep"].to_numpy()) if filtered else np.arange(ROWS)
    metrics = stages.draw_pairs(tmp_path / "out", pairs=pairs, keep=keep if filtered else None, count=120, seed=5)
    expected = np.zeros(ROWS, bool)
    expected[generator(5, "draw").choice(able, size=120, replace=False)] = True
    assert np.array_equal(drawn(tmp_path / "out"), expected) and metrics == {"of": len(able), "pairs": 120}
    stages.draw_pairs(tmp_path / "other", pairs=pairs, keep=keep if filtered else None, count=120, seed=6)
    assert not np.array_equal(drawn(tmp_path / "other"), expected)  # negative control
    metrics = stages.draw_pairs(tmp_path / "all", pairs=pairs, keep=keep if filtered else None, seed=5)
    assert np.flatnonzero(drawn(tmp_path / "all")).tolist() == able.tolist() and metrics == {"of": len(able), "pairs": len(able)}


def test_of_many_pairs_a_computed_permutation_draws(tmp_path: Path, pairs: Path, keep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "SHUFFLED_ROWS", 10)
    able = read_parquet(keep, {"keep": "bool"})["keep"].to_numpy()
    times = np.zeros(ROWS, int)
    for seed in range(20):
        metrics = stages.draw_pairs(tmp_path / "out", pairs=pairs, keep=keep, count=100, seed=seed)
        found = drawn(tmp_path / "out")
        assert found.sum() == metrics["pairs"] == 100 and not (found & ~able).any()
        times += found
    # 100 of about 300 in 20 draws: 6.7 times each, with a standard deviation of 2.1.
    assert times[able].max() < 16 and (times[able] > 0).mean() > 0.99


def test_as_many_as_there_are(tmp_path: Path, pairs: Path, keep: Path) -> None:
    with pytest.raises(UserError, match="count: 501 is not between 1 and the 500 pairs"):
        stages.draw_pairs(tmp_path / "out", pairs=pairs, count=501, seed=0)
    write_parquet(tmp_path / "short.parquet", {"keep": [True] * 3})
    with pytest.raises(UserError, match=r"short\.parquet: has 3 rows where .* has 500 pairs"):
        stages.draw_pairs(tmp_path / "out", pairs=pairs, keep=tmp_path / "short.parquet", seed=0)
