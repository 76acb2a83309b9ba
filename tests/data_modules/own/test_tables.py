"""Tables in any usual delimiter and encoding; a wrong row has its file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from data_modules.own.tables import TableFormat, column_names, count_rows, detect_format, is_table, rows_of, texts_of
from lightning_e5.errors import UserError
from lightning_e5.files.parquet import write_parquet
from lightning_e5.types import ReadReport

ROWS = [{"query": "Wie heißt das?", "passage": "Straße, mit Komma"}, {"query": "Zwei; Wörter", "passage": "Übrig"}]


def read(path: Path) -> tuple[TableFormat, list[dict[str, str]], ReadReport]:
    report, format = ReadReport(), detect_format(path)
    return format, [row for _, row in rows_of(path, format, report)], report


def csv_text(delimiter: str) -> str:
    return "".join(delimiter.join(f'"{cell}"' for cell in row) + "\r\n" for row in [("query", "passage"), *(tuple(r.values()) for r in ROWS)])


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_delimiter_and_encoding_are_detected(tmp_path: Path, delimiter: str, encoding: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes((csv_text(delimiter) + csv_text(delimiter).partition("\n")[2] * 20).encode(encoding))
    format, rows, report = read(path)
    assert rows[:2] == ROWS and len(rows) == 42 and not report.bad
    assert format.delimiter == delimiter and (format.encoding == "utf-8") == (encoding != "cp1252")


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    texts = {
        "a.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS), "b.json": json.dumps(ROWS), "c.tsv": "query\tpassage\n" + "".join("\t".join(r.values()) + "\n" for r in ROWS),
    }  # fmt: skip
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "d.csv.gz").write_bytes(gzip.compress(csv_text(",").encode()))
    write_parquet(tmp_path / "e.parquet", {name: [row[name] for row in ROWS] for name in ROWS[0]})
    for path in sorted(tmp_path.iterdir()):
        format, rows, _ = read(path)
        assert rows == ROWS and is_table(path) and column_names(path, format) == ["query", "passage"], path
        assert count_rows(path, format) == (0 if format.kind == "json" else 2), path
    assert not is_table(Path("a.txt"))


def test_cells_of_several_lines_and_places(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'query,passage\n"one\n\ntwo",x\nthree\nq,p\nr,\xff\xfe\n')
    report, format = ReadReport(), detect_format(path)
    assert [(place.rpartition(":")[2], row["query"]) for place, row in rows_of(path, format, report)][:2] == [("2", "one\n\ntwo"), ("6", "q")]
    assert report.bad[0] == (f"{path}:5", "another number of cells than the 2 of the header")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"", "is empty"), ("a.csv", b"only one column\nx\n", "is one column"), ("a.csv", b"PAR1xxxx", "is a Parquet file"), ("a.csv", b"a,a\n1,2\n", "'a' twice"),
        ("a.csv", b'a,b\n1,2\n3,"4\n5,6\n', "a.csv:3: the row that begins here is not CSV"), ("a.jsonl", b"a,b\n1,2\n", "is no file of JSON objects"),
        ("a.parquet", b"PAR1", "not a readable Parquet file"), ("no.csv", None, "no such file"), ("a.json", b'[{"a": 1}', "cut off"),
    ],
)  # fmt: skip
def test_files_of_another_kind(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        format = detect_format(tmp_path / name)
        column_names(tmp_path / name, format)
        list(rows_of(tmp_path / name, format, ReadReport()))


def test_texts_of_a_cell() -> None:
    assert texts_of(" a ") == ["a"] and texts_of(["a", "b"]) == ["a", "b"] and texts_of({"text": ["a"]}) == ["a"]
    assert texts_of("") is None and texts_of(3) is None and texts_of([]) is None and texts_of(["a", 1]) is None and texts_of("\ud800") is None
