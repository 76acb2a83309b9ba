"""The values of single queries and items as one file: those that the metrics are the means of, the same in CSV and Parquet."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from lightning_e5.errors import UserError
from lightning_e5.evaluation.evaluate import evaluate
from lightning_e5.evaluation.load_tasks import TaskSettings, load_tasks
from lightning_e5.evaluation.loaded_models import ModelSpec
from lightning_e5.evaluation.per_query import COLUMNS, PerQueryFile
from lightning_e5.evaluation.statistics.answers import ranking_test, spearman_of
from lightning_e5.evaluation.statistics.decision import holm
from lightning_e5.evaluation.statistics.paired_test import paired_test
from lightning_e5.evaluation.tasks.sts import load_sts
from lightning_e5.files.parquet import read_parquet
from lightning_e5.retrieval.bm25 import BM25


def test_every_task_is_compared_and_kept(tmp_path: Path, encoder_folder: Path, collection: Path, sts_file: Path, task_files: dict[str, Path]) -> None:
    files = [PerQueryFile(tmp_path / "q.csv"), PerQueryFile(tmp_path / "q.parquet")]

    def keep(*one: object) -> None:
        for file in files:
            file.keep(*one)  # type: ignore[arg-type]

    data = {"collections": {"toy": collection}, "sts": {"similar": sts_file}, **{kind: {kind: place} for kind, place in task_files.items()}}
    models = [ModelSpec("bm25", BM25()), ModelSpec("long", encoder_folder), ModelSpec("short", encoder_folder, max_length=5)]
    rows = evaluate(models, load_tasks(data, TaskSettings()), seed=2, reference="long", compare_tasks=True, keep=keep)
    for file in files:
        file.write()
    with (tmp_path / "q.csv").open(encoding="utf-8", newline="") as handle:
        kept = list(csv.DictReader(handle))
    table = read_parquet(tmp_path / "q.parquet", {**dict.fromkeys(COLUMNS, "string"), "value": "double"})
    assert [{**row, "value": float(row["value"])} for row in kept] == table.to_pylist()

    def values(model: str, name: str, metric: str) -> np.ndarray:
        return np.array([float(r["value"]) for r in kept if (r["model"], r["collection"], r["metric"]) == (model, name, metric)])

    found = {(row.model, row.collection): row for row in rows}
    for key in (("bm25", "toy"), ("short", "toy"), ("short", "reranking"), ("short", "classification")):
        row = found[key]
        assert values(row.model, row.collection, row.metric).mean() == pytest.approx(row.value) and len(values(*key, row.metric)) == row.queries
    compared = {key: row.difference for key, row in found.items() if row.difference is not None}
    assert set(compared) == {("bm25", "toy"), *(("short", name) for name in ("toy", "similar", "classification", "pair_classification", "reranking"))}
    again = paired_test(values("short", "reranking", "map"), values("long", "reranking", "map"), seed=2)
    assert (compared["short", "reranking"].difference, compared["short", "reranking"].p_value) == pytest.approx((again.mean, again.p_value))
    similar = [values(model, "similar", "cosine") for model in ("short", "long")]
    of_pairs = ranking_test(*similar, measure=spearman_of(load_sts(sts_file).scores), seed=2)
    difference = compared["short", "similar"]
    assert (difference.difference, difference.low, difference.high, difference.p_value) == (of_pairs.mean, of_pairs.low, of_pairs.high, of_pairs.p_value)
    assert difference.difference == pytest.approx(found["short", "similar"].value - found["long", "similar"].value)
    assert [d.p_holm for d in compared.values()] == holm([d.p_value for d in compared.values()])  # all tasks together
    assert not len(values("short", "clustering", "v_measure"))


@pytest.mark.parametrize("name", ["q.txt", "q"])
def test_another_ending_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"--per-query: .*not in \.csv or \.parquet"):
        PerQueryFile(tmp_path / name)
