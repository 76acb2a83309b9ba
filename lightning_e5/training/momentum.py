"""An exponential moving average of an encoder: MoCo's key encoder."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def momentum_copy(module: Module) -> Module:
    """A copy that is never trained and always in evaluation mode (no dropout in the keys)."""
    copied = copy.deepcopy(module)
    copied.requires_grad_(False)
    return copied.eval()


@torch.no_grad()
def momentum_update(average: nn.Module, module: nn.Module, momentum: float) -> None:
    """``average <- momentum * average + (1 - momentum) * module``, in place (He et al. 2020, equation 2)."""
    pairs = list(zip(average.parameters(), module.parameters(), strict=True))
    torch._foreach_lerp_([a for a, _ in pairs], [p.detach() for _, p in pairs], 1.0 - momentum)
