"""Memory that is written to again and again."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Scratch:
    """Memory that one tile after the other is written to: new memory for each costs as much as a fifth of a product."""

    def __init__(self) -> None:
        self.values = torch.empty(0, device="cpu")

    def take(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Uninitialised values, valid until the next call."""
        size = math.prod(shape)
        if self.values.dtype != dtype or self.values.device != device or len(self.values) < size:
            self.values = torch.empty(size, dtype=dtype, device=device)
        return self.values[:size].view(*shape)

    def product(self, left_RD: Tensor, right_CD: Tensor) -> Tensor:
        """``left @ right.T``, valid until the next call."""
        return torch.mm(left_RD, right_CD.T, out=self.take((len(left_RD), len(right_CD)), left_RD.dtype, left_RD.device))
