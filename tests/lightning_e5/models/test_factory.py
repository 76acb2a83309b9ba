"""An encoder's own prefixes and length, as a spec takes them over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn
from transformers import DistilBertConfig, DistilBertModel, RobertaConfig, RobertaModel

from lightning_e5.errors import UserError
from lightning_e5.models.cross_encoder import CrossEncoder
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.factory import EncoderSpec
from lightning_e5.text import E5_PREFIXES, Prefixes


@pytest.fixture
def folder(tmp_path: Path, small_bert: Any, small_tokenizer: Any) -> Path:
    TextEncoder(small_bert, small_tokenizer.replaced(prefixes=Prefixes("ask: ", "text: "))).save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


def test_stored_prompts_and_length_are_its_own(folder: Path) -> None:
    made = EncoderSpec(pretrained=str(folder), max_length=None, prefixes="own").load_pretrained(folder)
    assert made.tokenizer.prefixes == Prefixes("ask: ", "text: ") and made.tokenizer.max_length == 48
    assert EncoderSpec(pretrained=str(folder), max_length=32).load_pretrained(folder).tokenizer.prefixes == E5_PREFIXES


@pytest.mark.parametrize(("name", "prefixes"), [("plain-model", Prefixes("", "")), ("my-e5-small", E5_PREFIXES)])
def test_a_folder_without_prompts_has_those_that_belong_to_it(folder: Path, name: str, prefixes: Prefixes) -> None:
    (folder / "config_sentence_transformers.json").unlink()
    place = folder.rename(folder.with_name(name))
    assert EncoderSpec(pretrained=str(place), prefixes="own", max_length=32).load_pretrained(place).tokenizer.prefixes == prefixes


@pytest.mark.parametrize("given", [{"prefixes": "own"}, {"max_length": None}, {"prefixes": "other", "pretrained": "x"}])
def test_what_only_a_pretrained_encoder_has_is_refused_without_one(given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"encoder\.(prefixes|max_length): "):
        EncoderSpec(**given)


def dropouts(model: nn.Module) -> set[float]:
    """Those of all its modules; packed BERT and transformers' attention read them there."""
    return {module.p for module in model.modules() if isinstance(module, nn.Dropout)}


@pytest.mark.parametrize("given", [None, 0.0, 0.3])
def test_a_pretrained_encoders_dropout_is_that_of_the_spec_in_every_stage_after_it(tmp_path: Path, folder: Path, given: float | None) -> None:
    expected = {0.1 if given is None else given}  # 0.1: BERT's own
    made = EncoderSpec(pretrained=str(folder), dropout=given, max_length=48).load_pretrained(folder)
    assert dropouts(made) == expected
    made.save_pretrained(tmp_path / "start")
    assert dropouts(TextEncoder.from_pretrained(tmp_path / "start", training_start=True)) == expected
    assert dropouts(CrossEncoder.from_start(tmp_path / "start")) == expected


@pytest.mark.parametrize("kind", [(RobertaConfig, RobertaModel), (DistilBertConfig, DistilBertModel)])
def test_dropout_of_other_architectures(tmp_path: Path, small_tokenizer: Any, kind: tuple[Any, Any]) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24}
    config = kind[0](vocab_size=small_tokenizer.backend.get_vocab_size(), max_position_embeddings=140, **sizes)
    TextEncoder(kind[1](config), small_tokenizer).save_pretrained(tmp_path / "other")
    spec = EncoderSpec(pretrained=str(tmp_path / "other"), dropout=0.25)
    assert dropouts(spec.load_pretrained(tmp_path / "other")) == {0.25}


def test_dropout_of_a_model_that_has_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(UserError, match=r"config\.json: dropout: 0\.2 for a model that has none; the rule is null or 0"):
        TextEncoder.from_pretrained(tmp_path, dropout=0.2)


@pytest.mark.parametrize(("given", "expected"), [(None, 0.0), (0.2, 0.2)])
def test_dropout_of_the_small_bert(small_tokenizer: Any, given: float | None, expected: float) -> None:
    spec = EncoderSpec(layers=1, hidden_size=16, heads=2, intermediate_size=16, dropout=given, initialisation="bert")
    assert dropouts(spec.build(small_tokenizer, None, 1)) == {expected}
