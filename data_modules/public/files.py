"""Which files of a public data set hold a split, and the checked tables of such a file.

Publishers on the Hub lay Parquet out as ``FOLDER/SPLIT-00000-of-00002.parquet`` (https://huggingface.co/docs/datasets/repository_structure).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_modules.ccpairs.formats.files import file_fingerprint
from lightning_e5.errors import UserError, suggestion
from lightning_e5.files.hub import data_set_files, parquet_tables

#: Rows that are turned into Python objects at once.
ROWS_AT_ONCE = 1024
# Older uploads have a hash behind the numbers.
_PARQUET = re.compile(r"(?:(?P<folder>.+)/)?(?P<split>[^/]+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?:-[0-9a-f]+)?\.parquet")
#: What a column may have to hold.
TEXT, TEXTS = "texts", "lists of texts"


def split_of(file: str) -> str:
    """The split of a Parquet file by its name."""
    match = _PARQUET.fullmatch(file.rpartition("/")[2])
    return match["split"] if match else ""


def split_files(place: str, folders: Sequence[str], revision: str | None = None) -> dict[str, list[str]]:
    """Split -> its Parquet files in order, of the first of ``folders`` that holds any; splits stand in the order of their names.

    Raises:
        UserError: there is none, a split lacks one of its files, or as `data_set_files`.
    """
    names = data_set_files(place, revision)
    for folder in folders:
        found: dict[str, dict[int, str]] = {}
        counts: dict[str, int] = {}
        for name, file in names.items():
            match = _PARQUET.fullmatch(name)
            if match is not None and (match["folder"] or "") == folder:
                found.setdefault(match["split"], {})[int(match["number"])] = file
                counts[match["split"]] = int(match["count"])
        for split, files in found.items():
            absent = next((number for number in range(counts[split]) if number not in files), None)
            if absent is not None:
                where = f"{folder}/{split}".lstrip("/")
                raise UserError(f"{place}: lacks {where}-{absent:05d}-of-{counts[split]:05d}.parquet, one of the {counts[split]} files of {split}")
        if found:
            return {split: [files[number] for number in sorted(files)] for split, files in sorted(found.items())}
    looked = " or ".join(f"{folder}/*.parquet" if folder else "*.parquet" for folder in folders)
    folders_there = {name.rpartition("/")[0] for name in names if name.endswith(".parquet")} - {""}
    hint = suggestion(folders[0], folders_there) if folders_there else ""
    raise UserError(f"{place}: has no {looked} of the form SPLIT-00000-of-00001.parquet{hint}")


def chosen(splits: Mapping[str, list[str]], wanted: Sequence[str] | None, place: str, argument: str = "splits") -> dict[str, list[str]]:
    """The splits that are wanted, in that order, all by default; UserError for one that is not there, or named twice."""
    if wanted is None:
        return dict(splits)
    if not wanted:
        raise UserError(f"{argument}: is an empty list; leave it out for all splits of {place}")
    for number, split in enumerate(wanted):
        if split not in splits:
            raise UserError(f"{argument}: {split!r} is no split of {place}{suggestion(split, splits)}")
        if split in wanted[:number]:
            raise UserError(f"{argument}: {split!r} is named twice")
    return {split: splits[split] for split in wanted}


def checked_tables(file: str, columns: Mapping[str, str]) -> Iterator[Any]:
    """The tables of a Parquet file, whose columns are there and hold what they have to.

    Args:
        file: a path, or a name on the Hub.
        columns: name -> `TEXT` or `TEXTS`.

    Raises:
        UserError: naming file, column and rule; or as `parquet_tables`.
    """
    for number, table in enumerate(parquet_tables(file, ROWS_AT_ONCE)):
        if not number:
            for name, kind in columns.items():
                if name not in table.column_names:
                    raise UserError(f"{file}: lacks the column {name!r}{suggestion(name, table.column_names)}")
                if not _holds(table.schema.field(name).type, kind):
                    raise UserError(f"{file}: column {name!r} holds {table.schema.field(name).type}, and the rule is {kind}")
        yield table


def _holds(kind: Any, wanted: str) -> bool:
    import pyarrow as pa

    if wanted == TEXTS:
        return (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _holds(kind.value_type, TEXT)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def is_folder(place: str) -> bool:
    """Whether a place is a folder here, and no data set on the Hub."""
    return Path(place).expanduser().is_dir()


def local_identity(place: str, files: Callable[[], Sequence[str]]) -> list[list[Any]]:
    """[name, bytes, time of the last change] of the files of a folder; empty for the Hub, where the revision says it."""
    return file_fingerprint([Path(file) for file in files()]) if is_folder(place) else []
