"""Which weights a training stage keeps: half of start and end, those of a validation's best step, and their record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_e5.errors import UserError
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.training_record import UNTRAINED, read_record
from lightning_e5.modules.validation import Validation, set_weights, weights_of
from lightning_e5.pipeline.kept_weights import KeptWeights

GIVEN: dict[str, Any] = {"validate": None, "validation": None, "keep_general": 0.0, "general": None}


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
        kept = KeptWeights(tmp_path, model, **{**GIVEN, "validate": Validation(every_n_steps=3), "validation": collection})
        assert kept.callback is not None
        start = weights_of(model)
        kept.callback._validate(0)
        found = kept.callback.rows[0]["ndcg@10"]
        kept.callback.evaluate = lambda value=found + (1 if best else -1): {"q": value}  # type: ignore[misc]
        moved = trained(model, 0.1)
        kept.callback._validate(3)
        trained(model, 0.1)
        metrics = kept.keep({"pairs_seen": 24.0, "tokens_seen": 300.0, "steps": 6.0})
        assert (metrics["best_step"], metrics["pairs_seen"], metrics["tokens_seen"]) == (best, pairs, 50 * best)
        assert metrics["validation_ndcg@10_start"] == found and metrics["steps"] == 6.0
        expected = moved if best else start
        assert all(torch.equal(value, expected[name]) for name, value in weights_of(model).items())
        kept.record(encoder_folder, "pretrain", metrics, ["texts a"]).save(tmp_path / "out")
        (stage,) = read_record(tmp_path / "out").stages  # type: ignore[union-attr]
        assert (stage.pairs_seen, stage.texts, stage.selected_on) == (pairs, texts, kept.selected_on)
        assert [json.loads(line)["step"] for line in (tmp_path / "validation.jsonl").read_text().splitlines()] == [0, 3]


def test_a_record_without_a_selection_is_as_it_was(tmp_path: Path) -> None:
    UNTRAINED.after("pretrain", {"pairs_seen": 4.0}, ["a"]).save(tmp_path)
    assert "selected_on" not in (tmp_path / "training_record.json").read_text()
    assert read_record(tmp_path).stages[0].selected_on is None  # type: ignore[union-attr]


@pytest.mark.parametrize(("given", "said"), [({"validate": Validation(every_n_steps=1)}, "validate: needs inputs.validation"), ({"validation": Path("x")}, "inputs.validation: needs validate")])
def test_one_without_the_other(tmp_path: Path, model: TextEncoder, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        KeptWeights(tmp_path, model, **{**GIVEN, **given})
