"""Chunks filled up to few sizes give the same states and gradients, and so do compiled layers; a step's dropout is replayed in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_e5.errors import UserError
from lightning_e5.models.packed import encoder as packed_encoders
from lightning_e5.models.packed.encoder import PackedEncoder, compile_layers
from lightning_e5.models.packed.families import packed_encoder
from lightning_e5.models.packed.layout import Layout
from lightning_e5.models.packed.post_norm import compiled_post_norm, filled
from lightning_e5.modules.fit import fit
from tests.lightning_e5.models.packed.small_models import small_model
from tests.lightning_e5.models.packed.test_step_weights import encoder, gradients
from tests.lightning_e5.modules.test_watch import Trainings, trainings  # noqa: F401 (a fixture)

LENGTHS = [3, 5, 12, 12, 30]
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.mark.parametrize(("tokens", "size"), [(1, 16), (16, 16), (17, 64), (64, 64), (65, 128), (200, 256)])
def test_a_chunk_is_filled_up_to_one_of_few_sizes(tokens: int, size: int) -> None:
    lengths = [7] * (tokens // 7) + [tokens % 7] * (tokens % 7 > 0)
    ids, layout = filled(torch.arange(tokens), Layout.of(lengths, torch.device("cpu")), 64)
    assert (len(ids), layout.tokens, sum(r.texts * r.length for r in layout.runs)) == (size,) * 3
    assert ids[:tokens].tolist() == list(range(tokens)) and layout.longest == max(lengths)
    assert layout.lengths().tolist()[: len(lengths)] == lengths


def states_and_gradients(model: Any, packed: PackedEncoder) -> dict[str, Tensor]:
    model.zero_grad()
    ids = torch.randint(5, 90, (sum(LENGTHS),), generator=torch.Generator().manual_seed(3))
    states = packed(ids, LENGTHS)
    target = torch.randn(states.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64).to(states.dtype)
    (states * target).sum().backward()
    return {"": states.detach(), **{name: p.grad.clone() for name, p in model.named_parameters()}}


def as_it_is(activation: Any) -> Any:
    """What would be compiled, not compiled."""
    compiled = compiled_post_norm(activation)
    return compiled._torchdynamo_orig_callable


@pytest.mark.parametrize("name", ["bert", "roberta", "mpnet", "distilbert"])
def test_what_is_compiled_is_the_layer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_encoders, "compiled_post_norm", as_it_is)
    rates = {"dropout": 0.0, "attention_dropout": 0.0} if name == "distilbert" else NO_DROPOUT
    model = small_model(name, **rates).double().train()
    found = []
    for budget in (None, 100, 40):
        packed = packed_encoder(model)
        assert packed is not None
        packed.train()
        if budget is not None:
            packed.compile_layers(budget)
            assert packed.compiles() and not packed.eval().compiles()
            packed.train()
        found.append(states_and_gradients(model, packed))
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        assert max(float((other[key] - value).abs().max() / value.abs().max().clamp(min=1e-3)) for key, value in found[0].items()) < 1e-11
    word = next(value for key, value in found[1].items() if "word_embeddings" in key)
    assert word[0].abs().max() == 0, "what a chunk is filled up with has no gradient"


def test_what_is_not_compiled_is_refused(trainings: Trainings) -> None:  # noqa: F811
    with pytest.raises(UserError, match=r"compile: the layers of ModernBertModel are not compiled; the rule is BERT"):
        packed_encoder(small_model("modernbert")).compile_layers(64)  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"compile: this model runs padded"):
        compile_layers(torch.nn.Linear(2, 2), 64)


def test_fit_trains_chunks_that_are_filled_up(trainings: Trainings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(packed_encoders, "compiled_post_norm", as_it_is)
    for module in trainings.bert.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    losses = []
    for compiled in (False, True):
        made = trainings.module(steps=4)
        place = {"checkpoints": tmp_path / str(compiled), "title": "", "accelerator": "cpu", "devices": 1, "chunk_tokens": 64, "graph_tokens": 128}
        fit(made, trainings.data(4), compile=compiled, **place)
        losses.append(made.last_metrics["loss"])
        assert made.encoder.packed._budget == (64 if compiled else 0)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    for _ in range(3):
        made.grad_cache._shrink()
    assert made.grad_cache.chunk_tokens == made.encoder.packed._budget == 32, "chunks that are made smaller are filled up to less"


@pytest.mark.slow
def test_compiled_layers_are_the_layers_and_replay_their_dropout(small_tokenizer: Any) -> None:
    torch.compiler.reset()
    model = small_model("bert", num_hidden_layers=1, **NO_DROPOUT).train()
    plain, compiled = packed_encoder(model), packed_encoder(model)
    assert plain is not None and compiled is not None
    compiled.compile_layers(80)
    expected, found = states_and_gradients(model, plain.train()), states_and_gradients(model, compiled.train())
    scale = max(float(g.abs().max()) for g in expected.values())
    assert max(float((found[key] - value).abs().max()) for key, value in expected.items()) < 1e-5 * scale
    # Dropout: chunks that are encoded twice have the gradient of those whose activations are kept; other draws have another one.
    made: Any = encoder("bert", small_tokenizer, "fp32")
    made.packed.compile_layers(200)
    twice, kept = (gradients(made, held=True, graph_tokens=tokens, chunk_tokens=120) for tokens in (0, 10_000))
    assert all((twice[key] - kept[key]).abs().max() <= 1e-5 * kept[key].abs().max().clamp(min=1e-3) for key in kept)
    made.packed._compiled = None
    assert any((twice[key] - value).abs().max() > 0.1 * value.abs().max() for key, value in gradients(made, held=True, chunk_tokens=120).items())
