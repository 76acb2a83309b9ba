"""Weights made once per step give the gradients, to the bit, of weights made for each chunk anew; one that has changed since is refused."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.packed import step_weights
from lightning_e5.models.packed.encoder import held_weights, inference
from lightning_e5.models.packed.step_weights import StepWeights
from lightning_e5.training.grad_cache import GradCache
from lightning_e5.training.out_of_memory import activation_bytes
from lightning_e5.types import LossOutput, TokenBatch
from tests.lightning_e5.models.packed.small_models import NAMES, small_model

LENGTHS = [3, 12, 5, 1, 33, 33, 8, 40, 12, 13, 7, 3]


class Calls(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.found[name] = self.found.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def encoder(name: str, tokenizer: Any, precision: Any, *, checkpointing: bool = False) -> TextEncoder:
    made = TextEncoder(small_model(name), tokenizer.cut_at(40), precision="bf16" if precision == "bf16" else "fp32").train()
    assert made.packed is not None
    made.packed.scatter_word_gradient, made.packed.gradient_checkpointing = True, checkpointing
    return made.double() if precision == "fp64" else made


def texts() -> TokenBatch:
    return TokenBatch(torch.randint(5, 90, (sum(LENGTHS),), generator=torch.Generator().manual_seed(3)), torch.tensor(LENGTHS))


def square(embeddings_ND: Tensor) -> LossOutput:
    weight_ND = torch.randn(embeddings_ND.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64).to(embeddings_ND.dtype)
    zero = torch.zeros(())
    return LossOutput((embeddings_ND * weight_ND).sum(), zero, zero)


def gradients(model: TextEncoder, *, held: bool, graph_tokens: int | None = 0, chunk_tokens: int = 50) -> dict[str, Tensor]:
    parameters = list(model.parameters())
    with held_weights(model) if held else nullcontext(tuple) as shared:
        GradCache(chunk_tokens=chunk_tokens, graph_tokens=graph_tokens).step(
            texts(), lambda ids, lengths: functional.normalize(model(ids, lengths), dim=1), square, seed=5, parameters=parameters, shared=shared
        )
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize(("name", "precision"), [("bert", "fp64"), *((name, "bf16") for name in NAMES), ("mpnet", "fp32")])
def test_the_gradients_are_those_of_weights_made_for_each_chunk(name: str, precision: str, small_tokenizer: Any) -> None:
    for checkpointing, graph_tokens in ((False, 100), (True, 0), *([(False, None)] if name == "bert" else [])):
        model = encoder(name, small_tokenizer, precision, checkpointing=checkpointing)
        expected, found = (gradients(model, held=held, graph_tokens=graph_tokens) for held in (False, True))
        assert len(expected) > 12 and expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_sums_over_chunks_are_float32_sums(small_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: summed in bfloat16, they are other ones by far."""
    model = encoder("bert", small_tokenizer, "bf16")
    found = gradients(model, held=True, chunk_tokens=1)
    assert {g.dtype for g in found.values()} == {torch.float32}
    key = "backbone.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(found[key], found[key].bfloat16().float())
    hand_on = step_weights._HandOn.__call__

    def rounded(self: Any, leaf: Tensor) -> None:
        hand_on(self, leaf)
        for parameter in self._parameters:
            parameter.grad.copy_(parameter.grad.bfloat16())

    monkeypatch.setattr(step_weights._HandOn, "__call__", rounded)
    other = gradients(model, held=True, chunk_tokens=1)[key]
    assert (other - found[key]).abs().max() > 1e-4 * found[key].abs().max()


