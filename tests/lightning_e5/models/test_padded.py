"""The padded call of encoders, sorted by length, is Hugging Face's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import (
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    RobertaConfig,
    RobertaModel,
)

from lightning_e5.errors import UserError
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.padded import layers_of, usable_positions
from lightning_e5.modules.base import TrainingModule
from lightning_e5.training.grad_cache import GradCache
from lightning_e5.training.optimizer import AdamWConfig
from lightning_e5.types import LossOutput, TokenBatch

BACKBONES = ("roberta", "distilbert", "electra")


def backbone(name: str, vocab: int, positions: int = 64) -> Any:
    torch.manual_seed(1)
    common: dict[str, Any] = {"vocab_size": vocab, "max_position_embeddings": positions}
    bert_like = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, **common}
    if name == "roberta":
        return RobertaModel(RobertaConfig(**bert_like, pad_token_id=1, type_vocab_size=1), add_pooling_layer=False)
    if name == "distilbert":
        return DistilBertModel(DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=48, **common))
    return ElectraModel(ElectraConfig(**bert_like, embedding_size=16))


def padded_encoder(model: Any, tokenizer: Any) -> TextEncoder:
    """The way that ELECTRA takes, and of the others the configurations that have no padding-free view."""
    encoder = TextEncoder(model, tokenizer)
    assert (encoder.packed is None) == (type(model).__name__ == "ElectraModel")
    encoder.packed = None
    return encoder


@pytest.fixture
def tokens(small_tokenizer, texts):  # type: ignore[no-untyped-def]
    ids, lengths = small_tokenizer.encode(texts[:40], "passage")
    assert not (ids == 1).any(), "RoBERTa's padding token is no token of these texts"
    return TokenBatch(torch.from_numpy(ids).long(), torch.from_numpy(lengths))


@pytest.mark.parametrize("name", BACKBONES)
def test_embeddings_are_those_of_hugging_faces_padded_call(name: str, small_tokenizer, texts, tokens) -> None:  # type: ignore[no-untyped-def]
    model = backbone(name, small_tokenizer.backend.get_vocab_size())
    encoder = padded_encoder(model, small_tokenizer).eval()
    pieces = torch.split(tokens.ids_T, tokens.lengths_B.tolist())
    pad = model.config.pad_token_id
    padded = torch.nn.utils.rnn.pad_sequence(list(pieces), batch_first=True, padding_value=pad)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(p) for p in pieces], batch_first=True)

    def pooled(ids: torch.Tensor) -> torch.Tensor:
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state * mask[..., None]
        return functional.normalize(states.sum(1) / mask.sum(1, keepdim=True), dim=1)

    with torch.no_grad():
        expected = pooled(padded)
        shifted = pooled(torch.cat([padded[:, 1:], padded[:, :1]], 1))
    found = encoder.embed(texts[:40], "passage", chunk_tokens=150)
    assert (found - expected).abs().max() < 1e-5
    assert (found - shifted).abs().max() > 1e-2  # the control: what is compared depends on the places of the tokens


def test_robertas_positions_start_after_its_padding() -> None:
    model = backbone("roberta", 100, positions=34).eval()
    assert usable_positions(model) == 32
    model(input_ids=torch.full((1, 32), 7))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, 33), 7))
    assert usable_positions(backbone("distilbert", 100, positions=34)) == 34


def test_a_length_that_roberta_has_no_positions_for_is_refused(small_tokenizer) -> None:  # type: ignore[no-untyped-def]
    vocab = small_tokenizer.backend.get_vocab_size()
    assert small_tokenizer.max_length == 48
    TextEncoder(backbone("roberta", vocab, positions=50), small_tokenizer)
    with pytest.raises(UserError, match="max_length: 48 is above the 47 positions"):
        TextEncoder(backbone("roberta", vocab, positions=49), small_tokenizer)


def gradients(encoder: TextEncoder, tokens: TokenBatch) -> dict[str, torch.Tensor]:
    target = torch.randn(len(tokens.lengths_B), 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def loss(embeddings: torch.Tensor) -> LossOutput:
        return LossOutput((embeddings * target).sum(), torch.zeros(()), torch.zeros(()))

    GradCache(chunk_tokens=200, graph_tokens=400).step(tokens, encoder, loss, seed=4)
    found = {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}
    encoder.zero_grad()
    return found


@pytest.mark.parametrize("name", BACKBONES)
def test_gradient_checkpointing_of_other_encoders_changes_no_gradient(name: str, small_tokenizer, tokens) -> None:  # type: ignore[no-untyped-def]
    model = backbone(name, small_tokenizer.backend.get_vocab_size())
    encoder = padded_encoder(model, small_tokenizer).double()
    TrainingModule(encoder, optimizer=AdamWConfig(learning_rate=1e-3), max_steps=1)
    assert not model.is_gradient_checkpointing
    plain = gradients(encoder.train(), tokens)
    evaluated = gradients(encoder.eval(), tokens)
    TrainingModule(encoder, optimizer=AdamWConfig(learning_rate=1e-3), max_steps=1).checkpoint_activations()
    assert model.is_gradient_checkpointing
    again = gradients(encoder.train(), tokens)
    scale = max(float(g.abs().max()) for g in plain.values())
    assert plain.keys() == again.keys() and not any("position_embeddings" in n for n in plain)
    assert all((plain[n] - again[n]).abs().max() < 1e-12 * scale for n in plain)
    assert max(float((plain[n] - evaluated[n]).abs().max()) for n in plain) > 1e-3 * scale  # dropout was on


def test_gradient_checkpointing_of_what_cannot_is_refused() -> None:
    with pytest.raises(UserError, match="gradient_checkpointing: Linear cannot"):
        TrainingModule(torch.nn.Linear(2, 2), optimizer=AdamWConfig(learning_rate=1e-3), max_steps=1).checkpoint_activations()


def test_the_layers_of_other_encoders_are_found(small_tokenizer: Any) -> None:
    model = backbone("electra", small_tokenizer.backend.get_vocab_size())
    assert layers_of(padded_encoder(model, small_tokenizer)) == list(model.encoder.layer)
    with pytest.raises(UserError, match="strategy: fsdp2: Linear has no list of num_hidden_layers layers"):
        layers_of(torch.nn.Linear(2, 2))
