"""Counted arithmetic against torch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lightning_e5.models.packed_bert import PackedBert
from lightning_e5.training.out_of_memory import activation_bytes, available_bytes, is_out_of_memory
from lightning_e5.training.throughput import encoder_flops, gemm_peak


def test_encoder_flops_are_those_that_torch_counts(small_bert) -> None:  # type: ignore[no-untyped-def]
    lengths = [3, 3, 5, 9]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        PackedBert(small_bert.eval())(torch.ones(sum(lengths), dtype=torch.int64), lengths)
    # torch does not count the attention products where it runs them fused.
    linear_only = encoder_flops(small_bert.config, lengths) - 2 * 4.0 * sum(n * n for n in lengths) * 32
    assert linear_only <= counter.get_total_flops() <= encoder_flops(small_bert.config, lengths)


def test_a_peak_is_measured() -> None:
    assert gemm_peak(torch.device("cpu"), torch.float32, seconds=0.02) > 1e9


def test_activation_bytes_counts_each_storage_once() -> None:
    weight = torch.randn(50, 40, requires_grad=True)
    inputs = torch.randn(20, 50)
    without = {weight.untyped_storage().data_ptr()}
    # relu keeps its output, the first product its input: 20 x 50 and 20 x 40 floats.
    assert activation_bytes(lambda: torch.relu(inputs @ weight), without) == 4 * (20 * 50 + 20 * 40)
    assert activation_bytes(lambda: inputs * 2, without) == 0


def test_out_of_memory_is_told_from_other_errors() -> None:
    assert available_bytes(torch.device("cpu")) > 2**20
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shapes"))