def test_a_weight_that_has_changed_since_is_refused(small_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for precision, optimizer in (("bf16", torch.optim.AdamW), ("fp32", torch.optim.SGD)):
        model = encoder("bert", small_tokenizer, precision).eval()
        ids, lengths = torch.arange(10, 30), [9, 11]
        with held_weights(model):
            before = model(ids, lengths)
            before.square().sum().backward()
            optimizer(model.parameters(), lr=0.1).step()
            with pytest.raises(RuntimeError, match="a weight has changed since its copy for this step was made"):
                model(ids, lengths)
            monkeypatch.setattr(StepWeights, "check", lambda self: None)
            stale = model(ids, lengths)  # the control: what nothing would have noticed
        fresh = model(ids, lengths)
        monkeypatch.undo()
        assert not torch.equal(stale, fresh) and not torch.equal(before, fresh)
        with held_weights(model):  # the next step
            assert torch.equal(model(ids, lengths), fresh)


def test_a_weight_in_other_memory_is_refused(small_tokenizer: Any) -> None:
    """As sharded parameters are, which are gathered for each step."""
    model = encoder("bert", small_tokenizer, "bf16")
    with held_weights(model):
        model(torch.arange(10, 20), [10])
        weight = model.backbone.encoder.layer[0].output.dense.weight
        weight.data = weight.data.clone()
        with pytest.raises(RuntimeError, match="has changed"):
            model(torch.arange(10, 20), [10])


def test_frozen_weights_and_gradients_from_elsewhere(small_tokenizer: Any) -> None:
    for precision in ("fp32", "bf16"):
        model = encoder("bert", small_tokenizer, precision).eval()
        attention = model.backbone.encoder.layer[0].attention.self
        attention.key.weight.requires_grad_(False)
        model.backbone.encoder.layer[1].intermediate.dense.weight.requires_grad_(False)
        found = []
        for held in (False, True):
            attention.value.weight.grad = torch.ones_like(attention.value.weight)
            with held_weights(model) if held else nullcontext():
                for first in (10, 40):
                    model(torch.arange(first, first + 20), [9, 11]).square().sum().backward()
            found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
            model.zero_grad()
        assert found[0].keys() == found[1].keys() and "backbone.encoder.layer.0.attention.self.key.weight" not in found[0]
        assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_weights_are_cast_and_joined_once_for_all_chunks(small_tokenizer: Any) -> None:
    layers, matrices, chunks = 2, 6, 12
    counted = {}
    for held in (False, True):
        with Calls() as calls:
            gradients(encoder("bert", small_tokenizer, "bf16"), held=held, chunk_tokens=1)
        counted[held] = calls.found
    # Without: 6 matrices and as many biases of 2 layers, in 12 chunks, forward twice and back once.
    saved = counted[False]["_to_copy"] - counted[True]["_to_copy"]
    assert saved > 2 * layers * 4 * 3 * (chunks - 2), (counted, matrices)
    assert counted[False]["cat"] - counted[True]["cat"] == 2 * layers * (2 * chunks - 1)


def test_a_kept_graph_holds_no_weights_of_its_own(small_tokenizer: Any) -> None:
    model = encoder("bert", small_tokenizer, "bf16")
    kept = {}
    for held in (False, True):
        with held_weights(model) if held else nullcontext(tuple) as shared:
            model(torch.arange(10, 12), [2])
            known = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *shared())}
            kept[held] = activation_bytes(lambda: model(torch.arange(10, 12), [2]), known)
    in_layers = sum(p.numel() for name, p in model.named_parameters() if ".dense.weight" in name or ".self." in name)
    assert kept[False] - kept[True] > 1.5 * in_layers


def test_inference_gives_each_module_its_mode_back_and_lets_weights_go(small_tokenizer: Any) -> None:
    model = encoder("bert", small_tokenizer, "bf16")
    frozen = model.backbone.encoder.layer[0].eval()
    modes = [module.training for module in model.modules()]
    ids, lengths = torch.arange(10, 30), [9, 11]
    with inference(model), torch.no_grad():
        assert not any(module.training for module in model.modules())
        before = model(ids, lengths)
    with pytest.raises(ZeroDivisionError), inference(model):
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == modes and model.training and not frozen.training
    with torch.no_grad():
        model.backbone.encoder.layer[0].output.dense.weight.mul_(2)
    with inference(model), torch.no_grad():
        assert not torch.equal(model(ids, lengths), before), "none of the first block's weights is left"
