"""Which number format of `bounded_scores` is the fastest here, by measuring."""

from __future__ import annotations

import functools
import time

import torch

from lightning_e5.curation.consistency_filter.bounded_scores import ScoreFormat
from lightning_e5.training.throughput import gemm_peak, matmul_rate


def fastest_format(device: torch.device, every_rank: bool) -> ScoreFormat:
    """The format to use, measured once per process.

    Args:
        every_rank: ranks are counted to the end; then a coarse format leaves too many scores undecided, and float32 is used.
    """
    if device.type == "cuda":
        return "fp32" if every_rank else "bf16"
    return "fp32" if every_rank else _fastest(torch.get_num_threads())


#: Rows, width and columns of a product that is done in a moment even where a processor has no instructions for a format.
_SMALL = (64, 256, 128)
#: A format that is so many times slower than float32 in the small product is not measured at full size, where it would take seconds.
_HOPELESS = 4


@functools.lru_cache
def _fastest(threads: int) -> ScoreFormat:
    cpu = torch.device("cpu")
    rates: dict[ScoreFormat, float] = {"fp32": gemm_peak(cpu, torch.float32, 0.05)}
    enough = matmul_rate(cpu, torch.float32, _SMALL, 0.005) / _HOPELESS
    if matmul_rate(cpu, torch.bfloat16, _SMALL, 0.005) > enough:
        rates["bf16"] = gemm_peak(cpu, torch.bfloat16, 0.05)
    if hasattr(torch, "_int_mm") and _int8_rate(*_SMALL[:2]) > enough:
        rates["int8"] = _int8_rate()
    # A coarser format has to pay for what it leaves undecided.
    return max(rates, key=lambda name: rates[name] * (1.0 if name == "fp32" else 0.8))


def _int8_rate(rows: int = 512, width: int = 768) -> float:
    """Operations per second; 0 where the product, which torch does not yet call public, is not the right one."""
    step = torch.arange(2 * rows * width, dtype=torch.int32)
    right = (step * 7919 % 255 - 127).to(torch.int8).view(2 * rows, width)
    left = (step[: rows * width] * 104729 % 255 - 127).to(torch.int8).view(rows, width)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        found = torch._int_mm(left, right.T)
        best = min(best, time.perf_counter() - started)
    good = torch.equal(found.double(), left.double() @ right.double().T)
    return 4.0 * rows * rows * width / best if good else 0.0
