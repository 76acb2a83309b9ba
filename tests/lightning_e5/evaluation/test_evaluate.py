"""`evaluate` by itself: models and tasks in, rows out, the same ones that the stage writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir.data import load_beir
from lightning_e5.evaluation.evaluate import evaluate
from lightning_e5.evaluation.load_tasks import TaskSettings, load_tasks
from lightning_e5.evaluation.loaded_models import ModelSpec
from lightning_e5.evaluation.tasks.retrieval import CollectionTask
from lightning_e5.evaluation.tasks.sts import STSTask, load_sts
from lightning_e5.evaluation.validation_tasks import EvaluateOn
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.training_record import UNTRAINED
from lightning_e5.report.tables.evaluation import labelled
from lightning_e5.result_row import flat
from lightning_e5.results.result_files import read_rows
from lightning_e5.retrieval.bm25 import BM25
from lightning_e5.stages.evaluate import evaluate as stage


def test_models_and_tasks_give_rows(tmp_path: Path, encoder_folder: Path, collection: Path, sts_file: Path) -> None:
    models = [ModelSpec("bm25", BM25()), ModelSpec("small", encoder_folder)]
    data = {"collections": {"toy": collection}, "sts": {"similar": sts_file}}
    rows = evaluate(models, load_tasks(data, TaskSettings(cosines=True)), seed=3, reference="bm25", out=tmp_path / "out")
    assert [(row.model, row.collection, row.metric) for row in rows] == [
        ("bm25", "toy", "ndcg@10"), ("small", "toy", "ndcg@10"), ("small", "similar", "spearman"),
    ]  # fmt: skip
    assert rows[0].difference is None and rows[1].difference is not None and rows[2].texts is not None
    metrics = stage(tmp_path / "stage", **data, encoders={"small": encoder_folder}, baselines={"bm25": BM25()}, reference="bm25", seed=3)
    assert metrics == flat(rows) and read_rows(tmp_path / "stage") == read_rows(tmp_path / "out") == rows
    names = [{p.relative_to(tmp_path / out) for p in (tmp_path / out).rglob("*")} for out in ("stage", "out")]
    assert names[0] == names[1] and Path("small/toy/cosines.parquet") in names[0]


def test_nothing_is_written_unasked(tmp_path: Path, encoder_folder: Path, sts_file: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    (row,) = evaluate([ModelSpec("small", encoder_folder)], [STSTask(load_sts(sts_file, "similar"))])
    assert row.queries == 40 and row.metrics["spearman_low"] <= row.value and set(tmp_path.rglob("*")) == before


def test_a_set_that_chose_the_weights_is_refused_unless_it_is_meant(tmp_path: Path, encoder_folder: Path, collection: Path, sts_file: Path) -> None:
    (chosen_on,) = EvaluateOn(collections={"validation": collection}).identities().values()
    UNTRAINED.after("pretrain", {"pairs_seen": 4.0}, None, selected_on=chosen_on).save(encoder_folder)
    models = [ModelSpec("bm25", BM25()), ModelSpec("small", encoder_folder)]
    with pytest.raises(UserError, match=r"toy: chose the step whose weights small has, .*\(--selected-on-this"):
        evaluate(models, load_tasks({"collections": {"toy": collection}}, TaskSettings()))
    data = {"collections": {"toy": collection}, "sts": {"similar": sts_file}}
    rows = evaluate(models, load_tasks(data, TaskSettings()), out=tmp_path / "out", selected_on_this=True)
    assert [row.facts.get("selected_on_this") for row in rows] == [None, True, None]
    assert [labelled(row.as_json()) for row in rows] == ["bm25", "small (chosen on this set)", "small"]
    assert read_rows(tmp_path / "out") == rows


def test_loaded_models_and_texts_in_memory_give_the_rows_of_their_folders(encoder_folder: Path, collection: Path) -> None:
    data = load_beir(collection)
    rows = evaluate([ModelSpec("small", encoder_folder), ModelSpec("bm25", BM25())], load_tasks({"collections": {"toy": collection}}, TaskSettings()), reference="bm25")
    qrels = {**data.qrels, "forgotten": {"d0": 1}}
    task = CollectionTask.from_texts({**data.queries, "not judged": "x"}, data.corpus, qrels, name="toy")
    for model in (TextEncoder.from_pretrained(encoder_folder), encoder_folder, str(encoder_folder)):
        found = evaluate({"small": model, "bm25": BM25()}, [task], reference="bm25")
        assert [(row.value, row.low, row.high, row.others, row.difference) for row in found] == [(row.value, row.low, row.high, row.others, row.difference) for row in rows]
    assert found[0].facts["left_out"] == {"queries_without_text": 1} and "left_out" not in rows[0].facts
    with pytest.raises(UserError, match="no such model folder"):
        evaluate({"small": "./not-there"}, [task])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"corpus": {}}, "toy: the corpus has 0 documents"),
        ({"qrels": {"q": {"d": 0}}}, "toy: 0 queries with a text and a relevant judgement"),
        ({"qrels": {"other": {"d": 1}}}, "toy: 0 queries with a text and a relevant judgement"),
        ({"queries": {"q": 3}}, "number 0 is a int, not a text"),
    ],
)
def test_texts_that_make_no_collection(changed: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {"queries": {"q": "a"}, "corpus": {"d": "a"}, "qrels": {"q": {"d": 1}}, **changed}
    with pytest.raises(UserError, match=said):
        CollectionTask.from_texts(**given, name="toy")
