"""Rows of pairs: those that a list holds or a filter keeps, single ones and the sources of a `PairStore`, reading only the shards that hold them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_modules.pair_store import COLUMNS, PairStore
from lightning_e5.errors import UserError
from lightning_e5.files.parquet import read_parquet
from lightning_e5.types import TextPair

#: The rank of a pair that an earlier round of the consistency filter dropped and this one did not rank.
NOT_RANKED = 0

#: The source of all pairs of a folder that names none.
NO_SOURCE = "pairs"


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
    keep = read_parquet(path, {"keep": "bool"})["keep"].to_numpy(zero_copy_only=False)
    if len(keep) != rows:
        raise UserError(f"{path}: has {len(keep)} rows where {of} has {rows} pairs")
    return np.flatnonzero(keep).astype(np.int64)


def take_rows(store: PairStore, rows: NDArray[np.int64], columns: Sequence[str]) -> Any:
    """Some columns of some rows, by rising row number, as one ``pyarrow.Table``.

    Memory: the columns of one shard, and the result.
    """
    import pyarrow as pa

    types = {name: COLUMNS[name] for name in columns}
    parts = []
    for shard in store.shards():
        low, high = np.searchsorted(rows, [shard.first, shard.first + shard.rows])
        if low < high:
            table = read_parquet(shard.path, types, allow_empty=True)
            own = rows[low:high] - shard.first
            whole = len(own) == own[-1] - own[0] + 1
            parts.append(table.slice(int(own[0]), len(own)) if whole else table.take(own))
    return pa.concat_tables(parts) if parts else pa.table({name: pa.array([], pa.string()) for name in columns})


def source_codes(store: PairStore) -> tuple[list[str], NDArray[np.int32]]:
    """The sources' names by first row, and the number of each row's source; one source where none is named."""
    if "source" not in store.columns:
        return [NO_SOURCE], np.zeros(store.rows, np.int32)
    if contiguous := store.sources:
        return list(contiguous), np.repeat(np.arange(len(contiguous), dtype=np.int32), list(contiguous.values()))
    numbers: dict[str, int] = {}
    parts = []
    for shard in store.shards():
        column = read_parquet(shard.path, {"source": "string"}, allow_empty=True)["source"].combine_chunks().dictionary_encode()
        own = np.array([numbers.setdefault(name, len(numbers)) for name in column.dictionary.to_pylist()], np.int32)
        parts.append(own[column.indices.to_numpy(zero_copy_only=False)] if len(own) else np.empty(0, np.int32))
    return list(numbers), np.concatenate(parts)
