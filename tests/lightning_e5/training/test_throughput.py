"""Counted arithmetic against torch's own counter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lightning_e5.models.packed.bert import PackedBert
from lightning_e5.models.packed.modernbert import PackedModernBert
from lightning_e5.training import out_of_memory, throughput
from lightning_e5.training.out_of_memory import activation_bytes, available_bytes, is_out_of_memory
from lightning_e5.training.throughput import encoder_flops, gemm_peak
from tests.lightning_e5.models.packed.small_models import small_model


def test_encoder_flops_are_those_that_torch_counts(small_bert) -> None:  # type: ignore[no-untyped-def]
    lengths = [3, 3, 5, 9]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        PackedBert(small_bert.eval())(torch.ones(sum(lengths), dtype=torch.int64), lengths)
    # torch does not count the attention products where it runs them fused.
    linear_only = encoder_flops(small_bert.config, lengths) - 2 * 4.0 * sum(n * n for n in lengths) * 32
    assert linear_only <= counter.get_total_flops() <= encoder_flops(small_bert.config, lengths)


def test_a_windows_pairs_and_a_gates_product_are_counted() -> None:
    model = small_model("modernbert").eval()  # a global layer and a local one, of 4 tokens to each side
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        PackedModernBert(model).eval()(torch.full((7,), 5), [1] * 7)
    assert counter.get_total_flops() == encoder_flops(model.config, [1] * 7)
    near = sum(abs(a - b) <= 4 for a in range(20) for b in range(20))
    assert encoder_flops(model.config, [20]) - 20 * encoder_flops(model.config, [1]) == 4 * 32 * (20 * 20 + near - 2 * 20)
    inner = small_model("distilbert").config
    assert encoder_flops(inner, [1]) == 2 * (2 * (4 * 32 * 32 + 2 * 32 * 48) + 4 * 32)


def test_a_peak_is_measured() -> None:
    assert gemm_peak(torch.device("cpu"), torch.float32, seconds=0.02) > 1e9


def test_a_peak_is_that_of_the_products_that_a_step_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a float32 model multiplies in TF32 where it is trained so; the peak of whole float32 would give an MFU above 1."""
    seen: list[str] = []

    def rate(*given: object) -> float:
        seen.append(torch.backends.cuda.matmul.fp32_precision)
        return 1.0

    monkeypatch.setattr(throughput, "matmul_rate", rate)
    outside = torch.backends.cuda.matmul.fp32_precision
    for tf32 in (True, False):
        assert gemm_peak(torch.device("cuda", 7), torch.float32, tf32=tf32) == 1.0
        throughput.model_peak(torch.nn.Linear(1, 1), torch.device("cuda", 7), tf32=tf32)
    assert seen == ["tf32", outside]


def test_activation_bytes_counts_each_storage_once() -> None:
    weight = torch.randn(50, 40, requires_grad=True)
    inputs = torch.randn(20, 50)
    without = {weight.untyped_storage().data_ptr()}
    # relu keeps its output, the first product its input: 20 x 50 and 20 x 40 floats.
    assert activation_bytes(lambda: torch.relu(inputs @ weight), without) == 4 * (20 * 50 + 20 * 40)
    assert activation_bytes(lambda: inputs * 2, without) == 0


def test_pages_of_files_are_no_used_memory_of_a_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out_of_memory, "_CGROUP", tmp_path)
    for name, content in (("max", "90000000"), ("current", "89000000"), ("stat", "anon 8000000\nfile 81000000\ninactive_file 70000000")):
        (tmp_path / f"memory.{name}").write_text(f"{content}\n")
    assert available_bytes(torch.device("cpu")) == 71_000_000
    (tmp_path / "memory.stat").write_text("anon 89000000\n")
    assert available_bytes(torch.device("cpu")) == 1_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(torch.device("cpu")) > 71_000_000


def test_out_of_memory_is_told_from_other_errors() -> None:
    assert available_bytes(torch.device("cpu")) > 2**20
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shapes"))
