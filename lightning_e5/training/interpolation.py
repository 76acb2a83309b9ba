"""Weights between two models of one shape: what a training adds, without giving up all that was there before it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_e5.errors import UserError

#: Parameter name -> values.
Weights = Mapping[str, Tensor]


def interpolated(start: Weights, end: Weights, keep: float) -> dict[str, Tensor]:
    """``keep * start + (1 - keep) * end``, parameter by parameter; exactly ``end`` for 0 and exactly ``start`` for 1.

    Args:
        start: weights before a training.
        end: weights after it; they may lie on another device.
        keep: share of ``start``.

    Raises:
        UserError: the two have other parameters, or parameters of other shapes.

    Source: Wortsman et al. 2022 (WiSE-FT), whose alpha is ``1 - keep``; Xiao et al. 2023 (LM-Cocktail) for embeddings.
    """
    if {name: value.shape for name, value in start.items()} != {name: value.shape for name, value in end.items()}:
        raise UserError("keep_general: the two encoders have other parameters, so their weights cannot be mixed")
    with torch.no_grad():
        return {name: torch.lerp(value, start[name].to(value), keep) for name, value in end.items()}
