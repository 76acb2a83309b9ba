"""Shares of the sources in the batches: exact, of kept pairs, the same for any number of ranks."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_modules.ccpairs.datamodule import HOLD_OUT, CCPairsDataModule
from data_modules.order import Permutation
from data_modules.token_cache import TokenCache, write_token_cache
from lightning_e5.errors import UserError
from lightning_e5.files.parquet import write_parquet
from lightning_e5.text import TextTokenizer

#: source -> rows, in row order.
SIZES = {"large": 64, "small": 4, "middle": 16}
ROWS = sum(SIZES.values())
SOURCE_OF = [name for name, size in SIZES.items() for _ in range(size)]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory, texts: list[str], small_tokenizer: TextTokenizer) -> Path:
    directory = tmp_path_factory.mktemp("tokens")
    columns = {"query": (texts[:ROWS], "query"), "passage": (texts[:ROWS], "passage")}
    write_token_cache(directory, columns, small_tokenizer, shard_rows=30, sources=SIZES)  # type: ignore[arg-type]
    return directory


def module(tokens: Path, **settings: Any) -> CCPairsDataModule:
    return CCPairsDataModule(**{"tokens": tokens, "batch_size": 8, "seed": 3, "max_steps": 1024, **settings})


def drawn(data: CCPairsDataModule, steps: int) -> list[list[int]]:
    return [data.order.rows(s).tolist() if data.kept is None else data.kept[data.order.rows(s)].tolist() for s in range(steps)]


def shares(rows: list[list[int]]) -> dict[str, int]:
    return dict(Counter(SOURCE_OF[row] for batch in rows for row in batch))


def test_the_cache_keeps_the_sources(tokens: Path) -> None:
    assert list(TokenCache(tokens).sources.items()) == list(SIZES.items())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"large": 64, "small": 4, "middle": 16}),
        ({"alpha": 0.5}, {"large": 8, "small": 2, "middle": 4}),
        ({"alpha": 0.0}, {"large": 1, "small": 1, "middle": 1}),
        ({"weights": {"large": 1, "small": 5, "middle": 2}}, {"large": 1, "small": 5, "middle": 2}),
        ({"weights": {"large": 3, "small": 1.0, "middle": 0}}, {"large": 3, "small": 1}),
    ],
)
def test_shares_are_exact(tokens: Path, settings: dict[str, Any], expected: dict[str, int]) -> None:
    steps = 84 if not settings else 128
    found = shares(drawn(module(tokens, **settings), steps))
    total = sum(found.values())
    for name, share in expected.items():
        assert abs(found[name] - total * share / sum(expected.values())) <= 2, found
    assert set(found) == set(expected)


def test_each_source_is_visited_evenly(tokens: Path) -> None:
    times = Counter(row for batch in drawn(module(tokens, alpha=0.0), 128) for row in batch)
    for name in SIZES:
        visits = [times[row] for row in range(ROWS) if SOURCE_OF[row] == name]
        assert max(visits) - min(visits) <= 1


def test_one_source_per_batch(tokens: Path) -> None:
    data = module(tokens, batch_size=4, one_source_per_batch=True, weights={"large": 2, "small": 1, "middle": 1})
    batches = drawn(data, 1024)
    found = Counter(SOURCE_OF[batch[0]] for batch in batches)
    assert all(len({SOURCE_OF[row] for row in batch}) == 1 for batch in batches)
    assert all(abs(found[name] - share) <= 1 for name, share in (("large", 512), ("small", 256), ("middle", 256)))


def test_sizes_are_those_of_the_kept_pairs(tokens: Path, tmp_path: Path) -> None:
    keep = np.arange(ROWS) % 4 == 0
    keep[64:68] = False  # nothing of "small"
    write_parquet(tmp_path / "ranks.parquet", {"keep": keep})
    data = module(tokens, keep=tmp_path / "ranks.parquet", alpha=0.5)
    assert data.sources == {"large": 16, "middle": 4} and data.pairs == 20
    rows = drawn(data, 128)
    assert all(keep[row] for batch in rows for row in batch)
    found = shares(rows)
    assert abs(found["large"] - 2 * found["middle"]) <= 3 and sum(found.values()) == 1024
    with pytest.raises(UserError, match=r"'small' has the weight 1 but no pair was kept of it"):
        module(tokens, keep=tmp_path / "ranks.parquet", weights={"large": 1, "small": 1, "middle": 1})


@pytest.mark.parametrize("settings", [{"alpha": 0.5}, {"weights": {"large": 1, "small": 1, "middle": 0}}])
def test_the_ranks_parts_make_the_global_batch(tokens: Path, settings: dict[str, Any]) -> None:
    for world_size in (2, 4):
        for step in (0, 7, 900):
            whole = module(tokens, **settings).batch(step, 0, 1)
            parts = [module(tokens, **settings).batch(step, rank, world_size) for rank in range(world_size)]
            assert torch.equal(torch.cat([p.rows_B for p in parts]), whole.rows_B)
            assert torch.equal(torch.cat([p.queries.ids_T for p in parts]), whole.queries.ids_T)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": {"larg": 1}}, "weights: 'larg' is no source of .*; did you mean 'large'"),
        ({"weights": {"large": 1, "small": 1}}, "says nothing of the source 'middle'"),
        ({"weights": {"large": -1, "small": 1, "middle": 1}}, "'large' has -1; the rule is a finite number >= 0"),
        ({"weights": dict.fromkeys(SIZES, 0)}, "leave no source"),
        ({"alpha": -0.5}, "alpha: -0.5"),
        ({"alpha": 0.5, "one_source_per_batch": True}, "has 4 pairs, fewer than batch_size = 8; leave it out by weights"),
    ],
)
def test_mistakes_are_named(tokens: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        module(tokens, **settings)


def test_tokens_without_sources(tmp_path: Path, texts: list[str], small_tokenizer: TextTokenizer) -> None:
    columns: dict[str, Any] = {"query": (texts[:10], "query"), "passage": (texts[:10], "passage")}
    write_token_cache(tmp_path, columns, small_tokenizer)
    assert module(tmp_path).pairs == 10
    with pytest.raises(UserError, match="does not know the sources of its pairs"):
        module(tmp_path, alpha=0.5)
    with pytest.raises(UserError, match="the sources have 9 rows, the texts 10"):
        write_token_cache(tmp_path, columns, small_tokenizer, sources={"a": 9})


def rows_in_memory(data: CCPairsDataModule, keep: np.ndarray, chosen: list[str], texts: list[str]) -> np.ndarray:
    """The rows that the order's numbers stand for, as one array: kept ones, source after source, without those with a held-out text."""
    starts = dict(zip(SIZES, np.cumsum([0, *SIZES.values()])[:-1].tolist(), strict=True))
    rows = np.concatenate([[row for row in range(starts[name], starts[name] + SIZES[name]) if keep[row]] for name in chosen]).astype(np.int64)
    held_out = rows[Permutation(len(rows), HOLD_OUT)(np.arange(len(data.held_out)))]
    assert np.array_equal(held_out, data.held_out)
    taken = {texts[row] for row in held_out}
    return np.array([row for row in rows if texts[row] not in taken])


