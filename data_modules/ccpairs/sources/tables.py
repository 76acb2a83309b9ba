"""Pairs by column names: Parquet files, JSON lines and Hugging Face data sets of any origin.

A row such as ``{"query": "Which book?", "passage": "Try Hyperion.", "score": 3}`` or ``["Which book?", "Try Hyperion."]``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_modules.ccpairs.formats.files import FileParts, expand, file_fingerprint
from data_modules.ccpairs.sources.pair_columns import Column, PairColumns
from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError, suggestion
from lightning_e5.files.lines import json_values
from lightning_e5.files.parquet import batches_of
from lightning_e5.types import PairCandidate, ReadReport

#: Rows that are turned into Python objects at once.
_ROWS_AT_ONCE = 1024


class _Table:
    """What the readers by column share."""

    def __init__(
        self,
        name: str,
        query: Column | Sequence[Column],
        passage: Column | Sequence[Column],
        source_column: Column | None,
        id_column: Column | None,
        facts: Sequence[str] | Mapping[str, Column],
    ) -> None:
        self.name = name
        self.columns = PairColumns.of(name, query, passage, source_column, id_column, facts)


@configurable("pair source")
class ParquetPairs(FileParts, _Table):
    """Pairs of the columns of Parquet files, read a thousand rows at a time.

    Rows with a null or empty text are counted and skipped.

    Args:
        paths: files or patterns.
        query: the query's column, or several whose texts are joined by a newline.
        passage: the passage's column, or several; of a column of lists, each string is a passage of its own.
        name: the pairs' source, where no ``source_column`` is given.
        source_column: column with the pairs' source, or null.
        id_column: column with the pairs' id, or null.
        facts: columns that heuristics may ask for (``score``, ``language``, ``url``), or a mapping fact -> column.

    Raises:
        UserError: a file is no Parquet file or lacks a column.
    """

    def __init__(
        self,
        paths: str | Sequence[str],
        *,
        query: str | Sequence[str] = "query",
        passage: str | Sequence[str] = "passage",
        name: str = "parquet",
        source_column: str | None = None,
        id_column: str | None = None,
        facts: Sequence[str] | Mapping[str, str] = (),
    ) -> None:
        super().__init__(name, query, passage, source_column, id_column, facts)
        self._paths = expand(paths)

    def fingerprint(self) -> dict[str, Any]:
        """The files and the columns."""
        return {"files": file_fingerprint(self._paths), "columns": self.columns.fingerprint()}

    def read(self, part: str, report: ReadReport) -> Iterator[PairCandidate]:
        """The pairs of one file, row by row."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        names = [str(name) for name in self.columns.names()]
        number = 0
        try:
            # Without pre-buffering a row group is read page by page, not as a whole.
            with pq.ParquetFile(part, pre_buffer=False, buffer_size=2**20) as parquet:
                missing = [name for name in names if name not in parquet.schema_arrow.names]
                if missing:
                    hint = suggestion(missing[0], parquet.schema_arrow.names)
                    raise UserError(f"{part}: lacks the column {missing[0]!r}{hint}")
                for batch in batches_of(parquet, _ROWS_AT_ONCE, names):
                    yield from self.columns.table_pairs(batch, f"{part}:row ", number, report)
                    number += batch.num_rows
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            if number == 0:
                raise UserError(f"{part}: not a readable Parquet file ({reason})") from None
            report.reject(f"{part}:row {number}", "Parquet file is damaged, the rest is not read")


@configurable("pair source")
class JsonlPairs(FileParts, _Table):
    """Pairs of the fields of JSON lines: objects by name, arrays (``["query", "passage"]``) by position from 0.

    Args:
        paths: .jsonl files or patterns, also compressed.
        query: the query's field or position, or several whose texts are joined by a newline.
        passage: the passage's field or position, or several; of a list, each string is a passage of its own.
        name: the pairs' source, where no ``source_column`` is given.
        source_column: field with the pairs' source, or null.
        id_column: field with the pairs' id, or null.
        facts: fields that heuristics may ask for, or a mapping fact -> field.

    Raises:
        UserError: names and positions are mixed.
    """

    def __init__(
        self,
        paths: str | Sequence[str],
        *,
        query: str | int | Sequence[str | int] = "query",
        passage: str | int | Sequence[str | int] = "passage",
        name: str = "jsonl",
        source_column: str | int | None = None,
        id_column: str | int | None = None,
        facts: Sequence[str] | Mapping[str, str | int] = (),
    ) -> None:
        super().__init__(name, query, passage, source_column, id_column, facts)
        self._paths = expand(paths)

    def fingerprint(self) -> dict[str, Any]:
        """The files and the columns."""
        return {"files": file_fingerprint(self._paths), "columns": self.columns.fingerprint()}

    def read(self, part: str, report: ReadReport) -> Iterator[PairCandidate]:
        """The pairs of one file, line by line; UserError when its first row lacks a column."""
        by_position, needed = self.columns.by_position, self.columns.needed
        first = True
        for place, row in json_values(part, report):
            if by_position and isinstance(row, list):
                row = dict(enumerate(row))
            elif by_position or not isinstance(row, dict):
                report.reject(place, "not a JSON array" if by_position else "not a JSON object")
                continue
            missing = [name for name in needed if name not in row]
            if missing and first:
                raise UserError(f"{place}: lacks the column {missing[0]!r}{suggestion(missing[0], map(str, row))}")
            first = False
            if missing:
                report.reject(place, f"lacks the column {missing[0]!r}")
            else:
                yield from self.columns.pairs(row, place, report)


