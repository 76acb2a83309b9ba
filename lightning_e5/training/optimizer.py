"""The optimizer of every training: AdamW with warm-up and decay, its parameter groups, and the clipping of gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import nn

import lightning_e5.vector_math  # noqa: F401 - made ready before any thread computes
from lightning_e5.configurable import configurable
from lightning_e5.distributed.collectives import sum_over_ranks
from lightning_e5.errors import UserError
from lightning_e5.ranges import CountOrZero, LearningRate, Range

Beta = Annotated[float, Range(0, 0.999999)]


@configurable("optimizer")
@dataclass(frozen=True)
class AdamWConfig:
    """AdamW, its learning-rate schedule, and what it trains.

    Args:
        learning_rate: peak.
        warmup_steps: steps of linear warm-up from 0; 0 for none.
        schedule: shape of the decay after warm-up: linear to 0, cosine to 0, or none.
        weight_decay: decoupled, of matrices; biases and LayerNorms have none.
        betas, eps: of AdamW.
        max_grad_norm: clip the global gradient norm; None for no clipping.
        learning_rate_factors: part of a parameter's name -> factor on its learning rate (the first that occurs in the name counts).
        fused: move all parameters by one kernel; None does so on a GPU. On a CPU its last digits are other ones.
        freeze_positions: keep the position embeddings as they are, so that texts longer than those of training can be encoded
            (paper, App. B).

    Source: warm-up steps and weight decay from the paper's table of hyperparameters; the shape of the decay is not stated there
    and is ours (linear, as in the authors' SimLM code).
    """

    learning_rate: LearningRate
    warmup_steps: CountOrZero = 0
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: Annotated[float, Range(0, 10)] = 0.01
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: Annotated[float, Range(0, 1, above=True)] = 1e-8
    max_grad_norm: Annotated[float, Range(0, 1e6, above=True)] | None = 1.0
    learning_rate_factors: Mapping[str, Annotated[float, Range(0, 1e4)]] | None = None
    freeze_positions: bool = True
    fused: bool | None = None

    def build(self, groups: Sequence[dict[str, Any]]) -> torch.optim.AdamW:
        """AdamW of some parameter groups.

        It keeps its own kernel where it is given the state of a training that had another one, as a training that goes on
        on another device has.
        """
        parameters = [p for group in groups for p in group["params"]]
        fused = all(p.is_cuda for p in parameters) if self.fused is None else self.fused
        beta_1, beta_2 = self.betas  # a list in a YAML
        optimizer = torch.optim.AdamW(list(groups), betas=(beta_1, beta_2), eps=self.eps, fused=True if fused else None)
        optimizer.register_load_state_dict_pre_hook(_with_own_kernel)
        return optimizer

    def parameter_groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """AdamW's parameter groups: no decay on biases and LayerNorms, own learning rates where asked.

        Args:
            module: the module to train; parameters without ``requires_grad`` are left out.

        Raises:
            UserError: a factor whose name is in no parameter's name.
        """
        factors = dict(self.learning_rate_factors or {})
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        unused = set(factors)
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            matching = [part for part in factors if part in name]
            unused -= set(matching)
            rate = self.learning_rate * (factors[matching[0]] if matching else 1.0)
            decay = self.weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
        if unused:
            raise UserError(f"learning_rate_factors: no parameter's name holds {min(unused)!r}")
        return [{"params": ps, "lr": rate, "initial_lr": rate, "weight_decay": decay} for (rate, decay), ps in groups.items()]

    def schedule_factor(self, step: int, max_steps: int) -> float:
        """The factor in [0, 1] on the peak learning rate; past the end of the training it stays that of the last step.

        Args:
            step: optimizer steps done before this one, from 0.
            max_steps: steps of the whole training.

        Raises:
            UserError: the warm-up is longer than the training.
        """
        warmup_steps = self.warmup_steps
        if not 0 <= warmup_steps <= max_steps:
            raise UserError(f"warmup_steps: {warmup_steps} is not in 0 .. max_steps = {max_steps}")
        step = min(step, max_steps - 1)  # at max_steps a decay is at 0, where a longer training would learn nothing more
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        remaining = (max_steps - step) / max(1, max_steps - warmup_steps)
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "linear":
            return remaining
        return 0.5 * (1.0 + math.cos(math.pi * (1.0 - remaining)))


def _with_own_kernel(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    own = optimizer.defaults["fused"]
    return {**state, "param_groups": [{**group, "fused": own} for group in state["param_groups"]]}


def set_learning_rates(optimizer: Any, factor: float) -> None:
    """Give each parameter group of `AdamWConfig.parameter_groups` its peak learning rate times ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def freeze_position_embeddings(module: nn.Module) -> int:
    """Freeze every position-embedding table; returns how many."""
    tables = [parameter for name, parameter in module.named_parameters() if "position_embeddings" in name]
    for table in tables:
        table.requires_grad_(False)
    return len(tables)


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
