"""A folder of training pairs, read the same way whether it holds one small table or the shards of a large pool.

One table: ``pairs.parquet``. Shards: ``shards/<source>/part-00000.parquet`` ..., listed in row order by ``pairs.json``,
whose presence says that all of them are written.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightning_e5.errors import UserError, suggestion
from lightning_e5.files.parquet import iter_parquet, read_parquet
from lightning_e5.files.storage import read_checked, reading, safe_component

#: The one table, the list of shards, and the folder of shards.
TABLE, SHARDS, SHARD_FOLDER = "pairs.parquet", "pairs.json", "shards"
#: Key of a reader in ``pairs.json``, and attribute of a source of pairs: the model that filtered the pairs before they came here.
FILTERED_BY = "filtered_by"
#: Columns of pairs and their types; ``planted`` says which passages were exchanged on purpose, where that was done.
COLUMNS = {"query": "string", "passage": "string", "source": "string", "passage_kind": "string", "id": "string", "planted": "bool"}
#: Rows that are read at once where one column of all rows is gone through.
BLOCK_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class PairShard:
    """One file of pairs: its path, the number of its first row among all rows, its rows."""

    path: Path
    first: int
    rows: int


def shard_name(source: str, number: int) -> str:
    """A shard's path in the folder; a source's name becomes one path component that no other name becomes."""
    return f"{SHARD_FOLDER}/{safe_component(source)}/part-{number:05d}.parquet"


class PairStore:
    """The pairs of a folder; rows are numbered shard after shard.

    Args:
        folder: holds ``pairs.parquet``, or ``pairs.json`` and the shards that it lists.

    Raises:
        UserError: neither is there, the list is damaged, or a shard is missing or has another number of rows.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        listed: Mapping[str, Sequence[tuple[str, int]]] = {}
        if (self.folder / SHARDS).is_file():
            listed = _listed(self.folder / SHARDS)
            files = [(self.folder / name, rows) for shards in listed.values() for name, rows in shards]
        elif (self.folder / TABLE).is_file():
            files = [(self.folder / TABLE, _rows(self.folder / TABLE))]
        elif (self.folder / SHARD_FOLDER).is_dir():
            raise UserError(f"{self.folder}: has shards but no {SHARDS}, so it is unfinished; make it again")
        else:
            raise UserError(f"{self.folder}: holds neither {TABLE} nor {SHARDS}, so no pairs")
        starts = np.cumsum([0, *(rows for _, rows in files)]).tolist()
        self._shards = [PairShard(path, first, rows) for (path, rows), first in zip(files, starts[:-1], strict=True)]
        self._listed = {name: sum(rows for _, rows in shards) for name, shards in listed.items()}
        self.rows: int = starts[-1]
        if not self.rows:
            raise UserError(f"{self.folder}: has no pairs")

    def shards(self) -> list[PairShard]:
        """The files in row order."""
        return list(self._shards)

    def filtered_before(self, given: str | None = None) -> dict[str, str]:
        """``filtered_before``: what filtered the pairs before they were built, as is given or as their sources say; empty where nothing is known."""
        if given is None and self._listed:
            readers = read_checked(self.folder / SHARDS, required=False).get("read", [])
            stated = dict.fromkeys(str(reader[FILTERED_BY]) for reader in readers if isinstance(reader, dict) and FILTERED_BY in reader)
            given = "; ".join(stated)
        return {"filtered_before": given} if given else {}

    @functools.cached_property
    def columns(self) -> list[str]:
        """The names of the columns."""
        import pyarrow.parquet as pq

        return list(pq.read_schema(self._shards[0].path).names)

    @functools.cached_property
    def sources(self) -> dict[str, int]:
        """Source -> rows, where each source's rows are contiguous and in this order; empty where sources are mixed."""
        if self._listed:
            return dict(self._listed)
        if "source" not in self.columns:
            return {}
        runs: dict[str, int] = {}
        last = None
        for table in self.iter_batches(["source"], BLOCK_ROWS):
            column = table["source"].combine_chunks().dictionary_encode()
            codes = column.indices.to_numpy(zero_copy_only=False)
            starts = np.flatnonzero(np.concatenate([[True], codes[1:] != codes[:-1]]))
            for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(codes)], strict=True):
                name = column.dictionary[int(codes[start])].as_py()
                if name in runs and name != last:
                    return {}
                runs[name] = runs.get(name, 0) + stop - start
                last = name
        return runs

    def read(self, columns: Sequence[str]) -> Any:
        """Some columns of all rows as one ``pyarrow.Table``."""
        return read_parquet([shard.path for shard in self._shards], types_of(columns), allow_empty=True)

    def iter_batches(self, columns: Sequence[str], rows: int, within: slice | None = None) -> Iterator[Any]:
        """Some columns as ``pyarrow.Table`` of ``rows`` rows, in row order; a shard's last may be shorter.

        Memory: the compressed columns of a row group, and twice a table.

        Args:
            within: the rows that are read; None for all.
        """
        if rows < 1:
            raise UserError(f"rows: {rows} is not >= 1")
        first, stop = (0, self.rows) if within is None else (within.start, within.stop)
        for shard in self._shards:
            if shard.first < stop and shard.first + shard.rows > first:
                yield from iter_parquet(shard.path, types_of(columns), rows, max(0, first - shard.first), min(shard.rows, stop - shard.first))


def stated_filter(source: object) -> dict[str, str]:
    """What a source says of a model that filtered its pairs before, for ``pairs.json``; `PairStore.filtered_before` reads it."""
    stated = getattr(source, FILTERED_BY, None)
    return {} if stated is None else {FILTERED_BY: str(stated)}


def types_of(columns: Sequence[str]) -> dict[str, str]:
    """Their types by name; UserError for a column that pairs do not have."""
    for name in columns:
        if name not in COLUMNS:
            raise UserError(f"pairs: no column {name!r}{suggestion(name, COLUMNS)}")
    return {name: COLUMNS[name] for name in columns}


def _listed(path: Path) -> dict[str, list[tuple[str, int]]]:
    """Source -> its shards as (name, rows), from ``pairs.json``; every file is there and has as many rows."""
    content = read_checked(path, required=False)  # a list may be written by hand
    try:
        listed = {
            str(source["name"]): [(str(shard["file"]), int(shard["rows"])) for shard in source["shards"]]
            for source in content["sources"]
        }
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"{path}: not a list of pairs' shards ({error!r})") from None
    for shards in listed.values():
        for name, rows in shards:
            found = _rows(path.parent / name)
            if found != rows:
                raise UserError(f"{path.parent / name}: has {found} rows where {path.name} says {rows}")
    return {name: shards for name, shards in listed.items() if shards}


def _rows(path: Path) -> int:
    import pyarrow.parquet as pq

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with reading(path, "not a readable Parquet file"):
        return int(pq.read_metadata(path).num_rows)
