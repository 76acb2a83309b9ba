"""In which precision a backbone runs: float32, bfloat16 under autocast, or whichever this device is faster in."""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Literal

import torch

from lightning_e5.training.throughput import gemm_peak

Precision = Literal["fp32", "bf16", "auto"]
#: bfloat16 must be this much faster on a CPU to be worth its rounding.
_WORTH = 1.2


def runs_in_bf16(precision: Precision, device: torch.device | str) -> bool:
    """Whether a backbone with this precision runs in bfloat16 on this device.

    ``auto``: on a GPU that has bfloat16; on a CPU whose measured matrix product is 1.2 times as fast in it. Some CPUs are
    twice as fast in bfloat16, others half as fast (both measured), so the answer is the same in every run on one machine.
    """
    if precision == "bf16":
        _say_if_emulated(torch.device(device).type)
    if precision != "auto":
        return precision == "bf16"
    return _bf16_is_faster(torch.device(device).type)


@lru_cache
def _bf16_is_faster(kind: str) -> bool:
    if kind == "cuda":
        return _has_bf16()
    device = torch.device(kind)
    return gemm_peak(device, torch.bfloat16) > _WORTH * gemm_peak(device, torch.float32)


def _has_bf16() -> bool:
    """Whether all GPUs compute in bfloat16: V100 and T4 emulate it, and ``torch.cuda.is_bf16_supported`` says yes."""
    if torch.version.hip:
        return torch.cuda.is_bf16_supported()
    return all(torch.cuda.get_device_capability(i) >= (8, 0) for i in range(torch.cuda.device_count()))


@lru_cache
def _say_if_emulated(kind: str) -> None:
    """Once, that what was asked for by name is slow on this GPU."""
    if kind == "cuda" and not _has_bf16():
        name = torch.cuda.get_device_name()
        print(f"precision: bf16: {name} only emulates bfloat16, slower than its float32; fp32, or auto, is faster", file=sys.stderr, flush=True)
