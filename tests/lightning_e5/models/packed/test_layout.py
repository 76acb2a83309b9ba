"""Positions, pooling and padded groups in few operations are those of text after text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_e5.models.packed import attention
from lightning_e5.models.packed.attention import self_attention
from lightning_e5.models.packed.families import packed_encoder
from lightning_e5.models.packed.layout import MOST_GROUPS, Layout
from lightning_e5.models.pooling import average_pool
from tests.lightning_e5.models.packed.small_models import small_model
from tests.lightning_e5.models.packed.test_step_weights import Calls

CPU = torch.device("cpu")
SORTED, UNSORTED = [1, 2, 2, 3, 7, 8, 8, 9, 16, 17, 40], [40, 3, 3, 12, 5, 1, 33, 8, 40]


@pytest.mark.parametrize("lengths", [SORTED, UNSORTED, [5]])
def test_positions_are_the_places_in_each_text(lengths: list[int]) -> None:
    layout = Layout.of(lengths, CPU)
    assert layout.positions(CPU).tolist() == [place for length in lengths for place in range(length)]
    assert layout.starts_B1.tolist() == [sum(lengths[:n]) for n in range(len(lengths) + 1)]
    assert (layout.lengths().tolist(), layout.tokens, layout.longest) == (lengths, sum(lengths), max(lengths))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-15), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("lengths", [SORTED, UNSORTED])
def test_one_mean_over_all_texts_is_that_of_each(lengths: list[int], dtype: torch.dtype, bound: float) -> None:
    layout = Layout.of(lengths, CPU)
    draw = torch.Generator().manual_seed(1)
    states_TD = torch.randn(sum(lengths), 6, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()
    weight_BD = torch.randn(len(lengths), 6, generator=draw, dtype=torch.float64).to(dtype)
    found = []
    for given in (None, layout.lengths()):
        pooled_BD = average_pool(states_TD, layout.runs, given)
        found.append((pooled_BD, *torch.autograd.grad((pooled_BD * weight_BD).sum(), [states_TD])))
    for ours, expected in zip(found[1], found[0], strict=True):
        assert ours.dtype == dtype and (ours - expected).abs().max() <= bound * expected.abs().max()
    shifted = torch.cat([layout.lengths()[1:], layout.lengths()[:1]])  # the control: the lengths of other texts
    assert (average_pool(states_TD, layout.runs, shifted) - found[0][0]).abs().max() > 0.1
    with Calls() as calls:
        average_pool(states_TD.detach(), layout.runs, layout.lengths())
    assert calls.found["segment_reduce"] == 1 and sum(calls.found.values()) <= 5


def random_qkv(lengths: list[int]) -> Tensor:
    return torch.randn(sum(lengths), 3, 2, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("lengths", [SORTED, UNSORTED, [8, 8], list(range(1, 300, 7)), [1] * 3 + [700]])
def test_attention_of_padded_groups_is_that_of_equal_lengths(lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    qkv, layout = random_qkv(lengths), Layout.of(lengths, CPU)
    weight = torch.randn(sum(lengths), 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = []
    for padded in (False, True):
        monkeypatch.setattr(attention, "pads_groups", lambda layout, device, padded=padded: padded)
        output = self_attention(qkv, layout, 0.0)
        found.append((output, *torch.autograd.grad((output * weight).sum(), [qkv])))
    for ours, expected in zip(found[1], found[0], strict=True):
        assert (ours - expected).abs().max() < 1e-12 * max(1.0, float(expected.detach().abs().max()))
    made = layout.padded(torch.float64)
    groups = made.groups
    assert all(g.length % 8 == 0 for g in groups) and len({g.length for g in groups}) <= MOST_GROUPS
    assert lengths != sorted(lengths) or len(groups) <= MOST_GROUPS
    if any(length % 8 for length in lengths):  # the control: tokens that attend to the padding
        open_masks = made._replace(masks=[torch.zeros_like(mask) for mask in made.masks])
        assert (attention._padded_attention(qkv, open_masks, 0.0) - found[0][0]).abs().max() > 1e-3


def test_padding_is_for_a_gpu_and_many_lengths() -> None:
    many, few = Layout.of(list(range(1, 100)), CPU), Layout.of([5, 5, 9, 9], CPU)
    cuda = torch.device("cuda")
    assert [attention.pads_groups(layout, device) for layout in (many, few) for device in (cuda, CPU)] == [True, False, False, False]


def test_dropout_of_padded_groups_is_of_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """With equal values the output is the sum of the probabilities that are left, 1 on average."""
    lengths = [3, 9, 20, 33, 50] * 8
    qkv = random_qkv(sorted(lengths)).detach()
    qkv[:, 2] = 1.0
    monkeypatch.setattr(attention, "pads_groups", lambda layout, device: True)
    torch.manual_seed(0)
    output = self_attention(qkv, Layout.of(sorted(lengths), CPU), 0.25)
    assert output.mean() == pytest.approx(1.0, abs=0.02) and (output - 1).abs().max() > 0.1
    assert (self_attention(qkv, Layout.of(sorted(lengths), CPU), 0.0) - 1).abs().max() < 1e-12


def operations(name: str, lengths: list[int], monkeypatch: pytest.MonkeyPatch, way: str) -> int:
    """Of one forward and backward pass as on a GPU: attention by torch's own kernel for padded texts, or by one for all lengths."""
    model = small_model(name, positions=128).train()
    packed: Any = packed_encoder(model)
    packed.train()

    def fused(query: Tensor, key: Tensor, value: Tensor, dropout: float, bias: Tensor | None = None, *, training: bool = False) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, None, dropout)

    monkeypatch.setattr(attention, "attend", fused)
    monkeypatch.setattr(attention, "pads_groups", lambda layout, device: way == "padded")
    monkeypatch.setattr(attention, "has_varlen", lambda *args, **kwargs: way == "varlen")
    monkeypatch.setattr(attention, "varlen_attention", lambda query, key, value, *args: value * 1.0)  # one operation for its kernel
    with Calls() as calls:
        packed(torch.randint(5, 90, (sum(lengths),)), lengths).sum().backward()
    monkeypatch.undo()
    return sum(calls.found.values())


def test_a_chunk_of_many_lengths_takes_few_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = list(range(4, 84))
    grouped, padded, varlen = (operations("bert", lengths, monkeypatch, way) for way in ("grouped", "padded", "varlen"))
    assert varlen < padded < grouped / 2 and varlen < 300, (grouped, padded, varlen)