@pytest.mark.parametrize(
    ("settings", "chosen"),
    [
        ({}, list(SIZES)),
        ({"alpha": 0.5}, list(SIZES)),
        ({"weights": {"large": 3, "small": 0, "middle": 1}, "one_source_per_batch": True}, ["large", "middle"]),
        ({"weights": {"large": 0, "small": 0, "middle": 1}}, ["middle"]),
    ],
)
@pytest.mark.parametrize("hold_out", [0, 3])
@pytest.mark.parametrize("filtered", [False, True])
def test_batches_are_those_of_an_array_of_the_kept_rows(
    tmp_path: Path, tokens: Path, texts: list[str], settings: dict[str, Any], chosen: list[str], hold_out: int, filtered: bool
) -> None:
    keep = np.random.default_rng(1).random(ROWS) < 0.7 if filtered else np.ones(ROWS, bool)
    write_parquet(tmp_path / "ranks.parquet", {"keep": keep})
    given = {"keep": tmp_path / "ranks.parquet"} if filtered else {}
    data = module(tokens, batch_size=4, hold_out=hold_out, **given, **settings)
    rows = rows_in_memory(data, keep, chosen, texts)
    assert data.pairs == len(rows)
    found = drawn(data, 30)
    assert found == [rows[data.order.rows(step)].tolist() for step in range(30)]
    assert found != [rows[::-1][data.order.rows(step)].tolist() for step in range(30)]  # negative control
    copied = pickle.loads(pickle.dumps(data.kept))
    assert copied is None or np.array_equal(copied[np.arange(len(rows))], rows)