@configurable("pair source")
class HfDatasetPairs(_Table):
    """Pairs of the columns of a Hugging Face data set, of its hub or in a folder that ``save_to_disk`` wrote.

    Args:
        path: a name on the hub, a builder (``json``, ``parquet``, with ``data_files``), or a folder.
        query: the query's column, or several whose texts are joined by a newline.
        passage: the passage's column, or several; of a column of lists, each string is a passage of its own.
        config: the data set's configuration, or null.
        split: the split that is read.
        revision: commit on the hub; give one, so that the pairs stay the same.
        data_files: files for a builder, or of a repository.
        streaming: read without a copy on the disk.
        name: the pairs' source, where no ``source_column`` is given.
        source_column: column with the pairs' source, or null.
        id_column: column with the pairs' id, or null.
        facts: columns that heuristics may ask for, or a mapping fact -> column.

    Raises:
        UserError: the data set cannot be had, has no such split, or lacks a column.
    """

    def __init__(
        self,
        path: str,
        *,
        query: str | Sequence[str] = "query",
        passage: str | Sequence[str] = "passage",
        config: str | None = None,
        split: str = "train",
        revision: str | None = None,
        data_files: str | Sequence[str] | None = None,
        streaming: bool = True,
        name: str = "huggingface",
        source_column: str | None = None,
        id_column: str | None = None,
        facts: Sequence[str] | Mapping[str, str] = (),
    ) -> None:
        super().__init__(name, query, passage, source_column, id_column, facts)
        self.path, self.config, self.split, self.revision = path, config, split, revision
        self.data_files = [data_files] if isinstance(data_files, str) else data_files and list(data_files)
        self.streaming = streaming
        if Path(path).is_file():
            raise UserError(f"{path}: is a file; use ParquetPairs or JsonlPairs, or a builder with data_files")

    def parts(self) -> list[str]:
        """The split, as one part."""
        return [f"{self.path}:{self.split}"]

    def fingerprint(self) -> dict[str, Any]:
        """The data set's name and revision, or the folder's files, and the columns."""
        folder = Path(self.path)
        files = sorted(p for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else []
        files += expand(self.data_files) if self.data_files and all(Path(f).exists() for f in self.data_files) else []
        where = [self.path, self.config, self.split, self.revision, self.data_files]
        return {"dataset": where, "files": file_fingerprint(files), "columns": self.columns.fingerprint()}

    def read(self, part: str, report: ReadReport) -> Iterator[PairCandidate]:
        """The pairs of the split, row by row."""
        rows = iter(self._load())
        names, number = self.columns.names(), 0
        while True:
            try:
                row = next(rows, None)
            except Exception as error:  # a builder meets its files only now
                raise UserError(f"{part}: row {number} cannot be read ({_in_short(error)})") from None
            if row is None:
                return
            missing = [name for name in names if name not in row]
            if missing:
                raise UserError(f"{part}: lacks the column {missing[0]!r}{suggestion(missing[0], map(str, row))}")
            report.counts["records"] += 1
            yield from self.columns.pairs(row, f"{part}:row {number}", report)
            number += 1

    def _load(self) -> Any:
        import datasets

        try:
            if (Path(self.path) / "state.json").is_file() or (Path(self.path) / "dataset_dict.json").is_file():
                loaded = datasets.load_from_disk(self.path)
                return loaded[self.split] if isinstance(loaded, datasets.DatasetDict) else loaded
            return datasets.load_dataset(
                self.path, self.config, split=self.split, revision=self.revision,
                data_files=self.data_files, streaming=self.streaming,
            )  # fmt: skip
        except Exception as error:  # the hub's client raises errors of many libraries
            raise UserError(
                f"{self.path}: the data set cannot be had ({_in_short(error)}); a folder of save_to_disk needs no hub"
            ) from None


def _in_short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
