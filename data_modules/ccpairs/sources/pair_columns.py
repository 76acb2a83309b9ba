"""Which columns of a table make a pair, and the pairs of one row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_modules.ccpairs.sources.pair_text import VERSION, candidate
from lightning_e5.errors import UserError
from lightning_e5.types import PairCandidate, ReadReport

#: A column's name, or its position in rows that are arrays.
Column = str | int


@dataclass(frozen=True, slots=True)
class PairColumns:
    """The columns of query, passage, source, id and facts; several columns of a text are joined by a newline."""

    name: str
    query: tuple[Column, ...]
    passage: tuple[Column, ...]
    source: Column | None
    id: Column | None
    facts: tuple[tuple[str, Column], ...]

    @classmethod
    def of(
        cls,
        name: str,
        query: Column | Sequence[Column],
        passage: Column | Sequence[Column],
        source: Column | None,
        id: Column | None,
        facts: Sequence[str] | Mapping[str, Column],
    ) -> PairColumns:
        """From a source's arguments; UserError for an empty list, or names mixed with positions."""
        named = facts.items() if isinstance(facts, Mapping) else [(column, column) for column in facts]
        columns = cls(name, _several("query", query), _several("passage", passage), source, id, tuple(named))
        kinds = {isinstance(column, int) for column in columns.names()}
        if len(kinds) > 1:
            raise UserError(f"query={query!r}, passage={passage!r}: columns are given by name or by position, not both")
        if any(isinstance(column, int) and column < 0 for column in columns.names()):
            raise UserError(f"query={query!r}, passage={passage!r}: positions count from 0 upwards")
        return columns

    @property
    def by_position(self) -> bool:
        """Whether rows are arrays."""
        return isinstance(self.query[0], int)

    @property
    def plain(self) -> bool:
        """Whether a row is one query, one passage and no facts."""
        return len(self.query) == len(self.passage) == 1 and not self.facts

    @property
    def needed(self) -> tuple[Column, ...]:
        """The columns without which there is no pair."""
        return (*self.query, *self.passage, *(() if self.source is None else (self.source,)))

    def names(self) -> list[Column]:
        """All columns that are read, each once."""
        more = [] if self.id is None else [self.id]
        return list(dict.fromkeys([*self.needed, *more, *(column for _, column in self.facts)]))

    def fingerprint(self) -> list[Any]:
        """All settings."""
        return [VERSION, self.name, self.query, self.passage, self.source, self.id, self.facts]

    def table_pairs(self, table: Any, place: str, first: int, report: ReadReport) -> Iterator[PairCandidate]:
        """The pairs of some rows of a table.

        Args:
            table: a ``pyarrow.Table`` or ``RecordBatch`` that has the columns.
            place: what a row's number stands behind in the report, such as ``file:row ``.
            first: number of the first row.
            report: counts the rows as ``records``.
        """
        names = [str(name) for name in self.names()]
        columns = {name: _values(table.column(name)) for name in names}
        report.counts["records"] += table.num_rows
        if self.plain:
            yield from self._plain_rows(columns, place, first, report)
        else:
            for row, values in enumerate(zip(*columns.values(), strict=True), first):
                yield from self.pairs(dict(zip(names, values, strict=True)), f"{place}{row}", report)

    def _plain_rows(self, columns: Mapping[str, list[Any]], place: str, first: int, report: ReadReport) -> Iterator[PairCandidate]:
        """Rows of two texts and no facts, checked where they lie; any row that is not just that goes the general way."""
        queries, passages = columns[str(self.query[0])], columns[str(self.passage[0])]
        named = [None] * len(queries)
        sources = [self.name] * len(queries) if self.source is None else columns[str(self.source)]
        ids = named if self.id is None else columns[str(self.id)]
        good = 0
        for row, (query, passage, source, id) in enumerate(zip(queries, passages, sources, ids, strict=True)):
            if (
                type(query) is str and type(passage) is str and type(source) is str and source
                and query and passage and not query.isspace() and not passage.isspace()
            ):  # fmt: skip
                good += 1
                yield PairCandidate(query, passage, source, "" if id is None else str(id))
            else:
                values = {name: column[row] for name, column in columns.items()}
                yield from self.pairs(values, f"{place}{first + row}", report)
        report.counts["pairs"] += good

    def pairs(self, row: Mapping[Any, Any], place: str, report: ReadReport) -> Iterator[PairCandidate]:
        """The pairs of one row: one, or one per string of a passage column that holds lists."""
        query = self._text(row, self.query, place, report)
        if query is None:
            return
        listed = row[self.passage[0]] if len(self.passage) == 1 else None
        texts: list[str] = []
        if isinstance(listed, list | tuple):
            if not all(isinstance(text, str) for text in listed):
                report.reject(place, f"column {self.passage[0]!r} holds a list of other things than strings")
                return
            texts.extend(listed)
        else:
            passage = self._text(row, self.passage, place, report)
            if passage is None:
                return
            texts.append(passage)
        source = self.name
        if self.source is not None:
            found = row[self.source]
            if not isinstance(found, str) or not found:
                report.reject(place, f"column {self.source!r} holds no source")
                return
            source = found
        facts = {fact: row[column] for fact, column in self.facts if row.get(column) is not None} if self.facts else {}
        id = "" if self.id is None or row.get(self.id) is None else str(row[self.id])
        for passage in texts:
            yield from candidate(report, query, passage, source=source, id=id, place=place, facts=facts)

    def _text(self, row: Mapping[Any, Any], columns: tuple[Column, ...], place: str, report: ReadReport) -> str | None:
        """The columns' texts joined, without those that are null or empty; None where one is no text."""
        if len(columns) == 1 and type(row[columns[0]]) is str:
            return row[columns[0]]  # type: ignore[no-any-return]
        texts = []
        for column in columns:
            value = row[column]
            if isinstance(value, bytes):
                report.reject(place, f"column {column!r} is not UTF-8")
                return None
            if value is not None and not isinstance(value, str):
                report.reject(place, f"column {column!r} holds no text")
                return None
            if value and not value.isspace():
                texts.append(value)
        return "\n".join(texts)


def _several(argument: str, columns: Column | Sequence[Column]) -> tuple[Column, ...]:
    given = (columns,) if isinstance(columns, str | int) else tuple(columns)
    if not given:
        raise UserError(f"{argument}: is an empty list of columns")
    return given


def _values(column: Any) -> list[Any]:
    """A column's values as Python objects; strings that are not UTF-8 stay bytes, which `PairColumns` reports."""
    import pyarrow as pa

    try:
        return column.to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError:
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            return [b""] * len(column)
        return [_decoded(value) for value in column.cast(pa.large_binary()).to_pylist()]


def _decoded(value: bytes | None) -> str | bytes | None:
    try:
        return None if value is None else value.decode("utf-8")
    except UnicodeDecodeError:
        return value
