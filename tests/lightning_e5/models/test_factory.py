"""An encoder's own prefixes and length, as a spec takes them over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import DistilBertConfig, DistilBertModel, RobertaConfig, RobertaModel

from lightning_e5.errors import UserError
from lightning_e5.models.cross_encoder import CrossEncoder
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.factory import EncoderSpec
from lightning_e5.models.folder import stored_settings
from lightning_e5.models.pooling import POOLING_NAMES
from lightning_e5.text import E5_PREFIXES, Prefixes
from tests.lightning_e5.models.folders import write_folder


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


@pytest.mark.parametrize(("given", "expected"), [({"attention_dropout": 0.0}, (0.1, 0.0)), ({"dropout": 0.3, "attention_dropout": 0.2}, (0.3, 0.2))])
def test_the_attentions_dropout_may_be_another_one(tmp_path: Path, folder: Path, small_tokenizer: Any, given: dict[str, float], expected: tuple[float, float]) -> None:
    made = EncoderSpec(pretrained=str(folder), max_length=48, **given).load_pretrained(folder)
    made.save_pretrained(tmp_path / "start")
    for model in (made, TextEncoder.from_pretrained(tmp_path / "start", training_start=True), CrossEncoder.from_start(tmp_path / "start")):
        config, layer = model.backbone.config, model.backbone.encoder.layer[0]
        assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == expected
        assert (layer.output.dropout.p, layer.attention.self.dropout.p) == expected
    own = EncoderSpec(layers=1, hidden_size=16, heads=2, intermediate_size=16, initialisation="bert", **given).build(small_tokenizer, None, 1)
    assert (own.backbone.config.hidden_dropout_prob, own.backbone.config.attention_probs_dropout_prob) == (given.get("dropout", 0.0), expected[1])


def test_attention_dropout_of_a_model_that_has_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(UserError, match=r"config\.json: attention_dropout: 0\.2 for a model that has none; the rule is null or 0"):
        TextEncoder.from_pretrained(tmp_path, attention_dropout=0.2)


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


def hidden(model: Any, tokenizer: Any, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded states by transformers alone, and the mask."""
    ids, lengths = tokenizer.encode(texts, "query")
    rows = torch.from_numpy(ids).long().split(lengths.tolist())
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    pad = model.config.pad_token_id
    return model(input_ids=torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=pad), attention_mask=mask).last_hidden_state, mask


def pooled(states: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    rows = [state[: int(own.sum())] for state, own in zip(states, mask, strict=True)]
    return torch.stack([{"mean": row.mean(0), "cls": row[0], "last": row[-1]}[pooling] for row in rows])


@pytest.mark.parametrize("name", ["bert", "distilbert"])  # packed, and padded
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_a_training_starts_with_this_pooling(pooling: Any, name: str, tmp_path: Path, small_tokenizer: Any, small_bert: Any, texts: list[str]) -> None:
    """Values and gradients are those of transformers' own pass, and so is what sentence-transformers computes from the saved folder."""
    config = DistilBertConfig(vocab_size=small_tokenizer.backend.get_vocab_size(), dim=32, n_layers=1, n_heads=2, hidden_dim=24, max_position_embeddings=64)
    TextEncoder(small_bert if name == "bert" else DistilBertModel(config), small_tokenizer).save_pretrained(tmp_path / "start")
    encoder = EncoderSpec(pretrained=str(tmp_path / "start"), pooling=pooling, max_length=48).load_pretrained(tmp_path / "start").double().eval()
    chosen = [*texts[:6], "a"]
    ids, lengths = encoder.tokenizer.encode(chosen, "query")
    weight = torch.randn(7, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = encoder(torch.from_numpy(ids).long(), lengths.tolist())
    (ours * weight).sum().backward()
    found = {n: p.grad.clone() for n, p in encoder.backbone.named_parameters() if p.grad is not None}
    encoder.zero_grad()
    theirs = pooled(*hidden(encoder.backbone, encoder.tokenizer, chosen), pooling)
    (theirs * weight).sum().backward()
    assert torch.allclose(ours, theirs, atol=1e-12)
    for n, p in encoder.backbone.named_parameters():
        if p.grad is not None:
            assert torch.allclose(found[n], p.grad, atol=1e-10), n
    encoder.float().save_pretrained(tmp_path / "model")
    assert stored_settings(tmp_path / "model").head.modes == (POOLING_NAMES[pooling],)
    published = SentenceTransformer(str(tmp_path / "model"), device="cpu", trust_remote_code=False)
    assert (published.encode_query(chosen, convert_to_tensor=True, show_progress_bar=False) - encoder.embed(chosen, "query")).abs().max() < 1e-6
    kept = EncoderSpec(pretrained=str(tmp_path / "model"), max_length=48).load_pretrained(tmp_path / "model")
    assert kept.head.settings.modes == (POOLING_NAMES[pooling],)  # null is the folder's own
    if pooling != "mean":  # the control: it is another embedding
        assert (kept.embed(chosen, "query") - TextEncoder.from_pretrained(tmp_path / "start").embed(chosen, "query")).abs().max() > 1e-2


def test_pooling_of_folders_and_of_the_small_bert(tmp_path: Path, small_tokenizer: Any) -> None:
    several = write_folder(tmp_path / "several", pooling={"pooling_mode": ["mean", "cls"]})
    assert EncoderSpec(pretrained=str(several), max_length=24).load_pretrained(several).width == 32
    assert EncoderSpec(pretrained=str(several), max_length=24, pooling="cls").load_pretrained(several).width == 16
    silent = write_folder(tmp_path / "silent")
    for file in ("modules.json", "1_Pooling/config.json"):
        (silent / file).unlink()
    assert EncoderSpec(pretrained=str(silent), max_length=24).load_pretrained(silent).head.settings.modes == ("mean",)
    dense = write_folder(tmp_path / "dense", modules=["Pooling", "Dense"], pooling={"pooling_mode": ["mean", "cls"]}, dense={"in_features": 32})
    with pytest.raises(UserError, match=r"2_Dense/config\.json: in_features: 32 and out_features: 6 do not fit the 16 values"):
        EncoderSpec(pretrained=str(dense), max_length=24, pooling="cls").load_pretrained(dense)
    small = {"layers": 1, "hidden_size": 16, "heads": 2, "intermediate_size": 16}
    made = EncoderSpec(**small, initialisation="bert", pooling="last").build(small_tokenizer, None, 1)
    assert made.head.settings.modes == ("lasttoken",)
    with pytest.raises(UserError, match=r"encoder\.pooling: 'cls' with initialisation: weighted_average"):
        EncoderSpec(**small, pooling="cls")
    with pytest.raises(UserError, match=r"encoder\.pooling: 'max' is not one of 'mean', 'cls', 'last', or null"):
        EncoderSpec(pretrained="x", pooling="max")  # type: ignore[arg-type]
