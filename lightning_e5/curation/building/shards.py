"""The final shards of a pool of pairs: the kept rows of its parts, written by tasks, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_e5.curation.building.label_noise import plant_mismatches
from lightning_e5.curation.building.merge import Piece
from lightning_e5.errors import UserError
from lightning_e5.files.storage import atomic_path, read_json, sha256_file, write_json
from lightning_e5.memory import peak_gb
from lightning_e5.types import TextPair

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Rows of a row group, and within which passages are exchanged.
BLOCK_ROWS = 65_536


@dataclass(frozen=True)
class ShardTask:
    """One final shard.

    Args:
        name: its file, under ``out``.
        out: the stage's folder.
        source: of all its pairs.
        pieces: what its pairs are among, in order.
        first, stop: the numbers of the candidates that it holds the kept ones of.
        keep: a ``.npy`` file of the decisions.
        planted: share of the passages to exchange; None writes no such column.
        seed: of the exchange.
        record: where the finished shard's record goes.
        key: of everything that decides the shard's content.
    """

    name: str
    out: Path
    source: str
    pieces: Sequence[Piece]
    first: int
    stop: int
    keep: Path
    planted: float | None
    seed: int
    record: Path
    key: str


def shard_bounds(keep_N: NDArray[np.bool_], span: slice, shard_rows: int) -> list[tuple[int, int]]:
    """The candidates of a source cut into (first, stop), each with ``shard_rows`` kept ones but the last."""
    kept = span.start + np.flatnonzero(keep_N[span])
    starts = [int(kept[row]) for row in range(0, len(kept), shard_rows)]
    return list(zip(starts, [*starts[1:], span.stop], strict=True)) if starts else []


def write_shard(task: ShardTask) -> dict[str, Any]:
    """Write a final shard, unless it is finished; returns its record (file, rows, sha256, planted, peak memory)."""
    path = task.out / task.name
    with suppress(UserError, KeyError, TypeError):  # absent, or damaged
        record: dict[str, Any] = read_json(task.record)
        if record["key"] == task.key and path.is_file() and sha256_file(path) == record["sha256"]:
            return record
    rows, planted = _write_rows(task, path)
    record = {"key": task.key, "file": task.name, "rows": rows, "sha256": sha256_file(path), "planted": planted}
    record["peak_memory_gb"] = peak_gb()
    write_json(task.record, record)
    return record


def _write_rows(task: ShardTask, path: Path) -> tuple[int, int]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [(name, pa.string()) for name in ("query", "passage", "source", "passage_kind", "id")]
    schema = pa.schema(fields + ([("planted", pa.bool_())] if task.planted is not None else []))
    rows = planted = 0
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd", write_statistics=False) as writer:
        for number, table in enumerate(_blocks(task)):
            columns = {name: table[name] for name in table.column_names} | {"source": pa.array([task.source] * len(table), pa.string())}
            if task.planted is not None:
                columns, exchanged = _plant(columns, task, number)
                planted += exchanged
            # Column by column in one chunk each, so that the bytes do not depend on how the parts were cut.
            arrays = [c.combine_chunks() if isinstance(c := columns[name], pa.ChunkedArray) else c for name in schema.names]
            writer.write_table(pa.table(arrays, schema=schema), row_group_size=BLOCK_ROWS)
            rows += len(table)
    return rows, planted


def _blocks(task: ShardTask) -> Any:
    """The kept pairs as tables of `BLOCK_ROWS` rows, the last one shorter."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    keep_N = np.load(task.keep, mmap_mode="r", allow_pickle=False)
    names = ["query", "passage", "passage_kind", "id"]
    held: list[Any] = []
    count = 0
    for piece in task.pieces:
        row = piece.first
        with pq.ParquetFile(piece.path) as file:
            for group in range(file.num_row_groups):
                start, row = row, row + file.metadata.row_group(group).num_rows
                if row <= task.first or start >= task.stop:
                    continue
                low, high = max(start, task.first), min(row, task.stop)
                chosen = np.flatnonzero(keep_N[low:high]) + (low - start)
                held.append(file.read_row_group(group, columns=names).take(pa.array(chosen)))
                count += len(chosen)
                while count >= BLOCK_ROWS:
                    table = pa.concat_tables(held)
                    yield table.slice(0, BLOCK_ROWS)
                    held, count = [table.slice(BLOCK_ROWS)], count - BLOCK_ROWS
    if count:
        yield pa.concat_tables(held)


def _plant(columns: Mapping[str, Any], task: ShardTask, number: int) -> tuple[dict[str, Any], int]:
    import pyarrow as pa

    texts = zip(columns["query"].to_pylist(), columns["passage"].to_pylist(), columns["passage_kind"].to_pylist(), strict=True)
    pairs = [TextPair(query, passage, task.source, kind) for query, passage, kind in texts]
    planting = plant_mismatches(pairs, task.planted or 0.0, task.seed + number)
    changed = {
        "passage": pa.array([p.passage for p in planting.pairs], pa.string()),
        "passage_kind": pa.array([p.passage_kind for p in planting.pairs], pa.string()),
        "planted": pa.array(planting.planted, pa.bool_()),
    }
    return {**columns, **changed}, sum(planting.planted)
