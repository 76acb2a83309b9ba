"""What each step of a recipe adds: a row's paired differences to the steps before it, decided together with the table's others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir.collection import load_collection
from lightning_e5.evaluation.beir.cosine_sample import CosineSample, RememberingEncoder
from lightning_e5.evaluation.statistics.decision import holm
from lightning_e5.evaluation.statistics.paired_test import paired_test
from lightning_e5.files.parquet import read_parquet
from lightning_e5.files.storage import read_json
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.report.tables.evaluation import NONE_SHOWN, difference_cell
from lightning_e5.retrieval.bm25 import BM25
from lightning_e5.stages.evaluate import evaluate


def per_query(out: Path, model: str) -> np.ndarray:
    table = read_parquet(out / model / "toy" / "per_query.parquet", {"query_id": "string", "ndcg@10": "double"})
    order = np.argsort(table["query_id"].to_pylist())
    return np.asarray(table["ndcg@10"].to_pylist())[order]


def test_every_comparison_is_the_paired_test_and_all_are_decided_together(tmp_path: Path, encoder_folder: Path, collection: Path) -> None:
    models = {"first": BM25(), "second": BM25(k1=0.3), "third": BM25(b=0.0)}
    evaluate(
        tmp_path, collections={"toy": collection}, baselines=models, encoders={"small": encoder_folder}, reference="first",
        previous={"third": "second", "small": ["third", "second"]}, seed=5,
    )  # fmt: skip
    rows = {row["model"]: row for row in read_json(tmp_path / "table.json")}
    assert "previous" not in rows["first"] and "previous" not in rows["second"]
    assert [c["model"] for c in rows["small"]["previous"]] == ["third", "second"]
    compared = [(row, "first") for name, row in rows.items() if name != "first"]
    compared = [part for row, reference in compared for part in [(row["model"], row, reference), *((row["model"], c, c["model"]) for c in row.get("previous", []))]]
    assert len(compared) == 3 + 3
    for model, found, other in compared:
        expected = paired_test(per_query(tmp_path, model), per_query(tmp_path, other), seed=5)
        assert (found["difference"], found["difference_low"], found["difference_high"]) == (expected.mean, expected.low, expected.high)
        assert found["p_value"] == expected.p_value
    adjusted = holm([found["p_value"] for _, found, _ in compared])
    assert sorted(adjusted) == sorted(found["p_holm"] for _, found, _ in compared)
    alone = {"difference": 0.02, "difference_low": 0.01, "difference_high": 0.031, "verdict": "a is higher"}
    assert difference_cell(alone) == "+0.020 [+0.010, +0.031] better"
    assert difference_cell({**alone, "verdict": "b is higher"}).endswith("] worse")
    assert difference_cell({**alone, "verdict": "no difference shown"}).endswith(f"] {NONE_SHOWN}")


@pytest.mark.parametrize(
    ("previous", "message"),
    [
        ({"smal": "first"}, "evaluate.previous: 'smal' is not one of the models.*did you mean 'small'"),
        ({"small": "absent"}, "evaluate.previous: 'absent' is not one of the models"),
        ({"small": "small"}, "evaluate.previous: 'small' is compared with itself"),
        ({"small": ["first", "first"]}, "twice with one model"),
    ],
)
def test_wrong_steps_are_refused_before_anything_is_embedded(
    tmp_path: Path, encoder_folder: Path, collection: Path, previous: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TextEncoder, "embed", lambda *a, **k: pytest.fail("embedded"))
    with pytest.raises(UserError, match=message):
        evaluate(
            tmp_path, collections={"toy": collection}, baselines={"first": BM25()}, encoders={"small": encoder_folder}, previous=previous, seed=0
        )  # fmt: skip


def test_the_sample_of_cosines_is_embedded_once_and_the_same(encoder_folder: Path, collection: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, encoder = load_collection(collection, "toy"), TextEncoder.from_pretrained(encoder_folder)
    sample = CosineSample(loaded, seed=3)
    remembering = RememberingEncoder(encoder, sample.texts())
    loaded.evaluate(remembering, k=10, metrics=["ndcg@10"])
    plain = sample.cosines(encoder)
    embedded: list[int] = []
    embed = TextEncoder.embed
    monkeypatch.setattr(TextEncoder, "embed", lambda self, t, *a, **k: embedded.append(len(t)) or embed(self, t, *a, **k))
    found = sample.cosines(remembering)
    assert embedded == []
    for side in ("positive", "random"):
        np.testing.assert_allclose(found[side], plain[side], atol=1e-6)
    assert not np.allclose(found["positive"], found["random"])
    # A text that was not asked for is embedded, and another kind of the same text is another text.
    remembering.embed(["never seen"], "query")
    remembering.embed([sample.queries[0]], "passage")
    assert embedded == [1, 1]
