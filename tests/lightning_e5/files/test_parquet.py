"""Parquet files: what is none, is damaged or has other columns is named; variants of one type are the same to a reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
