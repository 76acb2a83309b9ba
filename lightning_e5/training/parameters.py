"""Which parameters are trained, and with which weight decay and learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lightning_e5.distributed.collectives import sum_over_ranks
from lightning_e5.errors import UserError


def parameter_groups(
    module: nn.Module, *, learning_rate: float, weight_decay: float, factors: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """AdamW parameter groups: no decay on biases and LayerNorms, own learning rates where asked.

    Args:
        module: the module to train; parameters without ``requires_grad`` are left out.
        learning_rate: peak learning rate.
        weight_decay: decoupled weight decay of matrices.
        factors: part of a parameter's name -> factor on its learning rate (the first that occurs in the name counts).

    Raises:
        UserError: a factor whose name is in no parameter's name.
    """
    factors = dict(factors or {})
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    unused = set(factors)
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        matching = [part for part in factors if part in name]
        unused -= set(matching)
        rate = learning_rate * (factors[matching[0]] if matching else 1.0)
        decay = weight_decay if parameter.ndim >= 2 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    if unused:
        raise UserError(f"learning_rate_factors: no parameter's name holds {min(unused)!r}")
    return [{"params": ps, "lr": rate, "initial_lr": rate, "weight_decay": decay} for (rate, decay), ps in groups.items()]


def freeze_position_embeddings(module: nn.Module) -> int:
    """Freeze every position-embedding table, so that texts longer than those of training can be encoded (paper, App. B).

    Returns:
        The number of tables frozen.
    """
    frozen = 0
    for name, parameter in module.named_parameters():
        if "position_embeddings" in name:
            parameter.requires_grad_(False)
            frozen += 1
    return frozen


@torch.no_grad()
def clip_gradients(
    parameters: Sequence[nn.Parameter], max_norm: float | None, *, shards: Sequence[nn.Parameter] = ()
) -> torch.Tensor:
    """Measure the global gradient norm, and scale the gradients in place where it exceeds ``max_norm``.

    Args:
        parameters: those whose gradients are equal on all ranks.
        max_norm: None for no clipping.
        shards: those of which every rank holds another part; with them this is a collective call.

    Returns:
        The norm before clipping, a scalar of the gradients' dtype, equal on all ranks.
    """
    norm = _norm(parameters)
    if shards:
        square = _norm(shards).square()
        sum_over_ranks(square)
        norm = (square + norm.to(square).square()).sqrt()
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_([*parameters, *shards], max_norm, norm)
    return norm


def _norm(parameters: Sequence[nn.Parameter]) -> torch.Tensor:
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
