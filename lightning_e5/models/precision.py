"""In which precision a backbone runs: float32, bfloat16 under autocast, or whichever this device is faster in."""

from __future__ import annotations

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
    if precision != "auto":
        return precision == "bf16"
    return _bf16_is_faster(torch.device(device).type)


@lru_cache
def _bf16_is_faster(kind: str) -> bool:
    if kind == "cuda":
        return torch.cuda.is_bf16_supported()
    device = torch.device(kind)
    return gemm_peak(device, torch.bfloat16) > _WORTH * gemm_peak(device, torch.float32)
