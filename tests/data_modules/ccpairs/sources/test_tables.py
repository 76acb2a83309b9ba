"""Pairs by column names from Parquet files, JSON lines and data sets on the disk; no network."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_modules.ccpairs.sources.tables import HfDatasetPairs, JsonlPairs, ParquetPairs
from lightning_e5.errors import UserError
from lightning_e5.types import PairCandidate, ReadReport


def read(source: Any) -> tuple[list[PairCandidate], ReadReport]:
    report = ReadReport()
    return [pair for part in source.parts() for pair in source.read(part, report)], report


def parquet(path: Path, columns: dict[str, Any], **settings: Any) -> str:
    pq.write_table(pa.table(columns), path, compression="zstd", **settings)
    return str(path)


def jsonl(path: Path, rows: list[Any]) -> str:
    text = b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return str(path)


def test_parquet_columns(tmp_path: Path) -> None:
    path = parquet(tmp_path / "yahoo.parquet", {
        "title": ["Why?", None, "How?", "Where?"], "body": ["Because?", "Long", "", None], "answer": ["So.", "A", None, "Here."],
        "score": [3, 1, 1, None], "from": ["y", "y", "y", "z"], "id": [7, 8, 9, 10],
    })  # fmt: skip
    pairs, report = read(
        ParquetPairs(
            [path], query=["title", "body"], passage="answer", source_column="from", id_column="id", facts=["score"]
        )
    )
    assert pairs == [
        PairCandidate("Why?\nBecause?", "So.", "y", "7", "passage", {"score": 3}),
        PairCandidate("Long", "A", "y", "8", "passage", {"score": 1}),
        PairCandidate("Where?", "Here.", "z", "10", "passage", {}),
    ]
    assert report.counts == {"records": 4, "pairs": 3, "skipped: no passage": 1}
    pairs, _ = read(ParquetPairs([path], query="title", passage="answer", name="yahoo", facts={"votes": "score"}))
    assert pairs[0] == PairCandidate("Why?", "So.", "yahoo", "", "passage", {"votes": 3})


def test_parquet_list_column_and_files_as_parts(tmp_path: Path) -> None:
    for name in "ba":
        parquet(tmp_path / f"{name}.parquet", {"q": [name, "x"], "p": [["1", "2"], []]})
    source = ParquetPairs([str(tmp_path / "*.parquet")], query="q", passage="p")
    assert [Path(part).name for part in source.parts()] == ["a.parquet", "b.parquet"]
    assert [(p.query, p.passage) for p in read(source)[0]] == [("a", "1"), ("a", "2"), ("b", "1"), ("b", "2")]


def test_parquet_bad_files_and_values(tmp_path: Path) -> None:
    good = {"query": ["a", "b", "c"], "passage": ["1", "2", "3"]}
    path = parquet(tmp_path / "a.parquet", good)
    with pytest.raises(UserError, match=r"a\.parquet: lacks the column 'quary'; did you mean 'query'"):
        read(ParquetPairs([path], query="quary"))
    with pytest.raises(UserError, match=r"lacks the column 'score'"):
        read(ParquetPairs([path], facts=["score"]))
    for damaged in (b"", b"PAR1", b"x" * 100, Path(path).read_bytes()[:-20]):
        (tmp_path / "b.parquet").write_bytes(damaged)
        with pytest.raises(UserError, match=r"b\.parquet: not a readable Parquet file"):
            read(ParquetPairs([str(tmp_path / "b.parquet")]))
    offsets, data = pa.array([0, 1, 2, 3], pa.int32()).buffers()[1], pa.py_buffer(b"a\xffc")
    bad_text = pa.StringArray.from_buffers(3, offsets, data)
    pairs, report = read(
        ParquetPairs([parquet(tmp_path / "c.parquet", {"query": bad_text, "passage": [1, None, None]})])
    )
    assert pairs == [] and report.bad == [
        (f"{tmp_path / 'c.parquet'}:row 0", "column 'passage' holds no text"),
        (f"{tmp_path / 'c.parquet'}:row 1", "column 'query' is not UTF-8"),
    ]
    assert report.counts["skipped: no passage"] == 1


def test_parquet_damaged_in_a_later_row_group(tmp_path: Path) -> None:
    rows = 8192
    path = Path(
        parquet(
            tmp_path / "a.parquet",
            {"query": [f"q{i}" for i in range(rows)], "passage": [f"p{i * i}" for i in range(rows)]},
            row_group_size=1024,
        )
    )
    start = pq.ParquetFile(path).metadata.row_group(5).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 64] = b"\xff" * 64
    path.write_bytes(data)
    pairs, report = read(ParquetPairs([str(path)]))
    assert 1024 <= len(pairs) <= 5 * 1024
    assert report.bad == [(f"{path}:row {len(pairs)}", "Parquet file is damaged, the rest is not read")]


def test_parquet_is_read_in_pieces(tmp_path: Path) -> None:
    n = 8_000  # rows of 10 kB, all in one row group
    columns = {"query": [str(i) for i in range(n)], "passage": [f"{i}" + "x" * 10_000 for i in range(n)]}
    path = parquet(tmp_path / "a.parquet", columns, use_dictionary=False, row_group_size=n)
    del columns
    source, report, start, held = ParquetPairs([path]), ReadReport(), pa.total_allocated_bytes(), 0
    for _ in source.read(path, report):
        held = max(held, pa.total_allocated_bytes() - start)
    assert report.counts["pairs"] == n and 0 < held < 40e6


def test_jsonl_objects(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"question": "how tall?", "answer": "Very.", "lang": "en"},
        {"question": None, "answer": "x"},
        {"question": 3, "answer": "x"},
        {"question": "no answer"},
        [1],
        b"{broken",
        b'{"question": "a", "answer": "\xff"}',
        {"question": "half \ud83d", "answer": "pair"},
    ]
    path = jsonl(tmp_path / "gooaq.jsonl.gz", rows)
    pairs, report = read(
        JsonlPairs([path], query="question", passage="answer", name="gooaq", facts={"language": "lang"})
    )
    assert [(p.query, p.passage, p.source, dict(p.facts)) for p in pairs] == [
        ("how tall?", "Very.", "gooaq", {"language": "en"}),
        ("half \ufffd", "pair", "gooaq", {}),
    ]
    assert report.bad == [
        (f"{path}:3", "column 'question' holds no text"),
        (f"{path}:4", "lacks the column 'answer'"),
        (f"{path}:5", "not a JSON object"),
        (f"{path}:6", "not JSON"),
        (f"{path}:7", "not UTF-8"),
    ]
    with pytest.raises(UserError, match=r"gooaq\.jsonl\.gz:1: lacks the column 'questions'; did you mean 'question'"):
        read(JsonlPairs([path], query="questions", passage="answer"))


def test_jsonl_arrays_by_position(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "wikihow.jsonl.gz", [["q", "p"], ["q2", "p2", "n2"], ["q3"], {"0": "x"}, ["", "p"]])
    pairs, report = read(JsonlPairs([path], query=0, passage=1, name="wikihow"))
    assert [(p.query, p.passage) for p in pairs] == [("q", "p"), ("q2", "p2")]
    assert report.bad == [(f"{path}:3", "lacks the column 1"), (f"{path}:4", "not a JSON array")]
    assert report.counts["skipped: no query"] == 1
    path = jsonl(
        tmp_path / "lists.jsonl", [{"query": "q", "pos": ["a", "b"], "neg": ["c"]}, {"query": "q", "pos": [1]}]
    )
    pairs, report = read(JsonlPairs([path], passage="pos"))
    assert [p.passage for p in pairs] == ["a", "b"] and len(report.bad) == 1


def test_bad_column_settings(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [["q", "p"]])
    for settings, message in (
        ({"query": 0, "passage": "p"}, "by name or by position, not both"),
        ({"query": [], "passage": "p"}, "query: is an empty list"),
        ({"query": -1, "passage": 1}, "positions count from 0"),
    ):
        with pytest.raises(UserError, match=message):
            JsonlPairs([path], **settings)


def test_hugging_face_folder_and_builder(tmp_path: Path) -> None:
    import datasets

    data = datasets.Dataset.from_dict({"anchor": ["a", "b", None], "positive": ["1", "2", "3"], "score": [1, 2, 3]})
    data.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": data, "test": data.select([1])}).save_to_disk(str(tmp_path / "several"))
    columns: dict[str, Any] = {"query": "anchor", "passage": "positive", "facts": ["score"]}
    pairs, report = read(HfDatasetPairs(str(tmp_path / "one"), **columns))
    assert [(p.query, p.passage, dict(p.facts)) for p in pairs] == [("a", "1", {"score": 1}), ("b", "2", {"score": 2})]
    assert report.counts == {"records": 3, "pairs": 2, "skipped: no query": 1}
    source = HfDatasetPairs(str(tmp_path / "several"), split="test", **columns)
    assert [p.query for p in read(source)[0]] == ["b"] and source.parts() == [f"{tmp_path / 'several'}:test"]
    file = jsonl(tmp_path / "a.jsonl", [{"anchor": "q", "positive": "p", "score": 1}])
    source = HfDatasetPairs("json", data_files=[file], **columns)
    assert [p.passage for p in read(source)[0]] == ["p"]
    assert source.fingerprint()["files"][0][0] == file
    with pytest.raises(UserError, match="lacks the column 'ancor'; did you mean 'anchor'"):
        read(HfDatasetPairs(str(tmp_path / "one"), query="ancor", passage="positive"))
    with pytest.raises(UserError, match="the data set cannot be had"):
        read(HfDatasetPairs(str(tmp_path / "several"), split="dev", **columns))


def test_hugging_face_without_a_hub_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"^nobody/nothing: the data set cannot be had") as caught:
        read(HfDatasetPairs("nobody/nothing"))
    assert "\n" not in str(caught.value)
    (tmp_path / "a.jsonl").write_text("{}")
    with pytest.raises(UserError, match="is a file; use ParquetPairs or JsonlPairs"):
        HfDatasetPairs(str(tmp_path / "a.jsonl"))
