"""Attention over packed texts of unequal length in one GPU kernel, where a library with one is there.

``flash-attn`` where it is installed (it has dropout), else ``torch.nn.attention.varlen`` where torch has it (it has none,
so a training with attention dropout takes padded groups of few lengths instead; an encoder's ``attention_dropout: 0`` keeps
it here). Both need CUDA, half precision and a GPU of compute capability 8.0 (Ampere) or later; V100 and T4 have less and take
the groups.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lightning_e5.distributed.devices import sent
from lightning_e5.rng import deterministic_kernels

#: What the kernels' machine code is made for.
_CAPABILITY = (8, 0)
#: Widest head that they take; widths are multiples of 8.
_WIDEST = 256


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


@cache
def _torch_has_windows() -> bool:
    attend = _torch_varlen()
    return attend is not None and "window_size" in inspect.signature(attend).parameters  # not in its first versions


def has_varlen(device: torch.device, dtype: torch.dtype, dropout: float, width: int = 64, *, windowed: bool = False) -> bool:
    """Whether `varlen_attention` can run with these, heads of so many values and attention within a window included."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16) or width > _WIDEST or width % 8:
        return False
    if torch.cuda.get_device_capability(device) < _CAPABILITY:
        return False
    if _flash() is not None:
        return True
    # torch promises one order of sums for its padded kernels, not for this one.
    return dropout == 0.0 and not deterministic_kernels() and (_torch_has_windows() if windowed else _torch_varlen() is not None)


def cumulative(lengths: Sequence[int], device: torch.device) -> Tensor:
    """int32 ``[B + 1]`` token position at which each text starts, and the end."""
    starts_B1 = torch.nn.functional.pad(torch.tensor(lengths, dtype=torch.int32, device="cpu").cumsum(0, dtype=torch.int32), (1, 0))
    return sent(starts_B1, device)


def varlen_attention(
    query_THW: Tensor, key_THW: Tensor, value_THW: Tensor, starts_B1: Tensor, longest: int, dropout: float, window: int | None = None
) -> Tensor:
    """Softmax attention within each text: three of ``[T, H, W] -> [T, H, W]``; a token attends to those at most ``window`` from it."""
    flash = _flash()
    near: dict[str, Any] = {} if window is None else {"window_size": (window, window)}
    if flash is not None:
        return flash(  # type: ignore[no-any-return]
            query_THW, key_THW, value_THW, starts_B1, starts_B1, longest, longest, dropout_p=dropout, deterministic=deterministic_kernels(), **near
        )
    attend = _torch_varlen()
    assert attend is not None and dropout == 0.0
    return attend(query_THW, key_THW, value_THW, starts_B1, starts_B1, longest, longest, **near)  # type: ignore[no-any-return]
