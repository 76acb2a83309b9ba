"""What the padding-free forward passes of all families share: the run of tokens, the word lookup, the loop over layers.

Texts lie one behind the other in a run of ``T`` tokens. Every layer but attention works on single tokens, so it runs over
``[T, D]`` as it is. The weights are those of the given Hugging Face model; it loads and saves in its own layout.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lightning_e5.errors import UserError
from lightning_e5.models.packed.dropout import dropped
from lightning_e5.models.packed.layout import Layout
from lightning_e5.models.packed.post_norm import PostNorm, compiled_post_norm, filled
from lightning_e5.models.packed.step_weights import StepWeights

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
        #: Of the linear layers; a training step holds them over all its chunks.
        self.step_weights = StepWeights()
        self._compiled: Callable[..., Tensor] | None = None
        self._budget = 0

    @staticmethod
    def unsupported(config: Any) -> str | None:
        """What this class does not compute of what a configuration asks for; None where it computes all."""
        if getattr(config, "is_decoder", False):
            return "is_decoder: true"
        kind = getattr(config, "position_embedding_type", None) or "absolute"
        return None if kind == "absolute" else f"position_embedding_type: {kind}"

    def forward(self, ids_T: Tensor, lengths: Sequence[int] | Layout, segments_T: Tensor | None = None) -> Tensor:
        """Last hidden states.

        Args:
            ids_T: int64 ``[T]`` token ids, text after text; none is a padding token.
            lengths: tokens of each text, or their layout; texts sorted by length give the fewest attention groups.
            segments_T: int64 ``[T]`` token types, for a model that has several; all 0 by default.

        Returns:
            ``[T, D]`` states, in the autocast type where autocast is on.
        """
        self.step_weights.check()
        layout = lengths if isinstance(lengths, Layout) else Layout.of(lengths, ids_T.device, training=self.training)
        tokens = layout.tokens
        if self.compiles():
            ids_T, layout = filled(ids_T, layout, self._budget)
            segments_T = None if segments_T is None else functional.pad(segments_T, (0, layout.tokens - tokens))
        states_TD = self.embed(self._words(ids_T), layout, segments_T)
        shared = self.shared(states_TD, layout)
        for layer in self.layers():
            run = getattr(layer, PACKED_FORWARD, None) or partial(self.layer, layer)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                states_TD = checkpoint(run, states_TD, layout, shared, use_reentrant=False)
            else:
                states_TD = run(states_TD, layout, shared)
        return self.finish(states_TD)[:tokens] if layout.tokens > tokens else self.finish(states_TD)

    def compile_layers(self, budget: int) -> None:
        """Compile, in training, what its layers compute behind the attention, for chunks of ``budget`` tokens.

        Raises:
            UserError: its layers are of another kind.
        """
        kinds = [self.behind_attention(layer) for layer in self.layers()]
        if any(kind is None for kind in kinds) or not kinds:
            raise UserError(f"compile: the layers of {type(self.backbone).__name__} are not compiled; the rule is BERT, RoBERTa, XLM-R, MPNet or DistilBERT")
        self._compiled, self._budget = compiled_post_norm(kinds[0].activation), budget  # type: ignore[union-attr]

    def compiles(self) -> bool:
        """Whether its layers run compiled now."""
        return self._compiled is not None and self.training

    def behind_attention(self, layer: Any) -> PostNorm | None:
        """The modules behind the attention of a layer that normalises its sums; None for another kind of layer."""
        return None

    def post_norm(self, layer: Any, attended_TD: Tensor, states_TD: Tensor, rates: tuple[float, float]) -> Tensor:
        """The states behind a layer from those before it and what attention gave; ``rates``: of dropout, after each block's last product."""
        of = self.behind_attention(layer)
        assert of is not None
        if self._compiled is not None and self.training:
            linear = [tensor for dense in (of.attention_output, of.widen, of.narrow) for tensor in self.step_weights.of([dense])]
            norms = (of.attention_norm.weight, of.attention_norm.bias, of.norm.weight, of.norm.bias)
            weights = (*linear[:2], *norms[:2], *linear[2:], *norms[2:])
            return self._compiled(attended_TD, states_TD, weights, (of.attention_norm.eps, of.norm.eps), rates)
        states_TD = of.attention_norm(self.residual(of.attention_output, rates[0], attended_TD, states_TD))
        inner = of.activation(self.linear(states_TD, of.widen))
        normalised_TD: Tensor = of.norm(self.residual(of.narrow, rates[1], inner, states_TD))
        return normalised_TD

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

    def linear(self, states_TD: Tensor, *layers: nn.Linear) -> Tensor:
        """The outputs of one linear layer, or of several side by side, in one product: ``[T, D] -> [T, E]``."""
        return functional.linear(states_TD, *self.step_weights.of(layers))

    def residual(self, dense: nn.Linear, dropout: float, inner_TE: Tensor, states_TD: Tensor) -> Tensor:
        """``dropout(dense(inner)) + states``.

        Without dropout in full precision the matrix product adds onto the sum of residual and bias; on CPUs that saves one of
        three passes over ``[T, D]`` (measured: 3% of a forward pass of MiniLM).
        """
        if dropout or inner_TE.dtype != states_TD.dtype or torch.is_autocast_enabled(states_TD.device.type):
            return dropped(self.linear(inner_TE, dense), dropout) + states_TD
        if dense.bias is None:
            return torch.addmm(states_TD, inner_TE, dense.weight.t())
        return (states_TD + dense.bias).addmm_(inner_TE, dense.weight.t())

    def _words(self, ids_T: Tensor) -> Tensor:
        weight = self.backbone.get_input_embeddings().weight
        if self.scatter_word_gradient and torch.is_grad_enabled() and weight.requires_grad:
            words_TD: Tensor = _ScatteredLookup.apply(weight, ids_T)
            return words_TD
        return functional.embedding(ids_T, weight)


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


@contextmanager
def held_weights(model: nn.Module, *, once: bool = True) -> Iterator[Callable[[], list[Tensor]]]:
    """Inside, the encoders in ``model`` that run without padding make their `StepWeights` once; gives what returns these.

    ``once``: False makes them for each chunk anew, to compare with.
    """
    packed = [m for m in model.modules() if isinstance(m, PackedEncoder)]
    with ExitStack() as stack:
        for encoder in packed if once else ():
            stack.enter_context(encoder.step_weights.held())
        yield lambda: [tensor for encoder in packed for tensor in encoder.step_weights.tensors()]


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Within the block ``model`` is in evaluation mode, and joins and casts its weights once for all chunks of some texts.

    Weights of sharded layers, which are whole only for moments, are not held. Each module's mode is back afterwards.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with held_weights(model, once=not any(hasattr(p, "device_mesh") for p in model.parameters())):
            yield
    finally:
        for module, training in modes:
            module.training = training


def compile_layers(model: nn.Module, budget: int) -> None:
    """Compile the layers of the encoders in ``model`` for chunks of ``budget`` tokens, see `PackedEncoder.compile_layers`.

    Raises:
        UserError: it has none that runs without padding, or one whose layers are of another kind.
    """
    packed = [m for m in model.modules() if isinstance(m, PackedEncoder)]
    if not packed:
        raise UserError("compile: this model runs padded, and only layers of encoders that run without padding are compiled")
    for encoder in packed:
        encoder.compile_layers(budget)
