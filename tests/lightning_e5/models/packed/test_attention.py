"""Attention within a window equals its definition; long texts keep no matrix of their tokens by their tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.scaling import LiveBytes
from lightning_e5.models.packed import attention
from lightning_e5.models.packed.attention import attend, attend_near
from lightning_e5.models.packed.families import packed_encoder
from lightning_e5.models.padded import padded_states
from lightning_e5.training.out_of_memory import activation_bytes
from tests.lightning_e5.models.packed.small_models import small_model


def random_qkv(length: int, texts: int = 2) -> list[Tensor]:
    made = torch.Generator().manual_seed(length)
    return [torch.randn(texts, 3, length, 8, generator=made, dtype=torch.float64, requires_grad=True) for _ in range(3)]


def by_definition(query: Tensor, key: Tensor, value: Tensor, window: int, factor: float = 1.0) -> Tensor:
    """Token by token, over those in reach."""
    rows = []
    for place in range(query.shape[2]):
        near = slice(max(0, place - window), place + window + 1)
        scores = (query[:, :, place, None] * key[:, :, near]).sum(-1) / 8**0.5
        rows.append((factor * torch.softmax(scores, -1)[..., None] * value[:, :, near]).sum(2))
    return torch.stack(rows, 2)


def with_gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    target = torch.randn(output.shape, generator=torch.Generator().manual_seed(0), dtype=output.dtype)
    return [output, *torch.autograd.grad((output * target).sum(), inputs)]


@pytest.mark.parametrize("length", [1, 5, 6, 12, 13, 16, 17, 31])
def test_attention_within_a_window_is_its_definition(length: int) -> None:
    qkv = random_qkv(length)
    expected = with_gradients(by_definition(*qkv, window=4), qkv)
    for found, wanted in zip(with_gradients(attend_near(*qkv, 0.0, 4), qkv), expected, strict=True):
        assert (found - wanted).abs().max() < 1e-12
    with torch.no_grad():
        assert (attend_near(*qkv, 0.0, 4) - expected[0]).abs().max() < 1e-12
        assert length < 6 or (attend_near(*qkv, 0.0, 5) - expected[0]).abs().max() > 1e-3  # the control: a window of one more


@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("biased", [False, True])
def test_long_texts_attend_as_short_ones_do(dropout: float, biased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "dropped", lambda x, rate: x * (1 + rate))  # the same whatever is drawn first
    qkv, bias = random_qkv(40), torch.randn(3, 40, 40, dtype=torch.float64, requires_grad=True)
    inputs = [*qkv, bias] if biased else qkv
    expected = with_gradients(attend(*qkv, dropout, bias if biased else None), inputs)
    monkeypatch.setattr(attention, "LONG", 32)
    monkeypatch.setattr(attention, "_QUERIES", 16)
    for found, wanted in zip(with_gradients(attend(*qkv, dropout, bias if biased else None), inputs), expected, strict=True):
        assert (found - wanted).abs().max() < 1e-12


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_long_texts_keep_no_matrix_of_their_tokens_by_their_tokens(dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(length: int) -> float:
        qkv = random_qkv(length, texts=1)
        return activation_bytes(lambda: attend(*qkv, dropout), set())

    written_out = kept(800) / kept(400)
    monkeypatch.setattr(attention, "LONG", 256)
    assert kept(800) / kept(400) < 2.1 < 3.5 < written_out


def test_modernbert_at_4096_tokens_is_transformers_own() -> None:
    """Its window is ModernBERT-base's, 64 tokens to each side; one layer is global, one local."""
    lengths = [4096]
    model = small_model("modernbert", positions=8192, local_attention=128, hidden_size=16, num_attention_heads=2).eval()
    ids = torch.randint(5, 90, (sum(lengths),), generator=torch.Generator().manual_seed(3))
    packed = packed_encoder(model)
    assert packed is not None
    target = torch.randn(len(ids), 16, generator=torch.Generator().manual_seed(4))
    found = []
    for states in (packed.eval()(ids, lengths), padded_states(model, ids, lengths)):
        model.zero_grad()
        (states * target).sum().backward()
        found.append([states.detach(), *(p.grad.clone() for p in model.parameters())])
        del states
    scale = max(float(g.abs().max()) for g in found[1][1:])
    assert (found[0][0] - found[1][0]).abs().max() < 1e-5 * found[1][0].abs().max()
    assert max(float((a - b).abs().max()) for a, b in zip(found[0][1:], found[1][1:], strict=True)) < 1e-5 * scale
    model.config.local_attention = 126
    with torch.no_grad():
        assert (packed(ids, lengths) - found[1][0]).abs().max() > 1e-3  # the control: a window of one less


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_modernberts_peak_memory_grows_with_the_length_alone(rate: float) -> None:
    model = small_model("modernbert", positions=8192, local_attention=128, attention_dropout=rate).train()
    packed = packed_encoder(model)
    assert packed is not None
    packed.train()

    def peak(length: int, view: object) -> int:
        ids = torch.randint(5, 90, (length,))
        with LiveBytes() as live:
            (packed(ids, [length]) if view is packed else padded_states(model, ids, [length])).sum().backward()
        model.zero_grad()
        return live.peak

    for shorter in (2048,) if rate else (2048, 4096):
        assert peak(2 * shorter, packed) / peak(shorter, packed) < 2.15
    model.set_attn_implementation("eager")
    assert peak(4096, model) / peak(2048, model) > 3  # the control: the matrices written out
