"""Labelled texts: what is read, and that every fault is named with its file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest

from lightning_e5.errors import UserError
from lightning_e5.evaluation.tasks.classification import ClassificationTask
from lightning_e5.evaluation.tasks.labelled import load_labelled, load_split
from lightning_e5.files.parquet import write_parquet

ROWS = [{"text": "a cat", "label": "animal", "fine": "x"}, {"text": "line\u2028separator", "label": "odd"}]


def written(path: Path, rows: list[object]) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz"])
def test_plain_and_gzipped_rows_are_read(tmp_path: Path, name: str) -> None:
    found = load_labelled(written(tmp_path / name, ROWS))
    assert (found.name, found.texts, found.labels) == ("x", ["a cat", "line\u2028separator"], ["animal", "odd"])
    assert found.places == [f"{tmp_path / name}:{line}" for line in (1, 2)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, r"x\.jsonl:3: the key 'label' is None"),
        ({"text": "x", "label": 1.5}, r"x\.jsonl:3: the key 'label' is 1\.5"),
        ({"text": "x", "label": True}, r"x\.jsonl:3: the key 'label' is True"),
        ({"text": "x", "label": ""}, r"x\.jsonl:3: the key 'label'"),
        ({"text": "x", "label": 3}, r"x\.jsonl:3: the label 3 is of another type than 'animal'"),
        ({"text": "  ", "label": "odd"}, r"x\.jsonl:3: the key 'text'"),
        ({"label": "odd"}, r"x\.jsonl:3: the key 'text'"),
        ('{"text": ', r"x\.jsonl:3: not JSON"),
        ("[1]", r"x\.jsonl:3: not a JSON object"),
    ],
)  # fmt: skip
def test_a_faulty_row_is_named(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        load_labelled(written(tmp_path / "x.jsonl", [*ROWS, row]))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.parquet"])
def test_labels_that_are_whole_floats_are_integers(tmp_path: Path, name: str) -> None:
    rows = [{"text": "a", "label": 0.0}, {"text": "b", "label": 1.0}]
    if name.endswith("parquet"):
        write_parquet(tmp_path / name, pa.Table.from_pylist(rows))
    else:
        (tmp_path / name).write_text("text,label\na,x\nb,y\n" if "csv" in name else "".join(json.dumps(row) + "\n" for row in rows))
    assert load_labelled(tmp_path / name).labels == (["x", "y"] if "csv" in name else [0, 1])


def test_one_label_is_nothing_to_learn(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.jsonl: has 1 labels"):
        load_labelled(written(tmp_path / "x.jsonl", ROWS[:1]))


def test_missing_parts_and_strange_labels_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent: no such directory"):
        load_split(tmp_path / "absent", "test")
    written(tmp_path / "set" / "train.jsonl", ROWS)
    with pytest.raises(UserError, match=r"test\.jsonl: no such file \(nor test\.jsonl\.gz\)"):
        ClassificationTask.load(tmp_path / "set")
    written(tmp_path / "set" / "test.jsonl", [*ROWS, {"text": "y", "label": "animals"}])
    with pytest.raises(UserError, match=r"test\.jsonl:3: the label 'animals' is not in .*train\.jsonl; did you mean 'animal'"):
        ClassificationTask.load(tmp_path / "set")
