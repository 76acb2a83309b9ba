"""The rows of table files of any format: JSONL, CSV, TSV and Parquet, with one rule for what is damaged or of another kind.

Every reader takes a ``report``: with one, a bad row is counted there by its place; without, the first one is a `UserError`. A
file that is cut off or of another kind is a `UserError` always.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_e5.errors import UserError
from lightning_e5.files.lines import refuse_constant, text_lines
from lightning_e5.files.parquet import batches_of
from lightning_e5.files.streams import DamagedFile, blocks, regular_file
from lightning_e5.types import ReadReport

#: A file's first bytes -> what it is; none of these is a text file.
_KINDS = (
    (b"PAR1", "a Parquet file"), (b"\x1f\x8b", "a gzip file, whose name must end in .gz"), (b"\x28\xb5\x2f\xfd", "a zstd file, whose name must end in .zst"),
    (b"BZh", "a bzip2 file, whose name must end in .bz2"), (b"\xfd7zXZ", "an xz file, whose name must end in .xz"), (b"PK\x03\x04", "a zip archive (or a spreadsheet)"),
    (b"7z\xbc\xaf", "a 7z archive"), (b"%PDF", "a PDF"), (b"ARROW1", "an Arrow file"), (b"SQLite format 3", "an SQLite database"), (b"\x89HDF", "an HDF5 file"),
)  # fmt: skip
_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
#: Bytes by which a file's kind is told.
_HEAD = 4096
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_ROWS_AT_ONCE = 1024


def refuse(report: ReadReport | None, place: str, reason: str, detail: str = "") -> None:
    """Count a bad row in ``report`` by its reason; without a report UserError with ``reason`` and ``detail``."""
    if report is None:
        raise UserError(f"{place}: {reason}{detail}")
    report.reject(place, reason)


def table_format(path: Path) -> str:
    """``jsonl``, ``csv``, ``parquet`` or ``tsv`` by the ending (without ``.gz`` and the like); ``tsv`` for any other."""
    name = path.name.lower()
    for ending in (".gz", ".zst", ".bz2", ".xz"):
        name = name.removesuffix(ending)
    ending = name.rpartition(".")[2]
    return "jsonl" if ending in ("json", "jsonl", "ndjson") else ending if ending in ("csv", "parquet") else "tsv"


def check_format(path: Path, *formats: str) -> None:
    """UserError for a file whose ending is of none of ``formats``, because its rows hold lists, which CSV and TSV cannot."""
    if table_format(path) not in formats:
        raise UserError(f"{path}: its ending is not that of {' or '.join(formats)}")


def table_rows(path: Path | str, report: ReadReport | None = None, columns: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of a table file, in the format that its ending says (see `table_format`).

    CSV has quotes, TSV none; both have a header, and their values are strings. With a report, ``records`` are counted.

    Args:
        path: the file.
        report: see above.
        columns: that the header of a CSV, TSV or Parquet file must have.

    Raises:
        UserError: no such file, one of another kind, a header with one name twice or without one of ``columns``, or (without a
            report) a bad row.
    """
    path = regular_file(path)
    kind = table_format(path)
    if kind == "jsonl":
        return json_objects(path, report)
    return {"parquet": _parquet_rows, "csv": _csv_rows, "tsv": _tsv_rows}[kind](path, report, columns)


