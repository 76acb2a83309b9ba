"""Parquet files as columns of known types: written whole or not at all, and read with a sentence for what does not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_e5.errors import UserError
from lightning_e5.files.storage import atomic_path, reading


def write_parquet(path: Path, columns: Mapping[str, Any]) -> None:
    """Write equal-length columns as one zstd Parquet file, atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = columns if isinstance(columns, pa.Table) else pa.table(dict(columns))
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_statistics=False)


def read_parquet(paths: Path | Sequence[Path], columns: Mapping[str, str], *, allow_empty: bool = False) -> Any:
    """Read some columns of one or several Parquet files as one ``pyarrow.Table``.

    Args:
        paths: a file or several.
        columns: column name -> pyarrow type name (``string``, ``int64``, ``bool``, ``list<string>`` ...) it must have.
        allow_empty: accept files without rows.

    Raises:
        UserError: a file is missing, is no Parquet file, lacks a column, has another type, has no rows, or holds
            bytes that are not UTF-8 in a string column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for path in [Path(paths)] if isinstance(paths, str | Path) else [Path(p) for p in paths]:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        with reading(path, "not a readable Parquet file"):
            parquet = pq.ParquetFile(path)
            names = parquet.schema_arrow.names
            missing = [name for name in columns if name not in names]
            if missing:
                raise UserError(f"{path}: lacks the column {missing[0]!r} (has: {', '.join(names)})")
            table = parquet.read(columns=list(columns))
        if table.num_rows == 0 and not allow_empty:
            raise UserError(f"{path}: has no rows")
        for name, type_name in columns.items():
            found = _plain_type(table.schema.field(name).type)
            if found != type_name:
                raise UserError(f"{path}: column {name!r} holds {found}, not {type_name}")
            _check_not_null(path, name, table[name])
            if type_name == "string":
                _check_utf8(path, name, table[name])
        tables.append(table.cast(pa.schema([(name, _arrow_type(table, name)) for name in columns])))
    return pa.concat_tables(tables)


def parquet_columns(path: Path) -> list[str]:
    """The names of a Parquet file's columns; UserError for a file that is none."""
    import pyarrow.parquet as pq

    with reading(path, "not a readable Parquet file"):
        return list(pq.read_schema(path).names)


def _plain_type(arrow_type: Any) -> str:
    """Arrow's type name without the large/view variants and list item names, which mean the same to a reader."""
    return re.sub(r"(item|element): ", "", str(arrow_type)).replace("large_", "").replace("_view", "")


def _arrow_type(table: Any, name: str) -> Any:
    import pyarrow as pa

    found = table.schema.field(name).type
    return pa.string() if pa.types.is_large_string(found) else found


def _check_not_null(path: Path, name: str, column: Any) -> None:
    """A value without content is a mistake; a list may be missing as a whole, its items may not."""
    import pyarrow as pa

    if not pa.types.is_list(column.type) and not pa.types.is_large_list(column.type):
        if column.null_count:
            raise UserError(f"{path}: row {column.is_null().index(True).as_py()}, column {name!r} is null")
    elif any(chunk.flatten().null_count for chunk in column.chunks):
        row = next(row for row, items in enumerate(column.to_pylist()) if items is not None and None in items)
        raise UserError(f"{path}: row {row}, column {name!r} holds a null")


def _check_utf8(path: Path, name: str, column: Any) -> None:
    import pyarrow as pa

    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        for row, value in enumerate(column):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                raise UserError(f"{path}: row {row}, column {name!r} is not valid UTF-8 ({error.reason})") from None
        raise
