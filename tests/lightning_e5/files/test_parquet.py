"""Parquet files: what is none, is damaged or has other columns is named; variants of one type are the same to a reader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightning_e5.errors import UserError
from lightning_e5.files import parquet


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" * 30, b"word\n" * 100])
def test_what_is_no_parquet_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.parquet: not a readable Parquet file") as raised:
        parquet.read_parquet(tmp_path / "a.parquet", {"query": "string"})
    assert "\n" not in str(raised.value)


def test_a_damaged_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_parquet(path, {"query": [f"text number {i * 7919}" for i in range(5000)]})
    data = path.read_bytes()
    for cut in (len(data) // 2, len(data) - 1, len(data) - 9, 8):
        path.write_bytes(data[:cut])
        with pytest.raises(UserError, match=r"a\.parquet: not a readable Parquet file"):
            parquet.read_parquet(path, {"query": "string"})
    path.write_bytes(data[:200] + bytes(300) + data[500:])
    with pytest.raises(UserError, match=r"a\.parquet: not a readable Parquet file"):
        parquet.read_parquet(path, {"query": "string"})


def test_parquet_of_another_shape_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_parquet(path, {"query": ["a"], "rank": [1]})
    for columns, message in (
        ({"passage": "string"}, r"a\.parquet: lacks the column 'passage' \(has: query, rank\)"),
        ({"query": "string", "rank": "string"}, "column 'rank' holds int64, not string"),
        ({"rank": "double"}, "column 'rank' holds int64, not double"),
    ):
        with pytest.raises(UserError, match=message):
            parquet.read_parquet(path, columns)
    with pytest.raises(UserError, match=r"absent\.parquet: no such file"):
        parquet.read_parquet([path, tmp_path / "absent.parquet"], {"query": "string"})


def test_parquet_variants_are_the_same_to_a_reader(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"q": pa.array(["a", "ü"], pa.large_string()), "n": pa.array([["x"], ["y", "z"]], pa.list_(pa.string()))}
    pq.write_table(pa.table(arrays), tmp_path / "a.parquet")
    parquet.write_parquet(tmp_path / "b.parquet", {"q": ["b"], "n": [["w"]]})
    table = parquet.read_parquet([tmp_path / "a.parquet", tmp_path / "b.parquet"], {"q": "string", "n": "list<string>"})
    assert table.to_pydict() == {"q": ["a", "ü", "b"], "n": [["x"], ["y", "z"], ["w"]]}
    assert pq.ParquetFile(tmp_path / "b.parquet").metadata.row_group(0).column(0).compression == "ZSTD"


def test_written_block_by_block_it_has_the_same_bytes(tmp_path: Path) -> None:
    """Across the end of a row group; the negative control is a value more."""
    rows = parquet.ROW_GROUP + 1000
    columns = {"rank": np.arange(rows) % 97, "keep": np.arange(rows) % 3 == 0}
    parquet.write_parquet(tmp_path / "whole.parquet", columns)
    for block in (333_333, rows):
        with parquet.parquet_writer(tmp_path / "blocks.parquet") as write:
            for first in range(0, rows, block):
                write({name: values[first : first + block] for name, values in columns.items()})
        assert (tmp_path / "blocks.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    with parquet.parquet_writer(tmp_path / "blocks.parquet") as write:
        write({name: values[:-1] for name, values in columns.items()})
    assert (tmp_path / "blocks.parquet").read_bytes() != (tmp_path / "whole.parquet").read_bytes()
    with pytest.raises(RuntimeError), parquet.parquet_writer(tmp_path / "broken.parquet") as write:
        write({"rank": [1]})
        raise RuntimeError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blocks.parquet", "whole.parquet"]


def test_read_block_by_block_it_is_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"query": [f"text {row}" for row in range(1000)], "keep": [row % 3 == 0 for row in range(1000)], "other": [1] * 1000})
    types = {"keep": "bool", "query": "string"}
    for group in (7, 100, 1000):
        pq.write_table(table, path, row_group_size=group)
        whole = parquet.read_parquet(path, types)
        for rows, first, stop in ((64, 0, None), (1000, 0, None), (33, 95, 207), (5, 999, 1000), (10, 400, 400), (2000, 10, 5000)):
            blocks = list(parquet.iter_parquet(path, types, rows, first, stop))
            expected = whole.slice(first, (stop or 1000) - first)
            assert [len(block) for block in blocks[:-1]] == [rows] * (len(blocks) - 1)
            assert pa.concat_tables([whole.slice(0, 0), *blocks]).equals(expected)
            assert len(blocks) == -(-len(expected) // rows)


def test_a_file_of_many_row_groups_is_not_held_as_a_whole(tmp_path: Path) -> None:
    path, draw = tmp_path / "a.parquet", np.random.default_rng(0)
    with pq.ParquetWriter(path, pa.schema([("text", pa.string())])) as writer:
        for _ in range(60):
            writer.write_table(pa.table({"text": [draw.bytes(500).hex() for _ in range(100)]}))

    def most(batches: Iterator[Any]) -> int:
        before = pa.total_allocated_bytes()
        return max(pa.total_allocated_bytes() - before for _ in batches)

    with pq.ParquetFile(path) as file:
        rows = [row for batch in parquet.batches_of(file, 64, ["text"], [1, 59]) for row in batch["text"].to_pylist()]
        assert len(rows) == 200 and rows == pq.read_table(path)["text"].slice(100, 100).to_pylist() + pq.read_table(path)["text"].slice(5900).to_pylist()
        ours = most(parquet.batches_of(file, 64))
        assert ours < 1_000_000 < most(file.iter_batches(64)), "the control: pyarrow's own iterator keeps what it read"


def test_a_wrong_value_in_a_later_block_is_named_by_its_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"query": ["a"] * 50 + [None] + ["b"] * 9}), path, row_group_size=16)
    with pytest.raises(UserError, match="row 50, column 'query' is null"):
        list(parquet.iter_parquet(path, {"query": "string"}, 8))
    with pytest.raises(UserError, match="row 50, column 'query' is null"):
        list(parquet.iter_parquet(path, {"query": "string"}, 8, 45))
    bad = pa.Array.from_buffers(pa.string(), 3, [None, pa.array([0, 1, 2, 3], pa.int32()).buffers()[1], pa.py_buffer(b"a\xffb")])
    pq.write_table(pa.table({"query": bad}), path, row_group_size=1)
    with pytest.raises(UserError, match="row 1, column 'query' is not valid UTF-8"):
        list(parquet.iter_parquet(path, {"query": "string"}, 1))
    for columns, message in (({"passage": "string"}, "lacks the column 'passage'"), ({"query": "int64"}, "holds string, not int64")):
        with pytest.raises(UserError, match=message):
            list(parquet.iter_parquet(path, columns, 8))
    with pytest.raises(UserError, match=r"absent\.parquet: no such file"):
        parquet.parquet_rows(tmp_path / "absent.parquet", {"query": "string"})
    assert parquet.parquet_rows(path, {"query": "string"}) == 3
