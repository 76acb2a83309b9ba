"""Weights as the matrix products of a step take them: cast to the type of the products, and joined, once per step.

A gradient-cached step encodes many chunks with the same weights. Autocast would cast every weight anew for each of them, and each
chunk's graph would keep copies of its own; queries', keys' and values' weights would be joined anew, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class StepWeights:
    """The weights of an encoder's linear layers, which within `held` are made once.

    What is made is a leaf of autograd. After each backward pass its gradient is added to that of the weights it was made of, in
    their own type: sums over chunks are float32 sums, the same bits as where each chunk casts its own copy.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[int | torch.dtype, ...], _Made] | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, each weight is made where it is first asked for, and kept; the weights must not change meanwhile."""
        outside, self._made = self._made, {}
        try:
            yield
        finally:
            self._made = outside

    def of(self, layers: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of some linear layers as one, whose outputs lie side by side.

        In the type of the layers, or in that of autocast where it is on and `held` is.
        """
        weight = layers[0].weight
        kind = weight.device.type
        cast = torch.is_autocast_enabled(kind) and weight.dtype != torch.float64  # which autocast leaves as it is
        dtype = torch.get_autocast_dtype(kind) if cast else weight.dtype
        if self._made is None or (len(layers) == 1 and dtype == weight.dtype):
            return _joined([x.weight for x in layers]), None if layers[0].bias is None else _joined([x.bias for x in layers])
        key: tuple[int | torch.dtype, ...] = (*map(id, layers), dtype)
        if key not in self._made:
            self._made[key] = _Made(layers, dtype)
        made = self._made[key]
        return made.weight, made.bias

    def check(self) -> None:
        """Raise where a weight changed since it was made into what is held, as an optimizer's step changes it."""
        for made in [*(self._made or {}).values()]:  # chunks on several threads add to them
            if made.is_stale():
                raise RuntimeError("a weight has changed since its copy for this step was made: the copies are held within one step")

    def tensors(self) -> list[Tensor]:
        """What is held now."""
        return [tensor for made in [*(self._made or {}).values()] for tensor in (made.weight, made.bias) if tensor is not None]


class _Made:
    """Weight and bias of linear layers, joined and cast."""

    def __init__(self, layers: Sequence[nn.Linear], dtype: torch.dtype) -> None:
        biases = [x.bias for x in layers if x.bias is not None]
        self._of: list[Tensor] = [*[x.weight for x in layers], *biases]
        self._state = self._now()
        self.weight = _leaf([x.weight for x in layers], dtype)
        self.bias = _leaf(biases, dtype) if biases else None

    def _now(self) -> list[tuple[int, int]]:
        """What changes with a parameter's values: the count of writes, and the memory where sharding puts them."""
        return [(-1 if p.is_inference() else p._version, p.data_ptr()) for p in self._of]

    def is_stale(self) -> bool:
        return self._state != self._now()


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _leaf(parameters: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """A copy that hands its gradient on to the parameters."""
    with torch.no_grad():
        leaf = _joined([p.detach().to(dtype) for p in parameters])
    if any(p.requires_grad for p in parameters) and not leaf.is_inference():
        leaf.requires_grad_()
        leaf.register_post_accumulate_grad_hook(_HandOn(parameters))
    return leaf


class _HandOn:
    """Adds a leaf's gradient to those of the parameters that it was made of, and clears it.

    Gradients of parameters that are joined lie in one tensor, so that each chunk's is added in one operation.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = list(parameters)
        self._sizes = [len(p) for p in parameters]
        self._whole: Tensor | None = None
        self._parts: list[Tensor] = []

    @torch.no_grad()
    def __call__(self, leaf: Tensor) -> None:
        gradient, leaf.grad = leaf.grad, None
        assert gradient is not None
        gradients = [p.grad for p in self._parameters]
        if self._whole is not None and all(a is b for a, b in zip(gradients, self._parts, strict=True)):
            self._whole.add_(gradient)
        elif all(g is None and p.requires_grad for g, p in zip(gradients, self._parameters, strict=True)):
            self._whole = gradient.to(self._parameters[0].dtype)
            self._parts = list(self._whole.split(self._sizes))
            for parameter, part in zip(self._parameters, self._parts, strict=True):
                parameter.grad = part
        else:  # some are frozen, or have a gradient from elsewhere
            for parameter, part in zip(self._parameters, gradient.split(self._sizes), strict=True):
                if parameter.requires_grad:
                    parameter.grad = part.to(parameter.dtype, copy=True) if parameter.grad is None else parameter.grad.add_(part)
