"""Tables of pairs: CSV with any delimiter, TSV, JSONL, JSON arrays and Parquet, in the encoding that they are in."""

from __future__ import annotations

import csv
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_modules.finetune.records import json_array, string
from lightning_e5.errors import UserError
from lightning_e5.files.charset import guessed_encoding
from lightning_e5.files.lines import lines
from lightning_e5.files.rows import check_text, refuse, table_format, table_rows
from lightning_e5.files.streams import DamagedFile, blocks, regular_file
from lightning_e5.types import ReadReport

#: Endings of tables, each also with ``.gz``, ``.bz2``, ``.xz`` or ``.zst``, but for Parquet.
ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
_PACKED = (".gz", ".bz2", ".xz", ".zst")
DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
#: Bytes by which the encoding is told, and rows by which the delimiter is.
_HEAD_BYTES = 2**20
_HEAD_ROWS = 50


@dataclass(frozen=True, slots=True)
class TableFormat:
    """How a table's file is read.

    kind: ``csv``, ``tsv``, ``jsonl``, ``json`` (one array) or ``parquet``. delimiter, encoding: of a CSV or TSV file; quoted: whether
    its cells may be in double quotes.
    """

    kind: str
    delimiter: str = ""
    encoding: str = "utf-8"
    quoted: bool = True

    def sentence(self) -> str:
        """``CSV, separated by semicolons, cp1252``."""
        said = [{"json": "JSON array", "parquet": "Parquet"}.get(self.kind, self.kind.upper())]
        said += [f"separated by {DELIMITERS[self.delimiter]}s"] if self.delimiter else []
        return ", ".join(said + ([self.encoding] if self.delimiter else []))


def is_table(path: Path) -> bool:
    """Whether a file's ending is that of a table."""
    name = path.name.lower()
    for packed in _PACKED:
        name = name.removesuffix(packed)
    return name.endswith(ENDINGS)


def detect_format(path: Path) -> TableFormat:
    """How a table is to be read, from its ending and its first MiB.

    Raises:
        UserError: the file is of another kind than its ending says, is empty, or no delimiter parts its rows into equal numbers of cells.
    """
    kind = table_format(regular_file(path))
    if kind == "parquet":
        return TableFormat("parquet")
    head = _head(path)
    if not head.strip(b" \t\r\n\xef\xbb\xbf"):
        raise UserError(f"{path}: is empty")
    if kind == "jsonl":
        return TableFormat("json" if head.lstrip(b" \t\r\n\xef\xbb\xbf").startswith(b"[") and not _is_row_of_array(head) else "jsonl")
    check_text(path, f"{kind.upper()} (a header and cells)")
    encoding = _encoding(head)
    lines_read = [line for _, line in itertools.islice(_decoded(path, encoding, ReadReport()), 4 * _HEAD_ROWS)]
    delimiter, quoted = _delimiter(path, lines_read, "," if kind == "csv" else "\t")
    return TableFormat(kind, delimiter, encoding, quoted)


