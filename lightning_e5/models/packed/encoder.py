"""What the padding-free forward passes of all families share: the run of tokens, the word lookup, the loop over layers.

Texts lie one behind the other in a run of ``T`` tokens. Every layer but attention works on single tokens, so it runs over
``[T, D]`` as it is. The weights are those of the given Hugging Face model; it loads and saves in its own layout.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lightning_e5.models.packed.layout import Layout

#: The method of a layer by which it runs without padding, where it has one.
PACKED_FORWARD = "packed_forward"


class PackedEncoder(nn.Module, ABC):
    """A padding-free view of a Hugging Face encoder; each family's class computes what its model computes.

    Args:
        backbone: the model whose weights are used, as a submodule of the caller (it is not registered twice here).
        gradient_checkpointing: recompute each layer in the backward pass.
        scatter_word_gradient: add the word-embedding gradient straight into ``.grad`` (only for callers that read
            ``.grad`` and register no hooks on that table).
    """

    backbone: Any

    def __init__(self, backbone: Any, *, gradient_checkpointing: bool = False, scatter_word_gradient: bool = False) -> None:
        super().__init__()
        object.__setattr__(self, "backbone", backbone)
        self.gradient_checkpointing = gradient_checkpointing
        self.scatter_word_gradient = scatter_word_gradient

    @staticmethod
    def unsupported(config: Any) -> str | None:
        """What this class does not compute of what a configuration asks for; None where it computes all."""
        if getattr(config, "is_decoder", False):
            return "is_decoder: true"
        kind = getattr(config, "position_embedding_type", None) or "absolute"
        return None if kind == "absolute" else f"position_embedding_type: {kind}"

    def forward(self, ids_T: Tensor, lengths: Sequence[int], segments_T: Tensor | None = None) -> Tensor:
        """Last hidden states.

        Args:
            ids_T: int64 ``[T]`` token ids, text after text; none is a padding token.
            lengths: tokens of each text; texts sorted by length give the fewest attention groups.
            segments_T: int64 ``[T]`` token types, for a model that has several; all 0 by default.

        Returns:
            ``[T, D]`` states, in the autocast type where autocast is on.
        """
        layout = Layout.of(lengths, ids_T.device)
        states_TD = self.embed(self._words(ids_T), layout, segments_T)
        shared = self.shared(states_TD, layout)
        for layer in self.layers():
            run = getattr(layer, PACKED_FORWARD, None) or partial(self.layer, layer)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                states_TD = checkpoint(run, states_TD, layout, shared, use_reentrant=False)
            else:
                states_TD = run(states_TD, layout, shared)
        return self.finish(states_TD)

    def methods_of_layers(self) -> list[nn.Module]:
        """The layers, each with a method of its own by which it is called from then on, so that it can be had sharded."""
        for layer in self.layers():
            setattr(layer, PACKED_FORWARD, partial(self.layer, layer))
        return list(self.layers())

    @abstractmethod
    def embed(self, words_TD: Tensor, layout: Layout, segments_T: Tensor | None) -> Tensor:
        """The first layer's input ``[T, D]`` from the word embeddings."""

    def shared(self, states_TD: Tensor, layout: Layout) -> Any:
        """What is computed once for the attention of all layers."""
        return None

    @abstractmethod
    def layers(self) -> Iterable[Any]:
        """The model's layers, first to last."""

    @abstractmethod
    def layer(self, layer: Any, states_TD: Tensor, layout: Layout, shared: Any) -> Tensor:
        """One layer, ``[T, D] -> [T, D]``, as the model computes it."""

    def finish(self, states_TD: Tensor) -> Tensor:
        """What comes after the last layer."""
        return states_TD

    def rate(self, dropout: Any) -> float:
        """The rate of a dropout, which is 0 in evaluation."""
        return float(dropout.p) if self.training else 0.0

    def _words(self, ids_T: Tensor) -> Tensor:
        weight = self.backbone.get_input_embeddings().weight
        if self.scatter_word_gradient and torch.is_grad_enabled() and weight.requires_grad:
            words_TD: Tensor = _ScatteredLookup.apply(weight, ids_T)
            return words_TD
        return functional.embedding(ids_T, weight)


def joined_linear(states_TD: Tensor, layers: Sequence[nn.Linear]) -> Tensor:
    """The outputs of several linear layers side by side, in one product: ``[T, D] -> [T, E]``."""
    return functional.linear(states_TD, torch.cat([x.weight for x in layers]), torch.cat([x.bias for x in layers]))


def residual(dense: nn.Linear, dropout: float, inner_TE: Tensor, states_TD: Tensor) -> Tensor:
    """``dropout(dense(inner)) + states``.

    Without dropout in full precision the matrix product adds onto the sum of residual and bias; on CPUs that saves one of
    three passes over ``[T, D]`` (measured: 3% of a forward pass of MiniLM).
    """
    if dropout or inner_TE.dtype != states_TD.dtype or torch.is_autocast_enabled(states_TD.device.type):
        return functional.dropout(dense(inner_TE), dropout, bool(dropout)) + states_TD
    if dense.bias is None:
        return torch.addmm(states_TD, inner_TE, dense.weight.t())
    return (states_TD + dense.bias).addmm_(inner_TE, dense.weight.t())


class _ScatteredLookup(torch.autograd.Function):
    """Embedding lookup whose gradient is added to ``weight.grad`` at the rows used, without a dense ``[V, D]`` gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids_T: Tensor) -> Tensor:
        ctx.weight, ctx.ids_T = weight, ids_T
        return functional.embedding(ids_T, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        (gradient_TD,) = gradients
        with torch.no_grad():
            if ctx.weight.grad is None:
                ctx.weight.grad = torch.zeros_like(ctx.weight)
            ctx.weight.grad.index_add_(0, ctx.ids_T, gradient_TD.to(ctx.weight.dtype))
        return None, None
