"""Parquet files as columns of known types: written whole or not at all, and read with a sentence for what does not fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_e5.errors import UserError
from lightning_e5.files.storage import atomic_path, reading

#: Rows of a row group of what `write_parquet` writes; pyarrow's own number.
ROW_GROUP = 2**20


def write_parquet(path: Path, columns: Mapping[str, Any]) -> None:
    """Write equal-length columns as one zstd Parquet file, atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = columns if isinstance(columns, pa.Table) else pa.table(dict(columns))
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_statistics=False)


@contextmanager
def parquet_writer(path: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that takes equal-length columns, block after block; the file has the bytes that `write_parquet` gives for all at once.

    Memory: a row group of `ROW_GROUP` rows. At least one block is needed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    held: list[Any] = []
    writer: Any = None

    def write_group(table: Any) -> None:
        nonlocal writer
        table = table.combine_chunks()  # its bytes must not depend on how the blocks were cut
        writer = writer or pq.ParquetWriter(temporary, table.schema, compression="zstd", write_statistics=False)
        writer.write_table(table, row_group_size=ROW_GROUP)

    def write(columns: Mapping[str, Any]) -> None:
        held.append(pa.table(dict(columns)))
        while sum(table.num_rows for table in held) >= ROW_GROUP:
            whole = pa.concat_tables(held)
            write_group(whole.slice(0, ROW_GROUP))
            held[:] = [whole.slice(ROW_GROUP)]

    with atomic_path(path) as temporary:
        try:
            yield write
            rest = pa.concat_tables(held) if held else None
            if rest is not None and (rest.num_rows or writer is None):
                write_group(rest)
        finally:
            if writer is not None:
                writer.close()


def batches_of(parquet: Any, rows: int, columns: Sequence[str] | None = None, groups: Iterable[int] | None = None) -> Iterator[Any]:
    """Record batches of an open ``ParquetFile``, of ``rows`` rows or fewer, row group by row group.

    pyarrow's own iterator over several row groups holds on to what it has read of each: a file as a whole in the end.

    Args:
        parquet: the file.
        rows: of a batch, at most; one ends where its row group does.
        columns: names; all by default.
        groups: numbers of row groups; all by default.
    """
    for group in range(parquet.num_row_groups) if groups is None else groups:
        yield from parquet.iter_batches(rows, row_groups=[group], columns=None if columns is None else list(columns))


def iter_parquet(path: Path, columns: Mapping[str, str], rows: int, first: int = 0, stop: int | None = None) -> Iterator[Any]:
    """Some columns of the rows ``first`` to ``stop`` (None: the end), as ``pyarrow.Table`` of ``rows`` rows, the last one shorter.

    Memory: the compressed columns of a row group, and twice a table.

    Args: see `read_parquet`.

    Raises:
        UserError: as `read_parquet`, when the rows come in which a value is wrong.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with reading(path, "not a readable Parquet file"):
        parquet = pq.ParquetFile(path)
    with parquet:
        _check_columns(path, parquet.schema_arrow.names, columns)
        sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        stop = sum(sizes) if stop is None else min(stop, sum(sizes))
        ends = [sum(sizes[: group + 1]) for group in range(len(sizes))]
        groups = [group for group, end in enumerate(ends) if end > first and end - sizes[group] < stop]
        at = ends[groups[0]] - sizes[groups[0]] if groups else 0
        batches = batches_of(parquet, rows, list(columns), groups)
        held: list[Any] = []
        done = first
        while done < stop:
            with reading(path, "not a readable Parquet file"):
                batch = next(batches)
            low, high = max(first - at, 0), min(stop - at, batch.num_rows)
            at += batch.num_rows
            if low >= high:
                continue
            held.append(_checked(path, pa.Table.from_batches([batch.slice(low, high - low)]), columns, at - batch.num_rows + low))
            while (ready := sum(table.num_rows for table in held)) >= rows or (ready and done + ready == stop):
                whole = pa.concat_tables(held)
                yield whole.slice(0, rows)
                done += min(rows, ready)
                held = [whole.slice(rows)] if ready > rows else []


def parquet_rows(path: Path, columns: Mapping[str, str]) -> int:
    """How many rows a file has that has these columns; UserError as `read_parquet`'s."""
    import pyarrow.parquet as pq

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with reading(path, "not a readable Parquet file"), pq.ParquetFile(path) as parquet:
        _check_columns(path, parquet.schema_arrow.names, columns)
        return int(parquet.metadata.num_rows)


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
            _check_columns(path, parquet.schema_arrow.names, columns)
            table = parquet.read(columns=list(columns))
        if table.num_rows == 0 and not allow_empty:
            raise UserError(f"{path}: has no rows")
        tables.append(_checked(path, table, columns))
    return pa.concat_tables(tables)


def parquet_columns(path: Path) -> list[str]:
    """The names of a Parquet file's columns; UserError for a file that is none."""
    import pyarrow.parquet as pq

    with reading(path, "not a readable Parquet file"):
        return list(pq.read_schema(path).names)


def _check_columns(path: Path, names: Sequence[str], columns: Mapping[str, str]) -> None:
    missing = [name for name in columns if name not in names]
    if missing:
        raise UserError(f"{path}: lacks the column {missing[0]!r} (has: {', '.join(names)})")


def _checked(path: Path, table: Any, columns: Mapping[str, str], first: int = 0) -> Any:
    """The columns of a table whose first row is the file's row ``first``, each of its type and with no null; UserError names what is not."""
    import pyarrow as pa

    for name, type_name in columns.items():
        found = _plain_type(table.schema.field(name).type)
        if found != type_name:
            raise UserError(f"{path}: column {name!r} holds {found}, not {type_name}")
        _check_not_null(path, name, table[name], first)
        if type_name == "string":
            _check_utf8(path, name, table[name], first)
    return table.select(list(columns)).cast(pa.schema([(name, _arrow_type(table, name)) for name in columns]))


def _plain_type(arrow_type: Any) -> str:
    """Arrow's type name without the large/view variants and list item names, which mean the same to a reader."""
    return re.sub(r"(item|element): ", "", str(arrow_type)).replace("large_", "").replace("_view", "")


def _arrow_type(table: Any, name: str) -> Any:
    import pyarrow as pa

    found = table.schema.field(name).type
    return pa.string() if pa.types.is_large_string(found) else found


def _check_not_null(path: Path, name: str, column: Any, first: int) -> None:
    """A value without content is a mistake; a list may be missing as a whole, its items may not."""
    import pyarrow as pa

    if not pa.types.is_list(column.type) and not pa.types.is_large_list(column.type):
        if column.null_count:
            raise UserError(f"{path}: row {first + column.is_null().index(True).as_py()}, column {name!r} is null")
    elif any(chunk.flatten().null_count for chunk in column.chunks):
        row = first + next(row for row, items in enumerate(column.to_pylist()) if items is not None and None in items)
        raise UserError(f"{path}: row {row}, column {name!r} holds a null")


def _check_utf8(path: Path, name: str, column: Any, first: int) -> None:
    import pyarrow as pa

    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        for row, value in enumerate(column, first):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                raise UserError(f"{path}: row {row}, column {name!r} is not valid UTF-8 ({error.reason})") from None
        raise