def rows_of(path: Path, format: TableFormat, report: ReadReport) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place ``file:line``, row) of a table; what is no row is in ``report``.

    Raises:
        UserError: the file is cut off or of another kind, its header has a column twice, or a quote is never closed.
    """
    if format.kind == "json":
        return json_array(path, report)
    if format.delimiter:
        return _cells(path, format, report)
    return table_rows(path, report)


def column_names(path: Path, format: TableFormat) -> list[str]:
    """The columns of a table; of JSON those of its first 20 objects."""
    if format.kind == "parquet":
        from lightning_e5.files.parquet import parquet_columns

        return parquet_columns(path)
    first = itertools.islice(rows_of(path, format, ReadReport()), 1 if format.delimiter else 20)
    names = list(dict.fromkeys(name for _, row in first for name in row))
    if not names:
        raise UserError(f"{path}: has no row")
    return names


def count_rows(path: Path, format: TableFormat) -> int:
    """About how many rows a table has: exact for Parquet, else its lines without the header (a quoted cell may have several)."""
    if format.kind == "parquet":
        import pyarrow.parquet as pq

        return int(pq.read_metadata(path).num_rows)
    try:
        found = sum(block.count(b"\n") for block in blocks(path))
    except DamagedFile as damage:
        raise UserError(str(damage)) from None
    return max(0, found - bool(format.delimiter))


def _head(path: Path) -> bytes:
    head = b""
    try:
        for block in blocks(path):
            head += block
            if len(head) >= _HEAD_BYTES:
                break
    except DamagedFile as damage:
        if not head:
            raise UserError(str(damage)) from None
    return head[:_HEAD_BYTES]


def _is_row_of_array(head: bytes) -> bool:
    """Whether a file that begins with [ has a whole array on its first line and another one below: JSONL of arrays."""
    first, _, rest = head.lstrip().partition(b"\n")
    return first.rstrip().endswith(b"]") and rest.lstrip().startswith(b"[")


def _encoding(head: bytes) -> str:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-8"  # `lines` decodes by the mark
    try:
        head[: head.rfind(b"\n") + 1 or len(head)].decode("utf-8")
    except UnicodeDecodeError:
        # A few wrong bytes in a text of UTF-8 are bad rows, not another encoding.
        wrong = head.decode("utf-8", "replace").count("\ufffd")
        multibyte = sum(byte >= 0xC2 for byte in head) - wrong
        return "utf-8" if multibyte > 10 * wrong else guessed_encoding(head) or "cp1252"
    return "utf-8"


def _decoded(path: Path, encoding: str, report: ReadReport) -> Iterator[tuple[int, str]]:
    """(number, line with its end) of a text file; a line that is not in the encoding is counted."""
    for number, line in lines(path, report, whole=True):
        try:
            yield number, line.decode(encoding).removesuffix("\r") + "\n"
        except UnicodeDecodeError:
            refuse(report, f"{path}:{number}", f"not {encoding.upper()}")


def _delimiter(path: Path, head: list[str], usual: str) -> tuple[str, bool]:
    """The delimiter by which most rows have as many cells as the header (at least 2), and whether cells are quoted."""
    best: tuple[float, bool, int, str, bool] | None = None
    for delimiter in DELIMITERS:
        quoted = delimiter != "\t" or any(cell.startswith('"') and cell.endswith('"') and len(cell) > 1 for line in head for cell in line.strip().split("\t"))
        reader = csv.reader(head, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)
        try:
            rows = [row for row in itertools.islice(reader, _HEAD_ROWS) if row]
        except csv.Error:
            continue
        if not rows or len(rows[0]) < 2:
            continue
        share = sum(len(row) == len(rows[0]) for row in rows) / len(rows)
        candidate = (round(share, 1), delimiter == usual, len(rows[0]), delimiter, quoted)
        best = max(best or candidate, candidate)
    if best is None:
        raise UserError(f"{path}: its header {head[0].strip()[:80]!r} is one column whichever of comma, tab, semicolon and bar parts it; pairs need two")
    return best[3], best[4]


def _cells(path: Path, format: TableFormat, report: ReadReport) -> Iterator[tuple[str, dict[str, Any]]]:
    first = number = 0

    def fed() -> Iterator[str]:
        nonlocal number
        for number, line in _decoded(path, format.encoding, report):  # noqa: B007
            yield line

    reader = csv.reader(fed(), delimiter=format.delimiter, quoting=csv.QUOTE_MINIMAL if format.quoted else csv.QUOTE_NONE, strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        twice = next((name for name, count in Counter(names).items() if count > 1), None)
        if twice is not None:
            raise UserError(f"{path}: the header has the column {twice!r} twice")
        first = number + 1
        for cells in reader:
            place, first = f"{path}:{first}", number + 1
            if not cells or (len(cells) == 1 and not cells[0].strip()):
                continue
            report.counts["records"] += 1
            if len(cells) == len(names):
                yield place, dict(zip(names, cells, strict=True))
            else:
                refuse(report, place, f"another number of cells than the {len(names)} of the header")
    except csv.Error as error:
        raise UserError(f"{path}:{first}: the row that begins here is not CSV ({error})") from None


def texts_of(value: Any) -> list[str] | None:
    """The texts of a cell that holds one or a list of them (Parquet, JSON; SQuAD's object with the key ``text``); None for others."""
    if isinstance(value, Mapping):
        value = value.get("text")
    if isinstance(value, list | tuple):
        found = [text for item in value if (text := string(item)) is not None]
        return found if len(found) == len(value) and found else None
    text = string(value)
    return None if text is None else [text]
