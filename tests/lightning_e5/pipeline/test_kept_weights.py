"""Which weights a training stage keeps: half of start and end, those of a validation's best step, and their record."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_e5.errors import UserError
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.training_record import UNTRAINED, read_record
from lightning_e5.modules.in_batch import InBatchModule
from lightning_e5.modules.validation import PAIRS_METRIC, set_weights, weights_of
from lightning_e5.pipeline.kept_weights import HELD_OUT, KeptWeights, with_hold_out
from lightning_e5.training.optimizer import AdamWConfig

GIVEN: dict[str, Any] = {"validation": None, "keep_general": 0.0, "general": None}


@pytest.fixture
def model(encoder_folder: Path) -> TextEncoder:
    return TextEncoder.from_pretrained(encoder_folder)


def trained(model: TextEncoder, by: float) -> dict[str, torch.Tensor]:
    set_weights(model, {name: value + by for name, value in weights_of(model).items()})
    return weights_of(model)


def test_half_of_the_start_and_half_of_the_end(tmp_path: Path, model: TextEncoder) -> None:
    start = weights_of(model)
    kept = KeptWeights(tmp_path, model, **{**GIVEN, "keep_general": 0.5})
    end = trained(model, 0.25)
    assert kept.keep({"pairs_seen": 8.0}) == {"pairs_seen": 8.0}
    for name, value in weights_of(model).items():
        torch.testing.assert_close(value, (start[name] + end[name]) / 2)


def test_half_of_another_encoder_and_one_of_another_shape(tmp_path: Path, model: TextEncoder, encoder_folder: Path, small_tokenizer: Any) -> None:
    general = weights_of(model)
    trained(model, 1.0)
    kept = KeptWeights(tmp_path, model, **{**GIVEN, "keep_general": 0.5, "general": encoder_folder})
    end = trained(model, 1.0)
    kept.keep({"pairs_seen": 8.0})
    assert all(torch.allclose(value, (general[name] + end[name]) / 2) for name, value in weights_of(model).items())
    model.backbone.resize_token_embeddings(len(general["backbone.embeddings.word_embeddings.weight"]) + 8)
    with pytest.raises(UserError, match="the two encoders have other parameters"):
        KeptWeights(tmp_path, model, **{**GIVEN, "keep_general": 0.5, "general": encoder_folder})


def test_the_best_steps_weights_and_their_record(tmp_path: Path, model: TextEncoder, collection: Path, encoder_folder: Path) -> None:
    UNTRAINED.save(encoder_folder)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": s, "pairs": 4 * s, "tokens": 50 * s, "loss": 1.0, "accuracy": 0.5}) + "\n" for s in range(1, 7)))
    for best, pairs, texts in ((0, 0, ()), (3, 12, ("texts a",))):
        kept = KeptWeights(tmp_path, model, validation={"every_n_steps": 3}, collections={"own": collection})
        assert kept.callback is not None and kept.hold_out == {}
        start = weights_of(model)
        found = kept.tasks[0].values(model)["own/ndcg@10"]
        validated(kept, 0, found, model)
        moved = trained(model, 0.1)
        validated(kept, 3, found + (0.1 if best else -0.1), model)
        trained(model, 0.1)
        metrics = kept.keep({"pairs_seen": 24.0, "tokens_seen": 300.0, "steps": 6.0})
        assert (metrics["best_step"], metrics["pairs_seen"], metrics["tokens_seen"]) == (best, pairs, 50 * best)
        assert metrics["val/own/ndcg@10_start"] == found and metrics["steps"] == 6.0
        expected = moved if best else start
        assert all(torch.equal(value, expected[name]) for name, value in weights_of(model).items())
        kept.record(encoder_folder, "pretrain", metrics, ["texts a"]).save(tmp_path / "out")
        (stage,) = read_record(tmp_path / "out").stages  # type: ignore[union-attr]
        assert (stage.pairs_seen, stage.texts, stage.selected_on) == (pairs, texts, kept.tasks[0].identities()["own"])
        assert [json.loads(line)["step"] for line in (tmp_path / "validation.jsonl").read_text().splitlines()] == [0, 3]


def validated(kept: KeptWeights, step: int, value: float, model: TextEncoder) -> None:
    """The end of a validation, as a training calls it."""
    module = InBatchModule(model, optimizer=AdamWConfig(learning_rate=1e-3), max_steps=6)
    module.last_validation = {"val/own/ndcg@10": value}
    assert kept.callback is not None
    kept.callback.on_validation_end(SimpleNamespace(global_step=step, is_global_zero=True), module)  # type: ignore[arg-type]


def test_held_out_rows_that_choose_are_named_and_given_once(tmp_path: Path, model: TextEncoder) -> None:
    kept = KeptWeights(tmp_path, model, validation={"every_n_steps": 3, "pairs": {"hold_out": 20}})
    assert kept.hold_out == {"hold_out": 20} and with_hold_out(partial(dict), kept.hold_out) == {"hold_out": 20}
    validated(kept, 0, 0.5, model)
    kept.callback.monitor = PAIRS_METRIC  # type: ignore[union-attr]
    assert kept.selected_on == HELD_OUT
    with pytest.raises(UserError, match=r"validation.pairs.hold_out: data.hold_out holds rows out, too"):
        with_hold_out(partial(dict, hold_out=3), kept.hold_out)
    with pytest.raises(UserError, match=r"inputs.validation_collections: needs validation, too"):
        KeptWeights(tmp_path, model, validation=None, collections={"own": tmp_path})


def test_a_record_without_a_selection_is_as_it_was(tmp_path: Path) -> None:
    UNTRAINED.after("pretrain", {"pairs_seen": 4.0}, ["a"]).save(tmp_path)
    assert "selected_on" not in (tmp_path / "training_record.json").read_text()
    assert read_record(tmp_path).stages[0].selected_on is None  # type: ignore[union-attr]