def json_objects(path: Path | str, report: ReadReport | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(``file:line``, object) of a JSONL file, whatever its ending; see `table_rows`.

    For files that somebody made to be read here, so it is strict: `lines.json_rows` reads raw dumps, of which it takes what
    stands before the damage, the last of equal keys, and U+FFFD for half a surrogate pair.
    """
    path = regular_file(path)
    check_text(path, "JSONL (one JSON object a line)")
    for number, line in text_lines(path, report, whole=True):
        if report is not None:
            report.counts["records"] += 1
        place = f"{path}:{number}"
        try:
            row = parse_json(line)
        except ValueError as error:
            refuse(report, place, "not JSON", f" ({error})")
            continue
        if isinstance(row, dict):
            yield place, row
        else:
            refuse(report, place, "not a JSON object")


def parse_json(text: str) -> Any:
    """A JSON value; ValueError with the reason for what is none: NaN, a key twice in one object, half a surrogate pair too."""
    try:
        value = DECODER.decode(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # an integer of more than 4,300 digits, or what the hooks below refuse
        raise ValueError(str(error).partition(";")[0]) from None
    if "\\ud" in text or "\\uD" in text:
        broken = _SURROGATE.search(json.dumps(value, ensure_ascii=False))
        if broken:
            raise ValueError(f"holds {broken[0]!r}, half a surrogate pair")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"has the key {twice!r} twice")
    return found


#: One for all rows: ``json.loads`` with a setting makes a decoder per call.
DECODER = json.JSONDecoder(parse_constant=refuse_constant, object_pairs_hook=_object)


def check_text(path: Path, wanted: str) -> None:
    """UserError for a file that is not ``wanted``, a text format whose name begins with JSONL, JSON, CSV or TSV."""
    try:
        head = next(blocks(path), b"")[:_HEAD]
    except DamagedFile:
        return  # the reader says where
    kind = next((kind for mark, kind in _KINDS if head.startswith(mark)), None)
    if head[257:262] == b"ustar":
        kind = "a tar archive"
    if kind is None and not head.startswith(_MARKS) and b"\0" in head:
        kind = "no text (or UTF-16 without a byte order mark)"
    text = head.decode("utf-16" if head.startswith(_MARKS[1:]) else "utf-8-sig", "ignore").lstrip()
    if kind is None and text[:14].lower().startswith(("<!doctype", "<html", "<?xml")):
        kind = "a page of HTML or XML"
    array = re.match(r"\[\s*(\{|$)", text) is not None
    if kind is None and text:
        if wanted.startswith("JSONL") and not array:
            lines = [line.lstrip()[:1] for line in text.split("\n")[:2] if line.strip()]
            kind = f"no file of JSON objects (it begins with {text.splitlines()[0][:40]!r})" if "{" not in lines else None
        elif wanted.startswith("JSONL"):
            kind = "one JSON array"
        elif wanted.startswith(("CSV", "TSV")) and (array or re.match(r'\{\s*"', text)):
            kind = "JSON"
    if kind is not None:
        raise UserError(f"{path}: is {kind}, not {wanted}")


def _tsv_rows(path: Path, report: ReadReport | None, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    check_text(path, "TSV (a header, cells separated by tabs)")
    lines = text_lines(path, report, whole=True)
    names = next(lines, (0, ""))[1].split("\t")
    _check_header(path, names, columns)
    for number, line in lines:
        if report is not None:
            report.counts["records"] += 1
        cells = line.split("\t")
        if len(cells) == len(names):
            yield f"{path}:{number}", dict(zip(names, cells, strict=True))
        else:
            refuse(report, f"{path}:{number}", "another number of cells than the header", f" ({len(cells)} separated by tabs, not {len(names)})")


def _csv_rows(path: Path, report: ReadReport | None, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    check_text(path, "CSV (a header, cells separated by commas)")
    number = 0

    def fed() -> Iterator[str]:
        nonlocal number
        for number, line in text_lines(path, report, whole=True):  # noqa: B007
            yield f"{line}\n"

    reader = csv.reader(fed(), strict=True)
    try:
        names = next(reader, [])
        _check_header(path, names, columns)
        for cells in reader:
            if report is not None:
                report.counts["records"] += 1
            if len(cells) == len(names):
                yield f"{path}:{number}", dict(zip(names, cells, strict=True))
            else:
                refuse(report, f"{path}:{number}", "another number of cells than the header", f" ({len(cells)}, not {len(names)})")
    except csv.Error as error:
        raise UserError(f"{path}:{number}: not CSV ({error})") from None


def _check_header(path: Path, names: list[str], columns: Sequence[str]) -> None:
    missing = next((column for column in columns if column not in names), None)
    if missing is not None and names != [""]:  # an empty file has no header
        raise UserError(f"{path}: the header lacks the column {missing!r} (has: {', '.join(names)[:200]})")
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise UserError(f"{path}: the header has the column {twice!r} twice")


def _parquet_rows(path: Path, report: ReadReport | None, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            _check_header(path, file.schema_arrow.names, columns)
            for batch in batches_of(file, _ROWS_AT_ONCE):
                batch.validate(full=True)
                for row in batch.to_pylist():
                    if report is not None:
                        report.counts["records"] += 1
                    yield f"{path}: row {number}", row
                    number += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        raise UserError(f"{path}: not a readable Parquet file (at row {number}: {str(error).splitlines()[0]})") from None


def number_of(value: Any) -> float | None:
    """The finite number that a value is or spells ("4.5", not "1_0"); None for anything else, truth values too."""
    if isinstance(value, str):
        value = value.strip()
        if len(value) > 400 or not _NUMBER.fullmatch(value):
            return None
    elif isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


class SplitRows:
    """The rows of one split of a table file: those with its name in the column ``split``, or all where there is no such column.

    Args:
        path: the file, as `table_rows` reads it.
        split: the wanted one.
        report, columns: as `table_rows`.

    Raises:
        UserError: while rows are read, for a row that has no split where others have; after the last one, where none is of
            the split.
    """

    def __init__(self, path: Path | str, split: str, report: ReadReport | None = None, columns: Sequence[str] = ()) -> None:
        self.path, self.split, self._report, self._columns = Path(path), split, report, columns
        self.others: Counter[str] = Counter()
        self._column: bool | None = None

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        self.others.clear()
        self._column, kept = None, 0
        for place, row in table_rows(self.path, self._report, self._columns):
            if self._column is None:
                self._column = "split" in row
            if self._column != ("split" in row) or (self._column and not (isinstance(row["split"], str) and row["split"].strip())):
                refuse(self._report, place, "has no split where other rows have one, or the reverse")
            elif not self._column or row["split"].strip() == self.split:
                kept += 1
                yield place, row
            else:
                self.others[row["split"].strip()] += 1
        if not kept and self.others:
            raise UserError(f"{self.path}: has no row of the split {self.split!r} (its column 'split' has: {', '.join(sorted(self.others)[:10])})")

    def facts(self) -> Mapping[str, Any]:
        """What a result's row says once the rows are read: ``split`` and how many rows are of ``other_splits``; nothing without the column."""
        return {"split": self.split, "other_splits": self.others.total()} if self._column else {}
