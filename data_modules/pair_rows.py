"""Rows of pairs: those that a list holds or a filter keeps, single ones and the sources of a `PairStore`, reading only the shards that hold them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_modules.pair_store import BLOCK_ROWS, PairStore, types_of
from lightning_e5.errors import UserError
from lightning_e5.files.parquet import iter_parquet, parquet_rows, read_parquet
from lightning_e5.files.storage import atomic_path
from lightning_e5.types import TextPair

#: The rank of a pair that an earlier round of the consistency filter dropped and this one did not rank.
NOT_RANKED = 0

#: The source of all pairs of a folder that names none.
NO_SOURCE = "pairs"
_KEEP = {"keep": "bool"}


def text_pairs(pairs: Iterable[TextPair | tuple[str, str]]) -> list[TextPair]:
    """Pairs as a user lists them; of a plain tuple (query, passage) the source is empty.

    Raises:
        UserError: one of them is no pair of texts, or there is none.
    """
    found = []
    for number, pair in enumerate(pairs):
        texts = (pair.query, pair.passage) if isinstance(pair, TextPair) else pair
        if not isinstance(texts, tuple | list) or len(texts) != 2 or not all(isinstance(text, str) for text in texts):
            raise UserError(f"pairs: number {number} is {repr(pair)[:60]}; the rule is a (query, passage) of two texts")
        found.append(pair if isinstance(pair, TextPair) else TextPair(*texts, source=""))
    if not found:
        raise UserError("pairs: there is none")
    return found


def kept_rows(path: Path, rows: int, of: Path) -> NDArray[np.int64]:
    """The numbers of the rows, of ``rows`` pairs of the folder ``of``, that a Parquet file with a bool column ``keep`` keeps.

    Raises:
        UserError: the file is no such one, or belongs to other pairs.
    """
    parts, first = [np.empty(0, np.int64)], 0
    for keep in keep_masks(path, rows, of):
        parts.append(first + np.flatnonzero(keep))
        first += len(keep)
    return np.concatenate(parts)


def keep_masks(path: Path, rows: int, of: Path) -> Iterator[NDArray[np.bool_]]:
    """The same file's decisions, `BLOCK_ROWS` rows at a time; see `kept_rows`."""
    if (found := parquet_rows(path, _KEEP)) != rows:
        raise UserError(f"{path}: has {found} rows where {of} has {rows} pairs")
    for table in iter_parquet(path, _KEEP, BLOCK_ROWS):
        yield table["keep"].to_numpy()


def take_rows(store: PairStore, rows: NDArray[np.int64], columns: Sequence[str]) -> Any:
    """Some columns of some rows, by rising row number, as one ``pyarrow.Table``.

    Memory: the compressed columns of a row group, a block of `BLOCK_ROWS` rows, and the result.
    """
    import pyarrow as pa

    types = types_of(columns)
    parts = []
    for shard in store.shards():
        low, high = np.searchsorted(rows, [shard.first, shard.first + shard.rows])
        if low == high:
            continue
        own = rows[low:high] - shard.first
        first = int(own[0])
        for table in iter_parquet(shard.path, types, BLOCK_ROWS, first, int(own[-1]) + 1):
            chosen = own[slice(*np.searchsorted(own, [first, first + len(table)]))] - first
            if len(chosen):
                whole = len(chosen) == chosen[-1] - chosen[0] + 1
                parts.append(table.slice(int(chosen[0]), len(chosen)) if whole else table.take(chosen))
            first += len(table)
    return pa.concat_tables(parts) if parts else pa.table({name: pa.array([], pa.string()) for name in columns})


@dataclass(frozen=True)
class RowSources:
    """The source of any row, with nothing held for each row.

    Args:
        names: by first row.
        ends: the first row behind each source, where each one's rows are contiguous; else empty.
        codes: else a file of the number of each row's source, int32.
    """

    names: tuple[str, ...]
    ends: tuple[int, ...] = ()
    codes: Path | None = None

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """The numbers of some rows' sources."""
        if self.codes is None:
            return np.searchsorted(self.ends, rows, side="right").astype(np.int32)
        return np.memmap(self.codes, dtype=np.int32, mode="r")[rows]

    def blocks(self, rows: int) -> Iterator[tuple[int, NDArray[np.int32]]]:
        """(first row, the numbers of the sources) of `BLOCK_ROWS` rows at a time, of ``rows`` in all."""
        for first in range(0, rows, BLOCK_ROWS):
            yield first, self.of(np.arange(first, min(rows, first + BLOCK_ROWS)))


def row_sources(store: PairStore, folder: Path) -> RowSources:
    """Of a store's rows; where sources are mixed, ``folder`` gets a file of four bytes a row, ``codes.bin``."""
    if "source" not in store.columns:
        return RowSources((NO_SOURCE,), (store.rows,))
    if contiguous := store.sources:
        return RowSources(tuple(contiguous), tuple(np.cumsum(list(contiguous.values())).tolist()))
    numbers: dict[str, int] = {}
    with atomic_path(folder / "codes.bin") as temporary, temporary.open("wb") as file:
        for table in store.iter_batches(["source"], BLOCK_ROWS):
            file.write(_numbered(table["source"], numbers).tobytes())
    return RowSources(tuple(numbers), codes=folder / "codes.bin")


def _numbered(column: Any, numbers: dict[str, int]) -> NDArray[np.int32]:
    """The numbers of a column's sources; one that is new gets the next."""
    encoded = column.combine_chunks().dictionary_encode()
    own = np.array([numbers.setdefault(name, len(numbers)) for name in encoded.dictionary.to_pylist()], np.int32)
    return own[encoded.indices.to_numpy(zero_copy_only=False)] if len(own) else np.empty(0, np.int32)


def source_codes(store: PairStore) -> tuple[list[str], NDArray[np.int32]]:
    """The sources' names by first row, and the number of each row's source; one source where none is named."""
    if "source" not in store.columns:
        return [NO_SOURCE], np.zeros(store.rows, np.int32)
    if contiguous := store.sources:
        return list(contiguous), np.repeat(np.arange(len(contiguous), dtype=np.int32), list(contiguous.values()))
    numbers: dict[str, int] = {}
    parts = []
    for shard in store.shards():
        parts.append(_numbered(read_parquet(shard.path, {"source": "string"}, allow_empty=True)["source"], numbers))
    return list(numbers), np.concatenate(parts)
