"""Rows of tables: every format gives the same ones, a split is chosen by its column, and what is of another kind is named."""

from __future__ import annotations

import csv
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lightning_e5.errors import UserError
from lightning_e5.files.parquet import write_parquet
from lightning_e5.files.rows import SplitRows, number_of, parse_json, table_rows
from lightning_e5.types import ReadReport

ROWS = [{"name": 'a "quoted", cell', "value": "1"}, {"name": "line\u2028separator ü", "value": "2.5"}, {"name": "x", "value": ""}]


def written(path: Path, rows: list[dict[str, Any]], encoding: str = "utf-8") -> Path:
    """A table in the format of its ending."""
    stem = path.name.removesuffix(".gz")
    if stem.endswith(".parquet"):
        write_parquet(path, pa.Table.from_pylist(rows))
        return path
    if stem.endswith(".jsonl"):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    elif stem.endswith(".csv"):
        with path.open("w", newline="", encoding="utf-8") as handle:
            csv.writer(handle).writerows([rows[0].keys(), *(row.values() for row in rows)])
        text = path.read_bytes().decode()
    else:
        text = "".join("\t".join(map(str, cells)) + "\n" for cells in ([*rows[0]], *(row.values() for row in rows)))
    data = text.encode(encoding)
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["t.jsonl", "t.json.gz", "t.csv", "t.CSV.gz", "t.tsv", "t.txt.gz", "t.parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str, encoding: str) -> None:
    path = written(tmp_path / name.lower(), ROWS, encoding) if "json" not in name else written(tmp_path / name.replace("json.gz", "jsonl.gz"), ROWS, encoding)
    found, report = list(table_rows(path)), ReadReport()
    assert [row for _, row in found] == ROWS and list(table_rows(path, report)) == found
    assert report.counts == {"records": 3} and not report.bad
    header = 0 if "json" in name else 1
    assert [place for place, _ in found] == ([f"{path}: row {n}" for n in range(3)] if "parquet" in name else [f"{path}:{n + header}" for n in (1, 2, 3)])


KINDS: dict[str, tuple[bytes, str]] = {
    "parquet": (b"PAR1" + bytes(40), "a Parquet file"),
    "gzip": (gzip.compress(b'{"a": 1}'), r"a gzip file, whose name must end in \.gz"),
    "zip": (b"PK\x03\x04" + bytes(40), "a zip archive"),
    "tar": (b"collection.tsv".ljust(257, b"\0") + b"ustar\x0000".ljust(255, b"\0"), "a tar archive"),
    "page": (b"<!DOCTYPE html><title>404</title>", "a page of HTML or XML"),
    "binary": (b"a\0b\0c\0", "no text"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "wanted"), [("t.jsonl", "JSONL"), ("t.csv", "CSV"), ("t.tsv", "TSV")])
@pytest.mark.parametrize("counted", [False, True])
def test_a_file_of_another_kind_is_named(tmp_path: Path, kind: str, name: str, wanted: str, counted: bool) -> None:
    content, said = KINDS[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: is {said}.*, not {wanted}") as raised:
        list(table_rows(tmp_path / name, ReadReport() if counted else None))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.jsonl", "a,b\n1,2\n", r"t\.jsonl: is no file of JSON objects \(it begins with 'a,b'\), not JSONL"),
        ("t.json", '[{"a": 1},\n {"a": 2}]', r"t\.json: is one JSON array, not JSONL"),
        ("t.tsv", '{"a": 1}\n', r"t\.tsv: is JSON, not TSV"),
        ("t.csv", '[{"a": 1}]', r"t\.csv: is JSON, not CSV"),
        ("t.jsonl.gz", '{"a": 1}\n', r"t\.jsonl\.gz: does not begin as a gzip file"),
        ("t.parquet", "a,b\n", r"t\.parquet: not a readable Parquet file"),
        ("t.tsv", "a\tb\ta\n1\t2\t3\n", r"t\.tsv: the header has the column 'a' twice"),
        ("t.tsv", "b\tc\n1\t2\n", r"t\.tsv: the header lacks the column 'a' \(has: b, c\)"),
        ("t.csv", "b,c\n", r"t\.csv: the header lacks the column 'a' \(has: b, c\)"),
        ("t.csv", 'a,b\n"x" y,2\n', r"t\.csv:2: not CSV"),
        ("t.csv", "a,b\n1\n", r"t\.csv:2: another number of cells than the header \(1, not 2\)"),
        ("t.jsonl", '{"a": 1}\n{"a": [' + "[" * 100_000 + "\n", r"t\.jsonl:2: not JSON \(nested too deep\)"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as raised:
        list(table_rows(tmp_path / name, columns=["a"]))
    assert "\n" not in str(raised.value)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    for place, message in (("pipe.jsonl", "is no regular file"), (".", "is a directory, not a file"), ("absent.csv", "no such file")):
        with pytest.raises(UserError, match=message):
            table_rows(tmp_path / place)
    with pytest.raises(UserError, match="/dev/zero: is no regular file"):
        table_rows("/dev/zero")


def test_an_archive_that_breaks_off_is_never_read_to_the_break(tmp_path: Path) -> None:
    path = written(tmp_path / "t.jsonl.gz", ROWS * 500)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"t\.jsonl\.gz: .* archive breaks off"):
        list(table_rows(path, ReadReport()))


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.tsv", "t.parquet"])
def test_a_split_is_chosen_by_its_column(tmp_path: Path, name: str) -> None:
    rows = [{"split": split, "genre": "news", "sid": str(n), "text": f"{split} {n}"} for split in ("train", "dev", "test") for n in range(3)]
    chosen = SplitRows(written(tmp_path / name, rows), "test")
    for _ in range(2):
        assert [row["text"] for _, row in chosen] == ["test 0", "test 1", "test 2"]
        assert chosen.facts() == {"split": "test", "other_splits": 6}
    with pytest.raises(UserError, match=r"has no row of the split 'valid' \(its column 'split' has: dev, test, train\)"):
        list(SplitRows(tmp_path / name, "valid"))
    plain = SplitRows(written(tmp_path / f"plain-{name}", [{"text": "a"}, {"text": "b"}]), "test")
    assert len(list(plain)) == 2 and plain.facts() == {}


@pytest.mark.parametrize("second", [{"text": "b"}, {"text": "b", "split": None}, {"text": "b", "split": " "}, {"text": "b", "split": 3}])
def test_a_row_without_a_split_among_others_is_refused(tmp_path: Path, second: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"t\.jsonl:2: has no split where other rows have one"):
        list(SplitRows(written(tmp_path / "t.jsonl", [{"text": "a", "split": "test"}, second]), "test"))


@pytest.mark.parametrize(("value", "number"), [("4.5", 4.5), (" 3 ", 3.0), ("-1e2", -100.0), (".5", 0.5), (2, 2.0), (1.5, 1.5), ("5.", 5.0)])
def test_numbers(value: Any, number: float) -> None:
    assert number_of(value) == number


@pytest.mark.parametrize("value", ["1_0", "3,8", "\u0663", "nan", "inf", float("nan"), 10**400, "1e999", "9" * 10_000, "0x1", "", True, None, [1], "1 2"])
def test_what_is_no_number(value: Any) -> None:
    assert number_of(value) is None


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": -Infinity}', '{"a": 1, "a": 2}', '"\\ud83d"', '{"\\uDE00": 1}', "[" * 200_000, '{"a": ' + "1" * 5000 + "}", "{", ""])
def test_what_is_no_json(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)
    assert parse_json('{"a": "\\ud83d\\ude00", "b": {"a": 1}}') == {"a": "\U0001f600", "b": {"a": 1}}
