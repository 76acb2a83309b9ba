"""Each family's padding-free forward and backward are transformers' own, dropout included; what a family does not compute is padded."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.packed.encoder import PackedEncoder
from lightning_e5.models.packed.families import FAMILIES, MODEL_TYPES, packed_encoder, why_padded
from lightning_e5.models.packed.layout import Layout
from lightning_e5.models.padded import padded_states
from lightning_e5.modules.base import TrainingModule
from lightning_e5.training.grad_cache import GradCache
from lightning_e5.training.optimizer import AdamWConfig
from lightning_e5.types import LossOutput, TokenBatch
from tests.lightning_e5.models.packed.small_models import NAMES, modules_with_dropout, small_model

#: Within ModernBERT's window, within three windows, and in blocks, full ones and not; neighbours of equal length and not.
LENGTHS = [3, 3, 12, 5, 1, 33, 33, 8, 40, 12, 13]


def packed_view(model: Any, **options: bool) -> PackedEncoder:
    return FAMILIES[type(model).__name__](model, **options).train(model.training)


def tokens() -> Tensor:
    """Random, and none of them a padding token."""
    return torch.randint(5, 90, (sum(LENGTHS),), generator=torch.Generator().manual_seed(3))


def states_and_gradients(model: Any, packed: PackedEncoder | None) -> dict[str, Tensor]:
    """Token states, and the gradient of each parameter of a random function of them; of transformers' padded call without ``packed``."""
    model.zero_grad()
    states = padded_states(model, tokens(), LENGTHS) if packed is None else packed(tokens(), LENGTHS)
    target = torch.randn(states.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    (states * target.to(states.dtype)).sum().backward()
    return {"": states.detach(), **{name: p.grad.clone() for name, p in model.named_parameters()}}


def largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Of states and gradients, each over the largest value of its kind: some gradients are 0 in theory (a key's bias moves no softmax)."""
    assert found.keys() == expected.keys()
    scale = max(float(value.abs().max()) for name, value in expected.items() if name)
    scales = {name: scale if name else float(expected[""].abs().max()) for name in expected}
    return max(float((found[name] - expected[name]).abs().max()) / scales[name] for name in expected)


def spoil(model: Any, packed: PackedEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mistake that lies nearest in each family."""
    kind = type(packed)
    if model.config.model_type == "bert":
        monkeypatch.setattr(kind, "first_position", lambda self: 1)
    elif "roberta" in model.config.model_type:
        monkeypatch.setattr(kind, "first_position", lambda self: 0)
    elif model.config.model_type == "mpnet":
        right = kind.bias
        monkeypatch.setattr(kind, "bias", lambda *given: 0 * right(*given))
    elif model.config.model_type == "modernbert":
        monkeypatch.setattr(model.config, "local_attention", 200)
    else:  # positions that count on from text to text
        monkeypatch.setattr(Layout, "positions", lambda self, device: torch.arange(sum(LENGTHS)) % 64)


# transformers turns ModernBERT's queries and keys in float32, whatever the model's type is.
@pytest.mark.parametrize(("name", "precision"), [*((name, "fp32") for name in NAMES), *((name, "fp64") for name in NAMES if name != "modernbert")])
def test_states_and_all_gradients_are_transformers(name: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(name).eval()
    model = model.double() if precision == "fp64" else model
    expected = states_and_gradients(model, None)
    packed = packed_encoder(model)
    assert packed is not None and len(expected) == 1 + len(list(model.named_parameters()))
    assert largest_difference(states_and_gradients(model, packed.eval()), expected) < (1e-12 if precision == "fp64" else 1e-5)
    spoil(model, packed, monkeypatch)
    assert largest_difference(states_and_gradients(model, packed), expected) > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_dropout_is_where_transformers_has_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a dropout that multiplies by ``1 + rate``, the same in both, every place and rate shows in states and gradients."""
    model = small_model(name).train()
    model.set_attn_implementation("eager")  # the others draw their dropout inside a kernel
    evaluated = states_and_gradients(model.eval(), None)
    model.train()
    monkeypatch.setattr(functional, "dropout", lambda x, p=0.5, training=True, inplace=False: x * (1 + p) if training else x)
    for module in modules_with_dropout():
        monkeypatch.setattr(module, "dropped", lambda x, rate: x * (1 + rate))
    expected = states_and_gradients(model, None)
    assert largest_difference(states_and_gradients(model, packed_view(model)), expected) < 1e-5
    assert largest_difference(evaluated, expected) > 1e-2


@pytest.mark.parametrize("name", ["mpnet", "modernbert"])
def test_checkpointing_and_scattering_change_no_gradient_with_dropout_on(name: str) -> None:
    """As in `test_bert`, for the families whose layers share tensors."""
    model = small_model(name).train()

    def gradients(seed: int = 6, **options: bool) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return states_and_gradients(model, packed_view(model, **options))

    plain, again = gradients(), gradients(gradient_checkpointing=True, scatter_word_gradient=True)
    assert largest_difference(again, plain) < 1e-6
    assert largest_difference(gradients(seed=7), plain) > 1e-2  # the control: dropout is on


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_memory_allows_to_keep_changes_no_bit(name: str, precision: Any, small_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step's first pass has gradients as far as memory goes; E5's own pre-training has no dropout in attention, where kernels could differ."""
    rates = ("attention_dropout",) if name in ("distilbert", "modernbert") else ("attention_probs_dropout_prob",)
    made = small_model(name, **dict.fromkeys(rates, 0.0))
    model = TextEncoder(made, small_tokenizer.cut_at(48), precision=precision).train()
    lengths = [1, 3, 17, 17, 24, 33, 40, 48]
    texts = TokenBatch(torch.randint(5, 90, (sum(lengths),), generator=torch.Generator().manual_seed(2)), torch.tensor(lengths))

    def step(kept: int) -> dict[str, Tensor]:
        def loss(embeddings_ND: Tensor) -> LossOutput:
            return LossOutput((embeddings_ND * torch.linspace(-1, 1, 32)).sum(), torch.zeros(()), torch.zeros(()))

        model.zero_grad()
        found = GradCache(chunk_tokens=60, graph_tokens=kept).step(texts, model, loss, seed=3, parameters=list(model.parameters()))
        assert found.recomputed_tokens == {0: sum(lengths), 100: 40 + 48, 1000: 0}[kept]
        return {"embeddings": found.embeddings_ND, **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}

    def differing() -> list[str]:
        all_kept = step(1000)
        return [key for kept in (0, 100) for key, value in step(kept).items() if not torch.equal(value, all_kept[key])]

    assert differing() == []
    if precision == "fp32":  # in bfloat16 there is one kernel anyway
        of = Layout.of
        monkeypatch.setattr(Layout, "of", lambda lengths, device, training=False: of(lengths, device))
        assert "embeddings" in differing()


@pytest.mark.parametrize("name", NAMES)
def test_bf16_autocast_is_as_near_to_float32_as_transformers(name: str) -> None:
    model = small_model(name).eval()
    precise = padded_states(model, tokens(), LENGTHS).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        theirs = padded_states(model, tokens(), LENGTHS)
        ours = packed_view(model)(tokens(), LENGTHS)
        (ours * torch.ones_like(ours).cumsum(1)).sum().backward()
    assert (theirs - precise).abs().max() > 1e-4
    assert (ours - precise).abs().mean() < 1.2 * (theirs - precise).abs().mean()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("name", ["roberta", "mpnet", "distilbert", "modernbert"])
def test_gradient_cached_steps_are_those_of_the_padded_encoder(name: str, small_tokenizer: Any, texts: list[str]) -> None:
    ids, lengths = small_tokenizer.encode(texts[:15], "passage")
    batch = TokenBatch(torch.from_numpy(ids).long(), torch.from_numpy(lengths))
    encoder = TextEncoder(small_model(name, small_tokenizer.backend.get_vocab_size()), small_tokenizer)
    padded = TextEncoder(copy.deepcopy(encoder.backbone), small_tokenizer)
    padded.packed = None
    target = torch.randn(len(lengths), 32, generator=torch.Generator().manual_seed(2))
    found = []
    for each in (encoder, padded):
        TrainingModule(each, optimizer=AdamWConfig(learning_rate=1e-3), max_steps=1)  # as a training sets it up
        assert (each.packed is not None and each.packed.scatter_word_gradient) == (each is encoder)
        step = GradCache(chunk_tokens=150, graph_tokens=200).step(
            batch, each.eval(), lambda e: LossOutput((e * target).sum(), torch.zeros(()), torch.zeros(())), seed=4
        )
        found.append({"": step.embeddings_ND, **{n: p.grad for n, p in each.named_parameters() if p.grad is not None}})
    assert 0 < step.recomputed_tokens < step.tokens
    assert largest_difference(found[0], found[1]) < 1e-5


@pytest.mark.parametrize("name", ["roberta", "mpnet", "modernbert"])
def test_a_gradient_cache_draws_the_same_dropout_twice(name: str, small_tokenizer: Any, texts: list[str]) -> None:
    """The first pass has no gradient and may take other kernels than the second."""
    ids, lengths = small_tokenizer.encode(texts[:15], "passage")
    batch = TokenBatch(torch.from_numpy(ids).long(), torch.from_numpy(lengths))
    encoder = TextEncoder(small_model(name, small_tokenizer.backend.get_vocab_size()), small_tokenizer).train()
    target = torch.randn(len(lengths), 32, generator=torch.Generator().manual_seed(2))
    found = []
    for graph_tokens, seed in ((0, 4), (10**6, 4), (10**6, 5)):
        encoder.zero_grad()
        cache = GradCache(chunk_tokens=400, graph_tokens=graph_tokens)
        # The gradient depends on the first pass's embeddings, those of the encoder on the second's.
        step = cache.step(batch, encoder, lambda e: LossOutput(((e * target) ** 2).sum(), torch.zeros(()), torch.zeros(())), seed=seed)
        found.append({"": step.embeddings_ND, **{n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}})
    assert largest_difference(found[0], found[1]) < 1e-5
    assert largest_difference(found[2], found[1]) > 1e-2  # the control: dropout is on


def test_a_folder_of_a_modernbert_is_packed(tmp_path: Path, small_tokenizer: Any, texts: list[str]) -> None:
    model = small_model("modernbert", small_tokenizer.backend.get_vocab_size())
    TextEncoder(model, small_tokenizer).save_pretrained(tmp_path / "encoder")
    again = TextEncoder.from_pretrained(tmp_path / "encoder", training_start=True, dropout=0.25)
    assert again.packed is not None and again.backbone.config.mlp_dropout == 0.25
    found = again.embed(texts[:9], "query")
    again.packed = None
    assert (found - again.embed(texts[:9], "query")).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("bert", {"is_decoder": True}, "bert with is_decoder: true"),
        ("roberta", {"is_decoder": True}, "roberta with is_decoder: true"),
        ("modernbert", {"rope_parameters": {k: {"rope_type": "dynamic", "factor": 2.0} for k in ("full_attention", "sliding_attention")}}, "modernbert with rope_type: dynamic"),
        ("electra", {}, "electra"),
    ],
)  # fmt: skip
def test_what_a_family_does_not_compute_is_padded(name: str, changes: dict[str, Any], reason: str) -> None:
    model = small_model(name, **changes)
    assert packed_encoder(model) is None
    assert why_padded(model.config.to_dict()) == reason


def test_relative_positions_of_a_bert_are_padded() -> None:
    model = small_model("bert")
    assert packed_encoder(model) is not None
    model.config.position_embedding_type = "relative_key"
    assert packed_encoder(model) is None
    assert why_padded({"model_type": "bert", "position_embedding_type": "relative_key"}) == "bert with position_embedding_type: relative_key"
    assert why_padded({}) == "a model without model_type"


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_tells_what_its_model_does(name: str) -> None:
    model = small_model(name)
    assert MODEL_TYPES[model.config.model_type] == type(model).__name__
    assert why_padded(model.config.to_dict()) is None


def test_a_bias_of_attention_lies_as_a_gpus_kernels_take_it() -> None:
    """MPNet's, last dimension in a row: else each layer writes out all scores there."""
    view = packed_encoder(small_model("mpnet"))
    bias_HLL = view.bias(9, torch.device("cpu"))  # type: ignore[union-attr, operator]
    assert bias_HLL.shape[1:] == (9, 9) and bias_HLL.is_contiguous()
