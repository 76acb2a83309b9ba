"""What the cases of `tests.other_device_cases` are given, drawn on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lightning_e5.types import TokenBatch

LENGTHS = (3, 7, 7, 12, 5)


def on(device: torch.device, value: Any) -> Any:
    """A batch, or anything in it, moved to the device, as Lightning moves it."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        moved = [on(device, one) for one in value]
        return type(value)(*moved) if hasattr(value, "_fields") else tuple(moved)
    return value


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(*shape: int, seed: int = 0) -> Tensor:
    return functional.normalize(drawn(*shape, seed=seed), dim=-1)


def tokens(lengths: tuple[int, ...] = LENGTHS) -> TokenBatch:
    ids_T = torch.randint(10, 88, (sum(lengths),), generator=torch.Generator().manual_seed(4))
    ends = torch.tensor(lengths).cumsum(0)
    ids_T[ends - 1], ids_T[ends - torch.tensor(lengths)] = 3, 2  # the special tokens
    return TokenBatch(ids_T, torch.tensor(lengths))
