"""The final shards of a pool of pairs: the kept rows of its parts, a block of rows at a time: a function of `run_parts`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_e5.curation.building.label_noise import inject_label_noise
from lightning_e5.curation.building.merge import Piece
from lightning_e5.curation.engines.run_parts import Progress
from lightning_e5.files.scratch import blocks
from lightning_e5.files.storage import atomic_path, sha256_file
from lightning_e5.types import TextPair

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Rows of a row group, and within which passages are exchanged.
BLOCK_ROWS = 65_536


@dataclass(frozen=True)
class Shard:
    """One final shard.

    Args:
        out: the stage's folder.
        file: its file, under ``out``.
        source: of all its pairs.
        pieces: what its pairs are among, in order.
        first, stop: the numbers of the candidates that it holds the kept ones of.
        keep: a ``.npy`` file of the decisions.
        noise: share of the passages to exchange; None writes no such column.
        seed: of the exchange.
    """

    out: Path
    file: str
    source: str
    pieces: Sequence[Piece]
    first: int
    stop: int
    keep: Path
    noise: float | None
    seed: int


def shard_bounds(keep_N: NDArray[np.bool_], span: slice, shard_rows: int) -> list[tuple[int, int]]:
    """The candidates of a source cut into (first, stop), each with ``shard_rows`` kept ones but the last."""
    starts: list[int] = []
    kept = 0
    for block in blocks(span.stop - span.start):
        rows = span.start + block.start + np.flatnonzero(keep_N[span][block])
        starts += rows[-kept % shard_rows :: shard_rows].tolist()  # those with a multiple of shard_rows kept ones before them
        kept += len(rows)
    return list(zip(starts, [*starts[1:], span.stop], strict=True)) if starts else []


def write_shard(shard: Shard, progress: Progress) -> dict[str, Any]:
    """Write a final shard; returns its record (file, rows, sha256, planted)."""
    rows, planted = _write_rows(shard, shard.out / shard.file)
    digest = sha256_file(shard.out / shard.file)
    return {"file": shard.file, "rows": rows, "sha256": digest, "planted": planted, "files": {shard.file: digest}}


def _write_rows(shard: Shard, path: Path) -> tuple[int, int]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [(name, pa.string()) for name in ("query", "passage", "source", "passage_kind", "id")]
    schema = pa.schema(fields + ([("planted", pa.bool_())] if shard.noise is not None else []))
    rows = planted = 0
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd", write_statistics=False) as writer:
        for number, table in enumerate(_blocks(shard)):
            columns = {name: table[name] for name in table.column_names} | {"source": pa.array([shard.source] * len(table), pa.string())}
            if shard.noise is not None:
                columns, exchanged = _inject_noise(columns, shard, number)
                planted += exchanged
            # Column by column in one chunk each, so that the bytes do not depend on how the parts were cut.
            arrays = [c.combine_chunks() if isinstance(c := columns[name], pa.ChunkedArray) else c for name in schema.names]
            writer.write_table(pa.table(arrays, schema=schema), row_group_size=BLOCK_ROWS)
            rows += len(table)
    return rows, planted


def _blocks(shard: Shard) -> Any:
    """The kept pairs as tables of `BLOCK_ROWS` rows, the last one shorter."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    keep_N = np.load(shard.keep, mmap_mode="r", allow_pickle=False)
    names = ["query", "passage", "passage_kind", "id"]
    held: list[Any] = []
    count = 0
    for piece in shard.pieces:
        row = piece.first
        with pq.ParquetFile(piece.path) as file:
            for group in range(file.num_row_groups):
                start, row = row, row + file.metadata.row_group(group).num_rows
                if row <= shard.first or start >= shard.stop:
                    continue
                low, high = max(start, shard.first), min(row, shard.stop)
                chosen = np.flatnonzero(keep_N[low:high]) + (low - start)
                held.append(file.read_row_group(group, columns=names).take(pa.array(chosen)))
                count += len(chosen)
                while count >= BLOCK_ROWS:
                    table = pa.concat_tables(held)
                    yield table.slice(0, BLOCK_ROWS)
                    held, count = [table.slice(BLOCK_ROWS)], count - BLOCK_ROWS
    if count:
        yield pa.concat_tables(held)


def _inject_noise(columns: Mapping[str, Any], shard: Shard, number: int) -> tuple[dict[str, Any], int]:
    import pyarrow as pa

    texts = zip(columns["query"].to_pylist(), columns["passage"].to_pylist(), columns["passage_kind"].to_pylist(), strict=True)
    pairs = [TextPair(query, passage, shard.source, kind) for query, passage, kind in texts]
    noisy = inject_label_noise(pairs, shard.noise or 0.0, shard.seed + number)
    changed = {
        "passage": pa.array([p.passage for p in noisy.pairs], pa.string()),
        "passage_kind": pa.array([p.passage_kind for p in noisy.pairs], pa.string()),
        "planted": pa.array(noisy.planted, pa.bool_()),
    }
    return {**columns, **changed}, sum(noisy.planted)
