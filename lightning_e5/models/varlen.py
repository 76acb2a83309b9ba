"""Attention over packed texts of unequal length in one GPU kernel, where a library with one is there.

``flash-attn`` where it is installed (it has dropout), else ``torch.nn.attention.varlen`` where torch has it (it has none,
so a training with attention dropout takes the groups of equal length instead). Both need CUDA and half precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor


@cache
def _flash() -> Callable[..., Any] | None:
    try:
        from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return None
    return flash_attn_varlen_func  # type: ignore[no-any-return, unused-ignore]


@cache
def _torch_varlen() -> Callable[..., Any] | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn  # type: ignore[no-any-return, unused-ignore]


def has_varlen(device: torch.device, dtype: torch.dtype, dropout: float) -> bool:
    """Whether `varlen_attention` can run with these."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    return _flash() is not None or (dropout == 0.0 and _torch_varlen() is not None)


def cumulative(lengths: Sequence[int], device: torch.device) -> Tensor:
    """int32 ``[B + 1]`` token position at which each text starts, and the end."""
    return torch.nn.functional.pad(torch.tensor(lengths, dtype=torch.int32).cumsum(0, dtype=torch.int32), (1, 0)).to(device)


def varlen_attention(
    query_THW: Tensor, key_THW: Tensor, value_THW: Tensor, starts_B1: Tensor, longest: int, dropout: float
) -> Tensor:
    """Softmax attention within each text: three of ``[T, H, W] -> [T, H, W]``."""
    flash = _flash()
    if flash is not None:
        return flash(  # type: ignore[no-any-return]
            query_THW, key_THW, value_THW, starts_B1, starts_B1, longest, longest, dropout_p=dropout
        )
    attend = _torch_varlen()
    assert attend is not None and dropout == 0.0
    return attend(query_THW, key_THW, value_THW, starts_B1, starts_B1, longest, longest)  # type: ignore[no-any-return]
