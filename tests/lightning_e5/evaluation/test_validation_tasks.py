"""A validation's values are those of the evaluation, and follow the weights as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir.collection import load_collection
from lightning_e5.evaluation.beir.nano import load_nano_beir
from lightning_e5.evaluation.tasks.retrieval import CollectionTask
from lightning_e5.evaluation.tasks.sts import STSTask, load_sts
from lightning_e5.evaluation.tasks.task import items_identity
from lightning_e5.evaluation.validation_tasks import EvaluateOn, NanoBEIR
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.training_record import UNTRAINED
from tests.lightning_e5.evaluation.beir.test_nano import one_per_set


@pytest.fixture
def sentences(tmp_path: Path, texts: list[str]) -> Path:
    path = tmp_path / "sts.tsv"
    lines = [" ".join(text.split()) for text in texts[:9]]
    path.write_text("score\tsentence1\tsentence2\n" + "".join(f"{i % 5}\t{lines[i]}\t{lines[i + 1]}\n" for i in range(8)))
    return path


def test_the_values_are_the_evaluations_after_every_change_of_the_weights(encoder_folder: Path, collection: Path, sentences: Path) -> None:
    encoder = TextEncoder.from_pretrained(encoder_folder).train()
    validation = EvaluateOn(collections={"own": collection}, sts={"pairs": sentences})
    seen = []
    for _ in range(2):
        expected = load_collection(collection, "x", rules="none").evaluate(encoder).metrics["ndcg@10"]
        correlation = STSTask(load_sts(sentences)).evaluate(encoder).value
        state = torch.random.get_rng_state()
        values = validation.values(encoder)
        assert values == {"own/ndcg@10": expected, "pairs/spearman": correlation}
        assert encoder.training and torch.equal(state, torch.random.get_rng_state())
        seen.append(values)
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(torch.randn_like(parameter))
    assert seen[0] != seen[1]


def test_its_name_is_by_the_content_of_its_items(encoder_folder: Path, collection: Path, sentences: Path, tmp_path: Path) -> None:
    before = EvaluateOn(collections={"own": collection}, sts={"pairs": sentences}, max_length=16).identities()
    assert set(before) == {"own", "pairs"} and all(name.startswith("items ") for name in before.values()) and before["own"] != before["pairs"]
    as_jsonl = tmp_path / "sts.jsonl"
    data = load_sts(sentences)
    rows = zip(data.scores, data.first, data.second, strict=True)
    as_jsonl.write_text("".join(json.dumps({"score": s, "sentence1": a, "sentence2": b}) + "\n" for s, a, b in rows))
    assert EvaluateOn(sts={"x": as_jsonl}).identities()["x"] == before["pairs"] == items_identity(STSTask(data))
    path = collection / "queries.jsonl"
    path.write_text(path.read_text().replace('"text": "', '"text": "more ', 1))
    assert EvaluateOn(collections={"own": collection}).identities()["own"] != before["own"]


@pytest.mark.parametrize("name", ["corpus.jsonl", "qrels/test.tsv"])
def test_a_collection_without_a_file(collection: Path, name: str) -> None:
    (collection / name).unlink()
    with pytest.raises(UserError, match=name):
        EvaluateOn(collections={"own": collection}).identities()


def test_a_place_that_is_not_there_and_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"/none: no such file or folder to validate on"):
        EvaluateOn(sts={"x": str(tmp_path / "none")})  # type: ignore[dict-item]
    with pytest.raises(UserError, match="nothing to evaluate on"):
        EvaluateOn().identities()


def test_nano_beir_gives_its_mean_first_and_is_refused_where_it_chose(encoder_folder: Path, tmp_path: Path) -> None:
    encoder = TextEncoder.from_pretrained(encoder_folder)
    task = NanoBEIR(place=str(one_per_set(tmp_path)), sets=["nano-nq", "nano-scifact"])
    values = task.values(encoder)
    assert list(values) == ["nano_beir/ndcg@10", "nano-nq/ndcg@10", "nano-scifact/ndcg@10"]
    expected = [CollectionTask(collection).evaluate(encoder).value for collection in load_nano_beir(tmp_path, ["nano-nq", "nano-scifact"])]
    assert list(values.values()) == pytest.approx([sum(expected) / 2, *expected])
    record = UNTRAINED.after("pretrain", {"pairs_seen": 4.0}, None, selected_on=task.identities()["nano_beir"])
    assert record.selected_on == {task.identities()[name] for name in ("nano-nq", "nano-scifact")}
    with pytest.raises(UserError, match="'nano-nqq' is not one of NanoBEIR's sets; did you mean 'nano-nq'"):
        NanoBEIR(sets=["nano-nqq"])
