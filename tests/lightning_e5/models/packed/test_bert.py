"""The packed forward equals Hugging Face's padded one, on real text; so do its gradients."""

from __future__ import annotations

import pytest
import torch

from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.packed.bert import PackedBert
from lightning_e5.models.packed.layout import LengthRun, length_runs
from lightning_e5.models.pooling import average_pool
from lightning_e5.training.optimizer import freeze_position_embeddings


def padded_states(bert, pieces):  # type: ignore[no-untyped-def]
    ids = torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(p) for p in pieces], batch_first=True)
    return bert(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]


@pytest.mark.parametrize("order", ["sorted", "mixed"])
def test_packed_equals_padded(small_bert, small_tokenizer, texts, order: str) -> None:  # type: ignore[no-untyped-def]
    ids, lengths = small_tokenizer.encode(texts[:60], "passage")
    pieces = list(torch.split(torch.from_numpy(ids).long(), lengths.tolist()))
    if order == "sorted":
        pieces.sort(key=len)
    small_bert.eval()
    found = PackedBert(small_bert).eval()(torch.cat(pieces), [len(p) for p in pieces])
    assert (found - padded_states(small_bert, pieces)).abs().max() < 1e-5


@pytest.mark.parametrize("scatter", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal(small_bert, small_tokenizer, texts, scatter: bool, checkpointing: bool) -> None:  # type: ignore[no-untyped-def]
    small_bert.double().eval()
    ids, lengths = small_tokenizer.encode(texts[:20], "query")
    pieces = sorted(torch.split(torch.from_numpy(ids).long(), lengths.tolist()), key=len)
    target = torch.randn(sum(map(len, pieces)), 32, dtype=torch.float64)
    (padded_states(small_bert, pieces) * target).sum().backward()
    expected = {n: p.grad.clone() for n, p in small_bert.named_parameters() if p.grad is not None}
    small_bert.zero_grad()
    packed = PackedBert(small_bert, gradient_checkpointing=checkpointing, scatter_word_gradient=scatter).eval()
    (packed(torch.cat(pieces), [len(p) for p in pieces]) * target).sum().backward()
    scale = max(float(g.abs().max()) for g in expected.values())  # some are 0 in theory: a key's bias moves no softmax
    for name, parameter in small_bert.named_parameters():
        assert (parameter.grad - expected[name]).abs().max() < 1e-12 * scale, name


def dropped_gradients(bert, pieces, checkpointing: bool, precision: str, seed: int = 6):  # type: ignore[no-untyped-def]
    packed = PackedBert(bert, gradient_checkpointing=checkpointing, scatter_word_gradient=True).train()
    target = torch.randn(sum(map(len, pieces)), 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(seed)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        states = packed(torch.cat(pieces), [len(p) for p in pieces])
    assert states.dtype == (torch.float64 if precision == "fp64" else torch.float32)  # the last operation is a LayerNorm
    (states * target).sum().backward()
    found = {n: p.grad.clone() for n, p in bert.named_parameters() if p.grad is not None}
    bert.zero_grad()
    return found


@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16"])
def test_packed_gradient_checkpointing_changes_no_gradient_with_dropout_on(small_bert, small_tokenizer, texts, precision: str) -> None:  # type: ignore[no-untyped-def]
    if precision == "fp64":
        small_bert.double()
    freeze_position_embeddings(small_bert)
    ids, lengths = small_tokenizer.encode(texts[:20], "query")
    pieces = sorted(torch.split(torch.from_numpy(ids).long(), lengths.tolist()), key=len)
    plain, again = (dropped_gradients(small_bert, pieces, c, precision) for c in (False, True))
    assert plain.keys() == again.keys() and "embeddings.position_embeddings.weight" not in plain
    for name, gradient in plain.items():
        assert torch.equal(gradient, again[name]), name
    other = dropped_gradients(small_bert, pieces, True, precision, seed=7)  # the control: dropout is on
    assert not torch.allclose(plain["embeddings.word_embeddings.weight"], other["embeddings.word_embeddings.weight"])


def test_packed_equals_padded_under_bf16_autocast(small_bert, small_tokenizer, texts) -> None:  # type: ignore[no-untyped-def]
    """As near to float32 as Hugging Face's own forward pass under autocast; pooling is float32."""
    ids, lengths = small_tokenizer.encode(texts[:40], "passage")
    pieces = sorted(torch.split(torch.from_numpy(ids).long(), lengths.tolist()), key=len)
    packed, counts = PackedBert(small_bert.eval()).eval(), [len(p) for p in pieces]
    with torch.no_grad():
        precise = padded_states(small_bert, pieces)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            theirs, ours = padded_states(small_bert, pieces), packed(torch.cat(pieces), counts)
        encoder = TextEncoder(small_bert, small_tokenizer, precision="bf16").eval()
        assert encoder(torch.cat(pieces), counts).dtype == torch.float32
    assert (theirs - precise).abs().max() > 1e-4
    assert (ours - precise).abs().mean() < 1.2 * (theirs - precise).abs().mean() and (ours - precise).abs().max() < 0.1


def test_texts_do_not_see_each_other(small_bert) -> None:  # type: ignore[no-untyped-def]
    packed = PackedBert(small_bert).eval()
    first = packed(torch.tensor([5, 6, 7, 8, 9, 10]), [3, 3])
    second = packed(torch.tensor([5, 6, 7, 20, 21, 22]), [3, 3])
    assert torch.equal(first[:3], second[:3]) and not torch.allclose(first[3:], second[3:])


def test_segments_are_token_types(small_bert) -> None:  # type: ignore[no-untyped-def]
    small_bert.eval()
    ids, types = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[0, 0, 1, 1]])
    expected = small_bert(input_ids=ids, token_type_ids=types).last_hidden_state[0]
    found = PackedBert(small_bert).eval()(ids[0], [4], types[0])
    assert (found - expected).abs().max() < 1e-5


def test_runs_and_pooling() -> None:
    assert length_runs([2, 2, 3, 2]) == [LengthRun(0, 2, 2), LengthRun(4, 1, 3), LengthRun(7, 1, 2)]
    states = torch.arange(18.0).view(9, 2)
    pooled = average_pool(states, length_runs([2, 2, 3, 2]))
    expected = torch.stack([states[a:b].mean(0) for a, b in [(0, 2), (2, 4), (4, 7), (7, 9)]])
    assert torch.equal(pooled, expected)
