"""Pair classification: average precision and threshold against a count by hand, and the formats' faults."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lightning_e5.errors import UserError
from lightning_e5.evaluation.tasks.pair_classification import PairClassificationTask, best_threshold
from lightning_e5.files.parquet import write_parquet

HEADER = "label\tsentence1\tsentence2"


def plane(cosine: float) -> list[float]:
    return [cosine, float(np.sqrt(1 - cosine**2))]


def test_average_precision_by_hand(table) -> None:  # type: ignore[no-untyped-def]
    cosines, labels = [0.9, 0.8, 0.6, 0.3], [1, 0, 1, 0]
    vectors = {f"a{i}": [1.0, 0.0] for i in range(4)} | {f"b{i}": plane(c) for i, c in enumerate(cosines)}
    task = PairClassificationTask("toy", [f"a{i}" for i in range(4)], [f"b{i}" for i in range(4)], np.array(labels))
    result = task.evaluate(table(vectors))
    assert result.value == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert result.others["accuracy"] == 0.75 and result.others["threshold"] == pytest.approx(0.9)
    assert result.low <= result.value <= result.high and result.items == 4


def test_the_threshold_is_the_best_of_all() -> None:
    draw = np.random.default_rng(0)
    for _ in range(30):
        cosines = draw.integers(6, size=12).astype(np.float32) / 6
        labels = draw.integers(2, size=12)
        tried = [np.mean((cosines >= t) == labels) for t in [*np.unique(cosines), 2.0]]
        accuracy, threshold = best_threshold(cosines, labels)
        assert accuracy == pytest.approx(max(tried)) and np.mean((cosines >= threshold) == labels) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\ta\tb\n", r"pairs\.tsv: the header lacks the column 'label' \(has: 1, a, b\)"),
        (f"{HEADER}\n1\ta\n", r"pairs\.tsv:2: another number of cells than the header \(2 separated by tabs, not 3\)"),
        (f"{HEADER}\n0\ta\tb\n2\ta\tb\n", r"pairs\.tsv:3: the label '2' is not 0 or 1"),
        (f"{HEADER}\nyes\ta\tb\n", r"pairs\.tsv:2: the label 'yes' is not 0 or 1 \(nor false or true\)"),
        (f"{HEADER}\n1\ta\t \n", r"pairs\.tsv:2: the key 'sentence2' is not a text"),
        (f"{HEADER}\n1\ta\tb\n", r"pairs\.tsv: needs pairs of both labels"),
    ],
)  # fmt: skip
def test_faults_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "pairs.tsv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        PairClassificationTask.load(tmp_path / "pairs.tsv")


@pytest.mark.parametrize("labels", [(0, 1), (0.0, 1.0), ("0", "1"), ("0.0", "1.0"), (False, True), ("False", "TRUE")])
def test_labels_in_every_type(tmp_path: Path, labels: tuple[object, object]) -> None:
    rows = [{"label": labels[i % 2], "sentence1": f"a{i}", "sentence2": f"b{i}"} for i in range(4)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    write_parquet(tmp_path / "pairs.parquet", pa.Table.from_pylist(rows))
    for name in ("pairs.jsonl", "pairs.parquet"):
        assert PairClassificationTask.load(tmp_path / name).labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("label", [-1, "duplicate", None, 0.5, "1_0", float("1e300"), [1]])
def test_another_label_is_named(tmp_path: Path, label: object) -> None:
    rows = [{"label": 0, "sentence1": "a", "sentence2": "b"}, {"label": label, "sentence1": "a", "sentence2": "b"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    with pytest.raises(UserError, match=r"pairs\.jsonl:2: the label .* is not 0 or 1"):
        PairClassificationTask.load(tmp_path / "pairs.jsonl")


def test_jsonl_is_read_too(tmp_path: Path) -> None:
    rows = [{"label": i % 2, "sentence1": f"a{i}", "sentence2": f"b{i}"} for i in range(4)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    task = PairClassificationTask.load(tmp_path / "pairs.jsonl")
    assert (task.name, task.labels.tolist(), task.first[3]) == ("pairs", [0, 1, 0, 1], "a3")
