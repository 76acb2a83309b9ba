"""One reader for the small table and for shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_modules import pair_rows, pair_store
from data_modules.pair_rows import keep_masks, kept_rows, row_sources, source_codes, take_rows
from data_modules.pair_store import PairShard, PairStore, shard_name
from lightning_e5.errors import UserError
from lightning_e5.files.parquet import write_parquet
from lightning_e5.files.storage import write_json


def columns(source: str, first: int, rows: int) -> dict[str, list[str]]:
    numbers = range(first, first + rows)
    return {
        "query": [f"q{i}" for i in numbers],
        "passage": [f"p{i}" for i in numbers],
        "source": [source] * rows,
        "passage_kind": ["passage"] * rows,
        "id": [str(i) for i in numbers],
    }


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    sources, first = [], 0
    for name, sizes in (("b", [3, 2]), ("a/x", [4]), ("none", [])):
        shards = []
        for number, rows in enumerate(sizes):
            file = shard_name(name, number)
            write_parquet(tmp_path / file, columns(name, first, rows))
            shards.append({"file": file, "rows": rows})
            first += rows
        sources.append({"name": name, "shards": shards})
    write_json(tmp_path / "pairs.json", {"sources": sources})
    return tmp_path


def test_shards_are_one_table_in_the_lists_order(sharded: Path) -> None:
    store = PairStore(sharded)
    assert (store.rows, store.sources) == (9, {"b": 5, "a/x": 4})
    assert store.read(["query", "source"]).to_pydict() == {
        "query": [f"q{i}" for i in range(9)],
        "source": ["b"] * 5 + ["a/x"] * 4,
    }
    assert store.shards()[1] == PairShard(sharded / "shards/b/part-00001.parquet", 3, 2)
    assert [t["id"].to_pylist() for t in store.iter_batches(["id"], 2)] == [["0", "1"], ["2"], ["3", "4"], ["5", "6"], ["7", "8"]]
    assert "planted" not in store.columns


def test_the_one_table(tmp_path: Path) -> None:
    one, other = columns("one", 0, 3), columns("other", 3, 2)
    write_parquet(tmp_path / "pairs.parquet", {k: one[k] + other[k] for k in one})
    store = PairStore(tmp_path)
    assert (store.rows, store.sources) == (5, {"one": 3, "other": 2})
    assert store.read(["passage"])["passage"].to_pylist() == ["p0", "p1", "p2", "p3", "p4"]
    write_parquet(tmp_path / "pairs.parquet", {k: one[k] + other[k] + one[k] for k in one})
    assert PairStore(tmp_path).sources == {}
    write_parquet(tmp_path / "pairs.parquet", {"query": ["q"], "passage": ["p"]})
    assert PairStore(tmp_path).sources == {}


def test_names_of_sources_are_safe_path_components() -> None:
    names = ["a/b", "a%2fb", "..", ".", "%2e", "ä", "A b", "plain-1.0_x"]
    parts = [shard_name(name, 0).split("/")[1] for name in names]
    assert len(set(parts)) == len(names) and parts[-1] == "plain-1.0_x"
    assert not {".", ".."} & set(parts)


def test_mistakes_are_named(sharded: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(UserError, match=r"neither pairs\.parquet nor pairs\.json"):
        PairStore(tmp_path_factory.mktemp("empty"))
    with pytest.raises(UserError, match="no column 'querry'; did you mean 'query'"):
        PairStore(sharded).read(["querry"])
    with pytest.raises(UserError, match=r"part-00000\.parquet: lacks the column 'planted'"):
        PairStore(sharded).read(["planted"])
    write_parquet(sharded / "shards/b/part-00001.parquet", columns("b", 0, 7))
    with pytest.raises(UserError, match=r"part-00001\.parquet: has 7 rows where pairs\.json says 2"):
        PairStore(sharded)
    (sharded / "shards/b/part-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"part-00001\.parquet: no such file"):
        PairStore(sharded)
    (sharded / "pairs.json").write_text('{"sources": 3}')
    with pytest.raises(UserError, match=r"pairs\.json: not a list of pairs' shards"):
        PairStore(sharded)
    (sharded / "pairs.json").unlink()
    with pytest.raises(UserError, match="unfinished"):
        PairStore(sharded)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_rows, "BLOCK_ROWS", 2)
    monkeypatch.setattr(pair_store, "BLOCK_ROWS", 2)


@pytest.mark.parametrize("rows", [[], [0], [8], [0, 1, 2], [1, 4, 5, 8], [2, 3], list(range(9))])
def test_rows_taken_block_by_block_are_those_of_the_whole(sharded: Path, small_blocks: None, rows: list[int]) -> None:
    store = PairStore(sharded)
    whole = store.read(["query", "id"])
    found = take_rows(store, np.array(rows, np.int64), ["query", "id"])
    assert found.to_pydict() == whole.take(np.array(rows, np.int64)).to_pydict()


@pytest.mark.parametrize("mixed", [False, True])
def test_sources_of_rows_are_those_of_a_table_of_all(tmp_path: Path, small_blocks: None, mixed: bool) -> None:
    names = ["b", "b", "a", "b", "c", "a", "a"] if mixed else ["b", "b", "b", "a", "a", "c", "c"]
    write_parquet(tmp_path / "pairs.parquet", columns("x", 0, 7) | {"source": names})
    store = PairStore(tmp_path)
    expected, code_N = source_codes(store)
    found = row_sources(store, tmp_path / "codes")
    assert (found.codes is not None) == mixed and list(found.names) == expected
    assert found.of(np.arange(7)).tolist() == code_N.tolist() == [expected.index(name) for name in names]
    assert found.of(np.array([6, 2])).tolist() == code_N[[6, 2]].tolist()
    assert [first for first, _ in found.blocks(7)] == [0, 2, 4, 6]
    write_parquet(tmp_path / "pairs.parquet", {"query": ["q"], "passage": ["p"]})
    assert row_sources(PairStore(tmp_path), tmp_path).of(np.arange(1)).tolist() == [0]


def test_a_filters_decisions_block_by_block(tmp_path: Path, small_blocks: None) -> None:
    keep = np.array([True, False, False, True, True])
    write_parquet(tmp_path / "ranks.parquet", {"keep": keep})
    assert [mask.tolist() for mask in keep_masks(tmp_path / "ranks.parquet", 5, tmp_path)] == [[True, False], [False, True], [True]]
    assert kept_rows(tmp_path / "ranks.parquet", 5, tmp_path).tolist() == [0, 3, 4]
    with pytest.raises(UserError, match=r"ranks\.parquet: has 5 rows where .* has 6 pairs"):
        kept_rows(tmp_path / "ranks.parquet", 6, tmp_path)
